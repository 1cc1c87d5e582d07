"""The picture of an exponential moving average, in four panels."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.ema import average, simple, window
from onepass.lab._picture import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE = 0.95
"""The picture tells how many of the newest values have this share of all weight."""

_DATA = "0.7"
_EXPONENTIAL, _CORRECTED, _SIMPLE = COLOURS[:3]


def draw_averages(values: Array, beta: float, initial: float, path: str | os.PathLike[str]) -> None:
    """Draw a series with its averages, their differences, their weights and the weights' sums."""
    size = max(1, round(window(beta)))
    averages = {
        f"exponential, from {initial:.4g}": average(values, beta, initial=initial),
        "bias-corrected": average(values, beta, bias_correction=True),
        f"simple, of {size:,}": simple(values, size),
    }
    figure = new_figure(11, 7)
    (over_data, weighted), (differing, cumulated) = figure.subplots(2, 2)
    figure.suptitle(rf"$\beta$ = {beta:g}: an effective window of {window(beta):,.4g}")
    _draw_series(over_data, values, averages)
    _draw_differences(differing, values, *averages.values())
    _draw_weights(weighted, beta, size)
    _draw_cumulated(cumulated, beta, size)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.locator_params("x", integer=True)
    handles, labels = over_data.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def _draw_series(axes: "Axes", values: Array, averages: Mapping[str, Array]) -> None:
    steps = np.arange(1, len(values) + 1)
    styles = zip((_EXPONENTIAL, _CORRECTED, _SIMPLE), ("-", "--", "-"), strict=True)
    axes.plot(steps, values, color=_DATA, lw=0.8, label="data")
    for (name, each), (colour, dashes) in zip(averages.items(), styles, strict=True):
        axes.plot(steps, each, color=colour, ls=dashes, label=name)
    axes.set(title="The data and its averages", xlabel="step t")


def _draw_differences(
    axes: "Axes", values: Array, exponential: Array, corrected: Array, moving: Array
) -> None:
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values - exponential, color=_DATA, lw=0.8)
    axes.plot(steps, corrected - exponential, color=_CORRECTED, ls="--")
    axes.plot(steps, moving - exponential, color=_SIMPLE)
    axes.axhline(0, color=_EXPONENTIAL)
    axes.set(title="Their difference from the exponential average", xlabel="step t")


def _draw_weights(axes: "Axes", beta: float, size: int) -> None:
    ages = _counts(beta)
    axes.plot(ages, (1 - beta) * beta**ages, color=_EXPONENTIAL)
    axes.step(ages, (ages < size) / size, where="post", color=_SIMPLE)
    title = r"The weights: $(1 - \beta)\,\beta^k$"
    axes.set(title=title, xlabel="age of the value k", ylim=(0, None))


def _draw_cumulated(axes: "Axes", beta: float, size: int) -> None:
    counts = _counts(beta)
    reached = _reached(beta)
    axes.plot(counts, 1 - beta**counts, color=_EXPONENTIAL)
    axes.plot(counts, np.minimum(counts / size, 1), color=_SIMPLE)
    axes.axhline(_SHARE, color="0.3", ls=":")
    axes.vlines(reached, 0, 1 - beta**reached, color="0.3", ls=":")
    axes.plot(reached, 1 - beta**reached, "o", color="0.3")
    axes.annotate(
        f"{_SHARE:.0%} of the weight is\non the newest {reached:,}",
        (reached, 0.3),
        xytext=(6, 0),
        textcoords="offset points",
    )
    title = r"The weights' sum: $1 - \beta^n$"
    axes.set(title=title, xlabel="newest values n", ylim=(0, 1.05))


def _reached(beta: float) -> int:
    """Return how many of the newest values have that share of the weight."""
    return math.ceil(math.log(1 - _SHARE) / math.log(beta)) if beta > 1 - _SHARE else 1


def _counts(beta: float) -> npt.NDArray[np.int_]:
    """Return the ages that the panels of weights show, or as many of them as one can see."""
    last = max(math.ceil(1.6 * _reached(beta)), 4)
    return np.linspace(0, last, min(last, 1000) + 1, dtype=int)
