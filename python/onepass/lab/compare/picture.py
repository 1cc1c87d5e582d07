"""The pictures: how loss, score, gradient norm and rate went, and where the time went."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onepass.lab._page import mark
from onepass.lab._picture import COLOURS, DASHES, LogScale, new_figure, styles
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.results import Comparison, Entry
from onepass.lab.compare.training import Measurement, Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {True: "with batch norm", False: "without batch norm"}

GROWTH = 1e3
"""How many times its first value a number may be for the curves to show it."""
SMALLEST = 1e-12
"""The smallest part of its first value that the curves show."""

Quantity = Callable[[Measurement], float | None]
Table = npt.NDArray[np.float64]


def draw_curves(comparison: Comparison) -> "Figure":
    """Draw a column of panels for each of `Comparison.variants`."""
    rows = _rows(comparison.recipe)
    columns = len(comparison.variants)
    figure = new_figure(5.5 * columns, 11)
    panels = figure.subplots(
        len(rows),
        columns,
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=[height for _, height, _ in rows],
    )
    scales = [_scale(comparison, quantity) for *_, quantity in rows]
    for column, variant in zip(panels.T, comparison.variants, strict=True):
        _draw_column(column, comparison, variant, scales)
    for row, (label, *_), scale in zip(panels, rows, scales, strict=True):
        row[0].set_ylabel(label)
        for axes in row:
            scale.draw(axes)
    norms = panels[2, 0]  # has every line that the legend explains
    if any(entry.diverged for entry in comparison.entries):
        norms.plot([], [], "kx", label="diverged")
    _legend_below(figure, norms, 2 * columns)
    return figure


def draw_times(comparison: Comparison) -> "Figure":
    """Draw how a step's time is split between gradient and update, a bar an entry."""
    entries = comparison.entries
    figure = new_figure(5.5 * len(comparison.variants), 1 + 0.3 * len(entries))
    axes = figure.subplots()
    names = [f"{entry.contender.name} {NAMES[entry.batch_norm]}" for entry in entries]
    left = np.zeros(len(entries))
    for colour, label, seconds in (
        (COLOURS[5], "gradient (forward and backward)", "gradient_seconds"),
        (COLOURS[1], "update (optimizer)", "update_seconds"),
    ):
        width = np.array([_microseconds_a_step(entry, seconds) for entry in entries])
        axes.barh(names, width, left=left, color=colour, label=label)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel("µs a step, medians over the seeds")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_rates(comparison: Comparison) -> "Figure":
    """Draw what each learning rate that was tried came to, and which one was chosen."""
    figure = new_figure(5.5 * len(comparison.variants), 4.5)
    panels = figure.subplots(1, len(comparison.variants), sharex=True, sharey=True, squeeze=False)
    tried = [each for entry in comparison.entries for each in entry.tried]
    begins = [entry.results[0].curve[0].validation_loss for entry in comparison.entries]
    # The bars too, but not one that makes the rest small.
    shown = [
        (each.loss, max(each.loss - each.standard_error, each.loss / 10))
        for each in tried
        if each.loss is not None
    ]
    scale = LogScale(shown, top=GROWTH * max(begins, default=math.inf))
    for axes, variant in zip(panels[0], comparison.variants, strict=True):
        entries = [entry for entry in comparison.entries if entry.batch_norm == variant]
        for entry, style in zip(entries, styles(), strict=False):
            _draw_tried(axes, entry, scale, *style)
        scale.draw(axes)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.set_title(f"{comparison.recipe.table.name} {NAMES[variant]}")
        axes.set_xlabel("learning rate")
    panels[0, 0].set_ylabel("validation loss")
    panels[0, 0].plot([], [], "ko", ms=9, mfc="none", label="chosen")
    _legend_below(figure, panels[0, 0], 8)
    return figure


def _legend_below(figure: "Figure", axes: "Axes", columns: int) -> None:
    """Draw a legend whose lines and names belong to the curves that they explain."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )
    for handle, *shown in zip(handles, legend.get_lines(), legend.get_texts(), strict=True):
        for artist in shown:
            artist.set_gid(handle.get_gid())


def _draw_tried(axes: "Axes", entry: Entry, scale: LogScale, colour: str, dashes: str) -> None:
    """Draw the mean loss against the rate, with a standard error to each side."""
    tried = sorted(
        (each.lr, each.loss, each.standard_error) for each in entry.tried if each.loss is not None
    )
    rates, losses, errors = np.reshape(np.array(tried, dtype=float), (-1, 3)).T
    shown = scale.fit(losses)
    name = entry.contender.name
    (line,) = axes.plot(rates, shown, color=colour, linestyle=dashes, marker=".", label=name)
    ends = scale.fit(losses - errors), scale.fit(losses + errors)
    bars = axes.vlines(rates, *ends, color=colour, lw=1, alpha=0.6)
    chosen = rates == entry.contender.lr
    (ring,) = axes.plot(rates[chosen], shown[chosen], "o", ms=9, mfc="none", color=colour)
    for artist in (line, bars, ring):
        mark(artist, name)


def _microseconds_a_step(entry: Entry, name: str) -> float:
    """Return the median over the seeds."""
    ends = [result.curve[-1] for result in entry.results if result.curve[-1].step]
    return 1e6 * float(median([getattr(end, name) / end.step for end in ends] or [0]))


def _rows(recipe: Recipe) -> list[tuple[str, float, Quantity]]:
    """Return what each row of panels shows, and how high it is."""
    loss = loss_of(recipe.table)
    return [
        (f"training loss ({loss.name})", 3, lambda point: point.train_loss),
        (f"validation error (1 - {loss.score_name})", 3, lambda point: 1 - point.score),
        ("gradient norm (median)", 2, lambda point: point.grad_norm),
        ("learning rate", 1.5, lambda point: point.lr),
    ]


def _scale(comparison: Comparison, quantity: Quantity) -> LogScale:
    """Return the scale of a row of panels; who diverges leaves it at the top."""
    tables = [_table(entry, quantity) for entry in comparison.entries]
    firsts = [row[np.isfinite(row)][:1] for table in tables for row in table]
    begin = float(np.median(np.concatenate(firsts))) if any(map(len, firsts)) else math.inf
    # Bands, from the lowest seed on, are cut where they would make the lines small.
    means = np.concatenate([_mean(table) for table in tables])
    lowest = np.min(means[means > 0], initial=begin)
    return LogScale(tables, top=GROWTH * begin, bottom=max(lowest / 10, SMALLEST * begin))


def _draw_column(
    column: Sequence["Axes"], comparison: Comparison, variant: bool, scales: Sequence[LogScale]
) -> None:
    recipe = comparison.recipe
    entries = [entry for entry in comparison.entries if entry.batch_norm == variant]
    for axes, (_, _, quantity), scale in zip(column, _rows(recipe), scales, strict=True):
        for entry, style in zip(entries, styles(), strict=False):
            _draw_curve(axes, entry, quantity, comparison, scale, *style)
        axes.grid(alpha=0.3)
    if math.isfinite(limit := recipe.max_grad_norm):
        column[2].axhline(limit, color="grey", ls="--", lw=1, label=f"clipped to {limit:g}")
    column[0].set_title(f"{recipe.table.name} {NAMES[variant]}")
    column[-1].set_xlabel("seconds of training" if recipe.seconds else "step")


def _draw_curve(
    axes: "Axes",
    entry: Entry,
    quantity: Quantity,
    comparison: Comparison,
    scale: LogScale,
    colour: str,
    dashes: str,
) -> None:
    """Draw the mean over the seeds, and from the least to the most as a band."""
    seconds = comparison.recipe.seconds
    at = _table(entry, lambda point: point.seconds if seconds else point.step)
    values = _table(entry, quantity)
    for x, row, result in zip(at, values, entry.results, strict=True):
        if result.diverged_at is not None:
            last = len(result.curve) - 1
            end = np.minimum(scale.fit(row[last]), scale.top)
            axes.plot(x[last], end, "x", color=colour, clip_on=False)
    x = np.nanmax(at, axis=0)
    if seconds:
        x, values = _on_one_axis(at, values, seconds)
    drawn = np.isfinite(values).any(axis=0)
    x, values = x[drawn], values[:, drawn]
    label = _label(entry, comparison)
    (line,) = axes.plot(
        x,
        scale.fit(_mean(values)),
        label=label,
        linestyle=dashes,
        color=colour,
        zorder=2 if dashes == DASHES[0] else 3,
    )
    mark(line, label)
    if len(values) > 1 and drawn.any():
        low, high = scale.fit(np.nanmin(values, axis=0)), scale.fit(np.nanmax(values, axis=0))
        mark(axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0), label)


def _mean(values: Table) -> Table:
    """Return the mean over the seeds, infinite where the sum of finite values is."""
    with np.errstate(over="ignore"):
        mean: Table = np.nanmean(values[:, np.isfinite(values).any(axis=0)], axis=0)
    return mean


def _label(entry: Entry, comparison: Comparison) -> str:
    """Return the name, and the learning rate where both columns have the same."""
    name = entry.contender.name
    rates = {each.contender.lr for each in comparison.entries if each.contender.name == name}
    if len(rates) > 1 or "lr" in entry.contender.given:
        return name
    return f"{name}, lr {rates.pop():g}"


def _on_one_axis(at: Table, values: Table, end: float) -> tuple[Table, Table]:
    """Return common times, and the values that each run has there."""
    x = np.linspace(0, end, 200)
    rows = []
    for times, row in zip(at, values, strict=True):
        known = np.isfinite(row)
        none = np.full(len(x), np.nan)
        between = (times[known], row[known])
        rows.append(np.interp(x, *between, left=np.nan, right=np.nan) if known.any() else none)
    return x, np.array(rows)


def _table(entry: Entry, quantity: Quantity) -> Table:
    """Return a row a seed, a column an epoch; NaN where a run has no such number."""
    rows = [[quantity(point) for point in result.curve] for result in entry.results]
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table
