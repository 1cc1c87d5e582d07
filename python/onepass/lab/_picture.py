"""What all pictures share: how lines look, logarithmic axes, figures that need no display."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onepass._extras import require
from onepass._files import write_atomically
from onepass._typing import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which is too
# light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

DASHES = ("-", "--")  # in turn, so that one of two lines that coincide shows the other
_MORE_DASHES = (":", "-.")  # once each colour has had both

_TINY, _HUGE = 1e-250, 1e250
"""Floats do not hold the ticks of an axis that is much longer than from one to the other."""
_GAP = 0.07
"""The share of the axis between its lowest value and the line for values that are lower."""
_MARGIN = 0.05
"""The share of the axis that is added at both ends."""


def styles() -> Iterator[tuple[str, str]]:
    """Yield a colour and a line style for one line after the other, without end."""
    for dashes in cycle((DASHES, _MORE_DASHES)):
        both = zip(cycle(COLOURS), cycle(dashes), strict=False)
        yield from islice(both, len(COLOURS) * len(dashes))


_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}


class LogScale:
    """Which numbers a logarithmic axis shows, and where it shows those that have no place on it.

    Numbers that are too low, zero among them, lie on a line of their own at the bottom; those that
    are too high leave through the top. The picture says where it is cut.

    Parameters
    ----------
    values : iterable of arrays or floats
        All numbers to be shown, none below 0. What is not finite is left out.
    top, bottom : float
        Where it is cut at the latest, if there is anything in between.
    """

    def __init__(
        self, values: Iterable[npt.ArrayLike], *, top: float = math.inf, bottom: float = _TINY
    ) -> None:
        arrays = [np.ravel(np.asarray(each, dtype=float)) for each in values]
        numbers = np.concatenate([np.empty(0), *arrays])
        numbers = numbers[np.isfinite(numbers)]
        shown = numbers[(max(bottom, _TINY) <= numbers) & (numbers <= min(top, _HUGE))]
        if not shown.size:
            bottom, shown = _TINY, numbers[(numbers >= _TINY) & (numbers <= _HUGE)]
            shown = shown if shown.size else np.ones(1)
        high = float(shown.max())
        cuts = bool((numbers[numbers > 0] < bottom).any())
        self.low = bottom if cuts else float(shown.min())
        self.below = f"< {self.low:.1g}" if cuts else "0" if (numbers <= 0).any() else None
        """What the line at the bottom stands for, in words; None if there is none."""
        self._is_cut_above = bool((numbers > high).any())
        span = max(math.log10(high) - math.log10(self.low), 0.5)
        self.floor = self.low * 10 ** (-_GAP * span)
        """Where the line for all that is too low lies."""
        margin = 10 ** (_MARGIN * span)
        self.top = high * margin
        """Where the axis ends."""
        self._end = (self.low if self.below is None else self.floor) / margin

    def fit(self, values: npt.ArrayLike) -> Array:
        """Return the values as they are to be drawn."""
        array = np.asarray(values, dtype=float)
        drawn: Array = np.where(array < self.low, self.floor, array)
        return drawn

    def draw(self, axes: "Axes") -> None:
        """Make an axis logarithmic, with a note of what is cut."""
        axes.set_ylim(self._end, self.top)  # first: no autoscaling, which may overflow
        axes.set_yscale("log")
        style: dict[str, Any] = {"fontsize": 7, "color": "0.3", "zorder": 5, "bbox": _BACKGROUND}
        if self.below is not None:
            axes.axhline(self.floor, color="0.6", lw=0.6, ls=":", zorder=1)
            at = axes.get_yaxis_transform()
            axes.text(0.01, self.floor, self.below, va="bottom", transform=at, **style)
        if self._is_cut_above:
            words = f"cut above {self.top:.1g}"
            axes.text(0.99, 0.97, words, ha="right", va="top", transform=axes.transAxes, **style)


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
