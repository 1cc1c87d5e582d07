"""The picture: loss, gradient norm and learning rate over the run, with BatchNorm and without."""

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onepass._picture import COLOURS, new_figure
from onepass.compare.training import Comparison, Measurement, Result, layer_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--")  # in turn, so that one of two lines that coincide shows the other
NAMES = {True: "with batch norm", False: "without batch norm"}

Quantity = Callable[[Measurement], float | None]
ROWS: dict[str, tuple[float, Quantity]] = {
    "training loss (cross-entropy)": (3, lambda point: point.train_loss),
    "gradient norm (median)": (2, lambda point: point.grad_norm),
    "learning rate": (1, lambda point: point.lr),
}
"""What each row of panels shows, and how high it is."""


def draw(comparison: Comparison, path: Path) -> None:
    """Draw a column of panels for each of `Comparison.variants`, into a PNG file."""
    columns = len(comparison.variants)
    heights = [height for height, _ in ROWS.values()]
    figure = new_figure(5.5 * columns, 9)
    panels = figure.subplots(
        len(heights), columns, sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for column, variant in zip(panels.T, comparison.variants, strict=True):
        _draw_column(column, comparison, variant)
    for axes, label in zip(panels[:, 0], ROWS, strict=True):
        axes.set_ylabel(label)
    norms = panels[1, 0]  # has every line that the legend explains
    if any(result.diverged_at is not None for result in comparison.results):
        norms.plot([], [], "kx", label="diverged")
    handles, labels = norms.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False)
    figure.savefig(path)


def _draw_column(column: Sequence["Axes"], comparison: Comparison, variant: bool) -> None:
    budget = comparison.budget
    results = [result for result in comparison.results if result.batch_norm == variant]
    for axes, (_, quantity) in zip(column, ROWS.values(), strict=True):
        _draw_curves(axes, results, quantity)
    if math.isfinite(limit := budget.max_grad_norm):
        column[1].axhline(limit, color="grey", ls="--", lw=1, label=f"clipped to {limit:g}")
    layers = "-".join(map(str, layer_sizes(comparison.split)))
    column[0].set_title(f"digits, {layers} {NAMES[variant]}")
    column[-1].set_xlabel(f"step (batches of {budget.batch_size:,})")


def _draw_curves(axes: "Axes", results: Sequence[Result], quantity: Quantity) -> None:
    styles = zip(cycle(COLOURS), cycle(DASHES), strict=False)
    for result, (colour, dashes) in zip(results, styles, strict=False):
        steps = [point.step for point in result.curve]
        values = np.array([quantity(point) for point in result.curve], float)  # None becomes NaN
        axes.plot(
            steps,
            values,
            label=f"{result.contender.name}, lr {result.contender.lr:g}",
            color=colour,
            linestyle=dashes,
            zorder=3 if dashes == "--" else 2,
        )
        if result.diverged_at is not None:
            axes.plot(steps[-1:], values[-1:], "x", color=colour)  # where it ends
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
