"""The pictures of both searches: loss against learning rate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onepass._quiet import quiet
from onepass._typing import Array
from onepass.lab._picture import COLOURS, LogScale, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onepass.lab.search.grid import LearningRates
    from onepass.lab.search.ramp import RangeTest

CURVE, CHOSEN, SECOND, *_ = COLOURS


@quiet
def draw_grid(found: LearningRates, path: str | os.PathLike[str]) -> None:
    """Draw each trial, joined in order, and which one is best."""
    figure, axes = _new_axes()
    finite = [trial for trial in found.trials if math.isfinite(trial.loss)]
    fit = _scaled(axes, [trial.loss for trial in finite])
    axes.plot([t.lr for t in finite], fit([t.loss for t in finite]), color=CURVE, lw=1)
    for grid, face in (("coarse", CURVE), ("fine", "white")):
        rates, losses = [[t[i] for t in finite if t.grid == grid] for i in (0, 1)]
        dots = axes.scatter(rates, fit(losses), color=CURVE, zorder=3, label=f"{grid} grid")
        dots.set_facecolor(face)
    lr, loss, _ = found.best
    ring = axes.scatter([lr], fit([loss]), s=160, color=CHOSEN, label=f"best: {lr:g}")
    ring.set_facecolor("none")
    if diverged := [t.lr for t in found.trials if not math.isfinite(t.loss)]:
        top = axes.get_xaxis_transform()
        axes.plot(diverged, [0.96] * len(diverged), "kx", transform=top, label="diverged")
    _finish(figure, path)


@quiet
def draw_ramp(curve: RangeTest, path: str | os.PathLike[str]) -> None:
    """Draw the loss, its average, and the two suggestions."""
    figure, axes = _new_axes()
    fit = _scaled(axes, [*curve.losses, *curve.smoothed])
    axes.plot(curve.lrs, fit(curve.losses), color=CURVE, lw=0.7, alpha=0.5, label="loss")
    axes.plot(curve.lrs, fit(curve.smoothed), color=CURVE, lw=2, label="smoothed")
    for name, lr, colour, dashes in (
        ("steepest", curve.steep, CHOSEN, "-"),
        ("minimum / 10", curve.minimum, SECOND, "--"),
    ):
        axes.axvline(lr, color=colour, ls=dashes, label=f"{name}: {lr:.2g}")
    _finish(figure, path)


def _new_axes() -> tuple[Figure, Axes]:
    figure = new_figure(6.5, 4)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    return figure, axes


def _scaled(axes: Axes, losses: Sequence[float]) -> Callable[[npt.ArrayLike], Array]:
    """Make the axis logarithmic where no loss is negative, and return what fits losses to it."""
    if min(losses) < 0:
        return np.asarray
    scale = LogScale(losses)  # so that one that rose far leaves the others visible
    scale.draw(axes)
    return scale.fit


def _finish(figure: Figure, path: str | os.PathLike[str]) -> None:
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)
