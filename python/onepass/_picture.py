"""What all pictures share: how lines look, and figures that need no display."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepass._extras import require
from onepass._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, but for the yellow, too light for
# lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

DASHES = ("-", "--")  # in turn, so that one of two lines that coincide shows the other


def styles() -> Iterator[tuple[str, str]]:
    """Yield a colour and a line style for one line after the other, without end."""
    return zip(cycle(COLOURS), cycle(DASHES), strict=False)


def save_png(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a picture atomically."""
    save = partial(figure.savefig, format="png", **options)
    write_atomically(path, save, durable=False)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, which leaves pyplot's state alone."""
    require("plot", matplotlib="matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
