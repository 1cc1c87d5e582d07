"""The report as one HTML file that needs no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepass.lab.compare.picture import draw_rates, draw_times
from onepass.lab.compare.results import Comparison, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Means over the seeds at the end of the runs, ± the standard deviation; of runs that did not "
    "diverge. Steps to a score are those of the seeds that reached it. Loss and score are measured "
    "after every epoch, on all training and validation rows; the times are those of one run, "
    "without that."
)


def render(
    comparison: Comparison,
    curves: "Figure",
    description: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    tuned = any(choose(entry.tried) for entry in comparison.entries)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html: str = environment.from_string(template).render(
        title=f"onepass compare: {comparison.recipe.data}",
        description=description,
        headings=headings,
        rows=rows,
        caption=CAPTION,
        facts=facts,
        curves=_as_url(curves),
        times=_as_url(draw_times(comparison)),
        rates=_as_url(draw_rates(comparison)) if tuned else None,
    )
    return html


def _as_url(figure: "Figure") -> str:
    """Return a picture that stands in the page itself."""
    import matplotlib as mpl

    svg = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "onepass"}):  # equal pictures are equal bytes
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}"
