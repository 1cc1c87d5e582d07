"""The panels that pictures of surfaces are made of: a map, losses against steps, paths on both."""

import math
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onepass._typing import Array
from onepass.lab._picture import DASHES, LogScale
from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 301
LEVELS = 22
SHADES = ("#8fb4d9", "#cfe0ee", "#f7f5ee", "#f3e3c3", "#e8cc98")  # from the valley up
LOWEST = 1e-12  # the smallest loss that is drawn as it is
HIGHEST = 1e300  # the largest such loss
DOTS = 100  # on a path, at most
LONGEST = 3  # times its width: how high a map is that is true to scale
GROWTH = 1e3  # times the first loss: a path beyond is lost
REACH = 1e3  # times the window: lines are drawn up to there
MARGIN = 0.06  # part of the window beside a start that it grows for

Window: TypeAlias = tuple[tuple[float, float], ...]
"""What part of the plane is shown: low and high of each parameter."""
Style: TypeAlias = tuple[str, str, str]
"""The label, the colour and the dashes of a path."""


def window_of(surface: Surface, start: Array) -> Window:
    """Return the surface's window, grown to hold the start and a margin beside it."""
    window = []
    for (low, high), at in zip(surface.window, start.tolist(), strict=True):
        new_low, new_high = min(low, at), max(high, at)
        margin = MARGIN * (new_high - new_low)
        window.append(
            (low if new_low == low else at - margin, high if new_high == high else at + margin)
        )
    return tuple(window)


def limit_of(surface: Surface, start: Array) -> float:
    """Return the loss beyond which a path is lost."""
    return GROWTH * max(float(surface.loss(at)) for at in (start, surface.start))


def until_lost(path: Trajectory, steps: int, limit: float) -> Trajectory:
    """Return the path up to its first loss above the limit, if it does not come back for good."""
    if not is_lost(path, steps, limit):
        return path
    beyond = np.flatnonzero(path.losses > limit)
    end = beyond[0] + 1 if beyond.size else len(path.losses)
    return Trajectory(path.points[:end], path.losses[:end])


def is_lost(path: Trajectory, steps: int, limit: float) -> bool:
    """Return whether a path ends too early, or with a loss above the limit."""
    return len(path.losses) <= steps or bool(path.losses[-1] > limit)


def scale_of(paths: Iterable[Trajectory], searches: Iterable[Trajectory], limit: float) -> LogScale:
    """Return the scale that losses of paths, and the best ones of searches, are drawn on."""
    losses = [*(path.losses for path in paths), *(tried.losses.min() for tried in searches)]
    return LogScale(losses, top=limit, bottom=LOWEST)


def grid_of(surface: Surface, window: Window) -> tuple[Array, Array, Array]:
    """Return points of a window and the loss there: three arrays of one shape."""
    (x_low, x_high), (y_low, y_high) = window
    x, y = np.meshgrid(np.linspace(x_low, x_high, GRID), np.linspace(y_low, y_high, GRID))
    with np.errstate(over="ignore", invalid="ignore"):  # the corners of a window that has grown
        loss = np.nan_to_num(surface.loss(np.stack((x, y), axis=-1)), nan=HIGHEST)
    return x, y, np.minimum(loss, HIGHEST)


def shades() -> Any:
    """Return the colours of losses, from the valley up."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("valley", SHADES)


def draw_map(axes: "Axes", surface: Surface, window: Window, start: Array) -> None:
    """Draw a surface from above, with its minima and the start."""
    from matplotlib.colors import LogNorm

    x, y, loss = grid_of(surface, window)
    lowest = surface.loss(surface.start) / 1e3
    levels = np.geomspace(lowest, loss.max(), LEVELS)
    norm = LogNorm(levels[0], levels[-1])
    visible = np.maximum(loss, LOWEST)
    axes.contourf(x, y, visible, levels, cmap=shades(), norm=norm, extend="min")
    axes.contour(x, y, loss, levels, colors="#5b6b7a", linewidths=0.4, alpha=0.6)
    _label_contours(axes, x, y, loss, float(lowest))
    for x_best, y_best in surface.minima:
        axes.plot(x_best, y_best, "*", mfc="none", mec="black", ms=13, zorder=6)
    axes.plot(*start, "o", mfc="white", mec="black", ms=6, zorder=6)
    x_limits, y_limits = window
    x_name, y_name = surface.axes
    axes.set(xlabel=x_name, ylabel=y_name, xlim=x_limits, ylim=y_limits)
    width, height = (high - low for low, high in window)
    if max(width, height) <= LONGEST * min(width, height):
        axes.set_aspect("equal")  # so that a steep way looks as steep as it is


def _label_contours(axes: "Axes", x: Array, y: Array, loss: Array, lowest: float) -> None:
    """Draw the lines of 1, 10, 100 and so on with their numbers, of each second where many."""
    low, high = (math.log10(each) for each in (max(lowest, LOWEST), min(loss.max(), HIGHEST)))
    powers = np.arange(math.ceil(low), math.floor(high) + 1)
    powers = powers[:: 1 + len(powers) // 6]
    if len(powers):
        lines = axes.contour(x, y, loss, 10.0**powers, colors="#42505d", linewidths=0.7, alpha=0.8)
        axes.clabel(lines, fmt="%g", fontsize=7)


def steps_between_dots(steps: int) -> int:
    """Return after how many steps there is a dot on each path: 1, 2 or 5 times a power of ten."""
    least = max(steps / DOTS, 1)
    power: int = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def dots_say(every: int) -> str:
    """Return what the dots mean."""
    return "A dot on the map is a step." if every == 1 else f"A dot on the map: {every:,} steps."


def label_curves(axes: "Axes") -> None:
    """Name the axes of losses against steps."""
    axes.set(xlabel="step", ylabel="loss")
    axes.margins(x=0.02)
    axes.grid(alpha=0.3)
    axes.locator_params("x", integer=True)


class Paths:
    """Paths on the panels of a picture, shown up to any step."""

    def __init__(self, every: int = 1) -> None:
        self._every = every
        """After how many steps there is a dot on the map."""
        self._drawn: list[tuple[Any, Any, Array]] = []  # a line, the dot at its end, all points
        self._exits: list[tuple[Any, int]] = []  # where a path leaves a panel, and after which step

    def draw(self, axes: Any, coordinates: Array, style: Style, *, dots: bool) -> None:
        """Draw a line with a dot at its end, of two or three rows of coordinates."""
        label, colour, dashes = style
        marks = {"marker": "o", "ms": 3, "mew": 0, "markevery": self._every} if dots else {}
        (line,) = axes.plot(
            *coordinates,
            color=colour,
            ls=dashes,
            lw=1.3,
            zorder=4 + (dashes != DASHES[0]),
            label=label,
            **marks,
        )
        (end,) = axes.plot(
            *coordinates[:, -1:], color=colour, marker="o", ms=5, mec="white", mew=0.6, zorder=6
        )
        self._drawn.append((line, end, coordinates))

    def draw_on_map(self, axes: "Axes", path: Trajectory, window: Window, style: Style) -> None:
        """Draw a path, with a cross where it leaves the map for good."""
        box = np.transpose(window)
        points = _within_reach(path.points, *box)
        self.draw(axes, points.T, style, dots=True)
        self._mark_exit(axes, _exit(points, *box), style)

    def draw_curve(self, axes: "Axes", path: Trajectory, scale: LogScale, style: Style) -> None:
        """Draw its losses against the steps, with a cross where they leave through the top."""
        curve: Array = np.vstack((np.arange(len(path.losses)), scale.fit(path.losses)))
        self.draw(axes, curve, style, dots=False)
        in_logs = np.stack((curve[0], np.log(curve[1])), axis=-1)  # as straight as it is drawn
        top = np.array((math.inf, math.log(scale.top)))
        if (found := _exit(in_logs, np.full(2, -math.inf), top)) is not None:
            (step, loss), last = found
            self._mark_exit(axes, (np.array((step, math.exp(loss))), last), style)

    def _mark_exit(self, axes: Any, found: tuple[Array, int] | None, style: Style) -> None:
        if found is not None:
            point, last = found
            (mark,) = axes.plot(
                *point, "X", color=style[1], mec="white", mew=0.6, zorder=7, clip_on=False
            )
            self._exits.append((mark, last))

    def show(self, step: int) -> None:
        """Show the paths up to this step."""
        for line, end, coordinates in self._drawn:
            seen = coordinates[:, : step + 1]
            _place(line, seen)
            _place(end, seen[:, -1:])
        for mark, last in self._exits:
            mark.set_visible(step > last)

    def draw_legend(self, figure: "Figure", curves: "Axes", lost: Collection[str]) -> None:
        """Draw the legend of all panels, where `lost` are the labels of paths that diverge."""
        handles, labels = curves.get_legend_handles_labels()
        labels = [f"{label}: diverges" if label in lost else label for label in labels]
        if self._exits:
            handles += curves.plot([], [], "X", color="grey", mec="white", ms=9)
            labels.append("leaves the picture")
        columns = min(5, 130 // (max(map(len, labels)) + 6))
        legend = partial(figure.legend, handles, labels, ncols=columns, frameon=False)
        legend(loc="outside lower center")


def is_inside(points: Array, lows: Array, highs: Array) -> Any:
    """Return which points lie in a box."""
    return ((lows <= points) & (points <= highs)).all(axis=-1)


def _within_reach(points: Array, lows: Array, highs: Array) -> Array:
    """Return the points, after moving those that are very far from a box towards it.

    Dashes on the whole of a line of 1e300 would take for ever.
    """
    middle, size = (lows + highs) / 2, highs - lows
    distance = np.abs((points - middle) / size).max(axis=-1, keepdims=True)
    near = middle + (points - middle) * (REACH / np.maximum(distance, REACH))
    return np.where(distance > REACH, near, points)


def _exit(points: Array, lows: Array, highs: Array) -> tuple[Array, int] | None:
    """Return where a path leaves a box for good, and its last step inside; None if it stays."""
    inside = is_inside(points, lows, highs)
    if inside[-1] or not inside.any():
        return None
    last = int(np.flatnonzero(inside)[-1])
    begin, way = points[last], points[last + 1] - points[last]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(
            way > 0, (highs - begin) / way, np.where(way < 0, (lows - begin) / way, 1)
        )
    return begin + shares.min() * way, last


def _place(artist: Any, coordinates: Array) -> None:
    if len(coordinates) == 3:
        artist.set_data_3d(*coordinates)
    else:
        artist.set_data(*coordinates)
