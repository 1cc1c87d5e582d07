"""The picture of a comparison: a bar for each contender, light and dark, readable on a phone."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from onepass.lab._picture import new_figure, save_png
from onepass.lab.bench.plan import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.8  # inches: at a phone's 360 pixels, letters of 9 points are 9 pixels high
DOTS_PER_INCH = 220
MOST_LOAD = 1.5
"""The load that the picture passes over; timing itself makes one of 1."""
LONGEST = 6
"""How many times the second longest bar the longest may be."""
ROOM = 1.75  # times the longest bar: what its label needs, too


class Theme(NamedTuple):
    """The colours of a picture."""

    background: str
    text: str
    faint: str
    ours: str
    others: str


THEMES = {
    "": Theme("#ffffff", "#1f2328", "#59636e", "#0072B2", "#c3c9d0"),
    "-dark": Theme("#0d1117", "#f0f6fc", "#9198a1", "#56B4E9", "#4a525c"),
}
"""By what the file's name ends in."""


def draw(rows: Sequence[Row], machine: Mapping[str, str], theme: Theme) -> "Figure":
    """Draw a line of panels for each thing that was timed, a panel for each way it was."""
    things = [(what, list(group)) for what, group in groupby(rows, lambda row: row.what)]
    heights = [0.55 + 0.2 * len(_names(group)) for _, group in things]
    figure = new_figure(WIDTH, sum(heights) + 0.95)
    figure.set_facecolor(theme.background)
    grid = figure.add_gridspec(len(things) + 1, 1, height_ratios=(0.45, *heights), hspace=0)
    title, *parts = (figure.add_subfigure(grid[line]) for line in range(len(things) + 1))
    title.suptitle("Time of one call (shorter is better)", color=theme.text, fontsize=10.5)
    for part, (what, group) in zip(parts, things, strict=True):
        _draw_thing(part, what, group, theme)
    figure.supxlabel(_note(machine), fontsize=7.5, color=theme.faint)
    return figure


def _note(machine: Mapping[str, str]) -> str:
    """Return where it was measured, and whether something else ran there."""
    threads = int(machine["threads"].split()[0])
    note = f"{machine['machine']}; {threads} thread{'s' * (threads > 1)}"
    load = machine.get("load", "0").split()[0]
    return note + (f"\nwhile other programs ran (load {load})" if float(load) > MOST_LOAD else "")


def _draw_thing(part: Any, what: str, rows: Sequence[Row], theme: Theme) -> None:
    part.set_facecolor(theme.background)
    part.suptitle(what, fontsize=9, color=theme.text, fontweight="bold")
    names = _names(rows)
    panels = part.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        _draw_bars(axes, row, names, theme)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.seconds))


def _draw_bars(axes: "Axes", row: Row, names: Sequence[str], theme: Theme) -> None:
    times = [median(row.seconds[name]) if name in row.seconds else 0.0 for name in names]
    colours = [theme.ours if name == "onepass" else theme.others for name in names]
    shown = _cut(times)
    axes.barh(names, shown, color=colours, height=0.72)
    for at, (name, time, end) in enumerate(zip(names, times, shown, strict=True)):
        if end < time:  # a gap says that it is longer than it is drawn
            for x in (0.84, 0.88):
                axes.plot([x * end, (x + 0.03) * end], [at + 0.4, at - 0.4], color=theme.background)
        axes.text(
            end + max(shown) * 0.03,
            at,
            duration(time) if time else "",
            va="center",
            fontsize=8.5,
            color=theme.text,
            fontweight="bold" if name == "onepass" else "normal",
        )
    axes.set_xlim(0, ROOM * max(shown))
    axes.set_facecolor(theme.background)
    axes.yaxis.set_inverted(True)
    axes.set_title(row.how, fontsize=9, color=theme.faint, loc="left", pad=3)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=theme.text)
    axes.spines[:].set_visible(False)


def _cut(times: Sequence[float]) -> list[float]:
    """Return how long the bars are: one that would make all others small is cut."""
    *_, second, longest = sorted((0.0, *times))
    limit = 1.4 * second if longest > LONGEST * second > 0 else longest
    return [min(time, limit) for time in times]


def duration(seconds: float) -> str:
    """Return a time in three digits, in the unit that suits it."""
    for unit, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if (value := float(f"{seconds / size:.3g}")) < 1000:
            return f"{value:g} {unit}"
    return f"{seconds:.3g} s"


def save(rows: Sequence[Row], machine: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the picture in each theme, and return where it is."""
    paths = []
    for suffix, theme in THEMES.items():
        paths.append(folder / f"speed{suffix}.png")
        save_png(draw(rows, machine, theme), paths[-1], dpi=DOTS_PER_INCH)
    return paths
