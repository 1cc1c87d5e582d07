"""The report of a command as one HTML file that needs no network."""

import re
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


class Shown(NamedTuple):
    """A picture that stands in the page itself."""

    name: str
    heading: str
    note: str
    picture: str
    """Its SVG, or the address of an image."""
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
    """Return a picture as SVG; to point at a curve, or at its name, picks it out.

    A curve is what `mark` has marked.
    """
    import matplotlib as mpl

    file = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "onepass"}):  # equal pictures are equal bytes
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue().decode()
    names = list(dict.fromkeys(_CURVE.findall(svg)))

    def named(group: re.Match[str]) -> str:
        return f'<g class="curve c{names.index(group[1])}"><title>{group[1]}</title>'

    rules = (f"svg:has(.c{i}:hover) .curve:not(.c{i})" for i in range(len(names)))
    style = f"<style>{','.join(rules)} {{ opacity: .1; }}</style>" if names else ""
    return style + _CURVE.sub(named, svg[svg.index("<svg") :])


def mark(artist: "Artist", name: str) -> None:
    """Let a part of a picture belong to the curve of this name."""
    artist.set_gid(f"curve:{name}")


_CURVE = re.compile('<g id="curve:(.*?)">')


def read(path: Path) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
