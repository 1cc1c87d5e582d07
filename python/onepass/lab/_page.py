"""The report of a command as one HTML file that needs no network."""

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown(NamedTuple):
    """A picture that stands in the page itself."""

    name: str
    heading: str
    note: str
    url: str
    alt: str


class Block(NamedTuple):
    """Code to be copied."""

    heading: str
    text: str


def render(
    *,
    title: str,
    description: Sequence[str],
    findings: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Collection[int],
    caption: str,
    pictures: Sequence[Shown],
    facts: Mapping[str, Any],
    blocks: Sequence[Block] = (),
) -> str:
    """Return the page; `best` are the rows to be marked, and `facts` hold the command too."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    others = dict(facts)
    html: str = environment.from_string(template).render(
        title=title,
        description=description,
        findings=findings,
        headings=headings,
        rows=rows,
        best=best,
        caption=caption,
        pictures=pictures,
        command=others.pop("command"),
        facts=others,
        blocks=blocks,
    )
    return html


def drawn(figure: "Figure") -> str:
    """Return a picture as an address that holds it."""
    import matplotlib as mpl

    svg = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "onepass"}):  # equal pictures are equal bytes
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}"


def read(path: Path) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
