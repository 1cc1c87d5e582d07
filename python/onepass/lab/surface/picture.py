"""The picture: paths on the map and on the relief, losses against steps; still and moving."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from onepass._files import write_atomically
from onepass._typing import Array
from onepass.lab._picture import COLOURS, DASHES, LogScale, new_figure, save_png, styles
from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

FRAMES = 60
MILLISECONDS = 80  # between two frames
MILLISECONDS_AT_THE_END = 2500
DOTS_PER_INCH = 100  # of an animation's frame

GRID = 181
LEVELS = 22
SHADES = ("#8fb4d9", "#cfe0ee", "#f7f5ee", "#f3e3c3", "#e8cc98")  # from the valley up
LOWEST = 1e-12  # the smallest loss that is drawn as it is
HIGHEST = 1e300  # the largest such loss
GROWTH = 1e3  # times the first loss: a path beyond is lost
REACH = 1e3  # times the window: lines are drawn up to there
MARGIN = 0.06  # part of the window beside a start that it grows for


class Picture:
    """A surface with its paths, shown up to any step.

    The window grows to show the start. A path that ends with a loss many times the first one, or
    with one that is not finite, is shown up to where its loss is too large, and does not make the
    others small.

    Parameters
    ----------
    surface : Surface
    paths : mapping
        A descent's path for each label of the legend.
    searches : mapping
        The same for searches, drawn as the best loss they found.
    """

    def __init__(
        self, surface: Surface, paths: Mapping[str, Trajectory], searches: Mapping[str, Trajectory]
    ) -> None:
        self.surface = surface
        self.steps = max(len(path.losses) for path in paths.values()) - 1
        self.figure = new_figure(11, 6.4)
        grid = self.figure.add_gridspec(2, 2, height_ratios=(1.5, 1))
        self._map = self.figure.add_subplot(grid[:, 0])
        self._relief: Any = self.figure.add_subplot(  # Any: Axes3D's annotations have gaps
            grid[0, 1], projection="3d", computed_zorder=False
        )
        self._curves = self.figure.add_subplot(grid[1, 1])
        self._start = next(iter(paths.values())).points[0]
        self.window = _window(surface, self._start)
        limit = GROWTH * max(float(surface.loss(at)) for at in (self._start, surface.start))
        kept = {label: _until_lost(path, self.steps, limit) for label, path in paths.items()}
        self._scale = LogScale(
            [*(p.losses for p in kept.values()), *(t.losses.min() for t in searches.values())],
            top=limit,
            bottom=LOWEST,
        )
        self._draw_surface()
        self._draw_searches(searches)
        self._drawn: list[tuple[Any, Any, Array]] = []  # a line, the dot at its end, all points
        self._exits: list[tuple[Any, int]] = []  # where a path leaves a panel, and after which step
        for (label, path), style in zip(kept.items(), styles(), strict=False):
            self._draw_path(label, path, *style)
        self._scale.draw(self._curves)
        handles, labels = self._curves.get_legend_handles_labels()
        lost = {
            label
            for label, path in kept.items()
            if len(path.losses) <= self.steps or path.losses[-1] > limit
        }
        labels = [f"{label}: diverges" if label in lost else label for label in labels]
        if self._exits:
            handles += self._curves.plot([], [], "X", color="grey", mec="white", ms=9)
            labels.append("leaves the picture")
        columns = min(5, 130 // (max(map(len, labels)) + 6))
        legend = partial(self.figure.legend, handles, labels, ncols=columns, frameon=False)
        legend(loc="outside lower center")
        self.figure.suptitle(f"{surface.title}:  {surface.equation}", fontsize=11)
        self.show(self.steps)

    def show(self, step: int) -> None:
        """Draw the paths up to this step."""
        for line, end, coordinates in self._drawn:
            seen = coordinates[:, : step + 1]
            _place(line, seen)
            _place(end, seen[:, -1:])
        for mark, last in self._exits:
            mark.set_visible(step > last)

    def save(self, path: Path) -> None:
        """Write what is shown as a PNG file, atomically."""
        save_png(self.figure, path)

    def _draw_surface(self) -> None:
        from matplotlib.colors import LinearSegmentedColormap, LogNorm

        (x_low, x_high), (y_low, y_high) = self.window
        x, y = np.meshgrid(np.linspace(x_low, x_high, GRID), np.linspace(y_low, y_high, GRID))
        with np.errstate(over="ignore", invalid="ignore"):  # the corners of a window that has grown
            loss = np.nan_to_num(self.surface.loss(np.stack((x, y), axis=-1)), nan=HIGHEST)
        loss = np.minimum(loss, HIGHEST)
        lowest = self.surface.loss(self.surface.start) / 1e3
        levels = np.geomspace(lowest, loss.max(), LEVELS)
        shades = LinearSegmentedColormap.from_list("valley", SHADES)
        norm = LogNorm(levels[0], levels[-1])
        visible = np.maximum(loss, LOWEST)
        self._map.contourf(x, y, visible, levels, cmap=shades, norm=norm, extend="min")
        self._map.contour(x, y, loss, levels, colors="#5b6b7a", linewidths=0.4, alpha=0.6)
        every = slice(None, None, 3)
        self._relief.plot_surface(
            x[every, every],
            y[every, every],
            _height(loss)[every, every],
            cmap=shades,
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor="#5b6b7a50",
        )
        for x_best, y_best in self.surface.minima:
            self._map.plot(x_best, y_best, "*", mfc="none", mec="black", ms=13, zorder=6)
        self._map.plot(*self._start, "o", mfc="white", mec="black", ms=6, zorder=6)
        self._label()

    def _label(self) -> None:
        x_name, y_name = self.surface.axes
        x_limits, y_limits = self.window
        self._map.set(xlabel=x_name, ylabel=y_name, xlim=x_limits, ylim=y_limits)
        self._relief.set(xlim=x_limits, ylim=y_limits)
        self._relief.set_xlabel(x_name, labelpad=-4)
        self._relief.set_ylabel(y_name, labelpad=-4)
        self._relief.set_zlabel("log(1 + loss)", fontsize=8)
        self._relief.view_init(elev=40, azim=-60)
        self._relief.set_box_aspect((4, 4, 2.6), zoom=1.15)
        self._relief.locator_params(nbins=4)
        self._relief.tick_params(labelsize=7, pad=-2)
        self._curves.set(xlabel="step", ylabel="loss")
        self._curves.margins(x=0.02)
        self._curves.grid(alpha=0.3)
        self._curves.locator_params("x", integer=True)

    def _draw_searches(self, searches: Mapping[str, Trajectory]) -> None:
        for (label, tried), dashes in zip(searches.items(), (":", "--"), strict=True):
            best = float(self._scale.fit(tried.losses.min()))
            self._curves.axhline(best, color="grey", ls=dashes, lw=1.2, label=label)

    def _draw_path(self, label: str, path: Trajectory, colour: str, dashes: str) -> None:
        style: dict[str, Any] = {"color": colour, "ls": dashes, "lw": 1.3}
        above = dashes != DASHES[0]
        dot: dict[str, Any] = {"color": colour, "marker": "o", "ms": 5, "mec": "white", "mew": 0.6}
        relief = np.vstack((path.points.T, _height(path.losses)))
        box = np.transpose(self.window)
        points = _within_reach(path.points, *box)
        relief[:, ~_is_inside(path.points, *box)] = np.nan  # what leaves 3-D axes is not cut off
        curve: Array = np.vstack((np.arange(len(path.losses)), self._scale.fit(path.losses)))
        panels = ((self._map, points.T), (self._relief, relief), (self._curves, curve))
        for axes, coordinates in panels:
            (line,) = axes.plot(*coordinates, **style, zorder=4 + above, label=label)
            (end,) = axes.plot(*coordinates[:, -1:], **dot, zorder=6)
            self._drawn.append((line, end, coordinates))
        self._mark_exit(self._map, _exit(points, *box), colour)
        in_logs = np.stack((curve[0], np.log(curve[1])), axis=-1)  # as straight as it is drawn
        top = np.array((math.inf, math.log(self._scale.top)))
        if (found := _exit(in_logs, np.full(2, -math.inf), top)) is not None:
            (step, loss), last = found
            self._mark_exit(self._curves, (np.array((step, math.exp(loss))), last), colour)

    def _mark_exit(self, axes: Any, found: tuple[Array, int] | None, colour: str) -> None:
        if found is not None:
            point, last = found
            style: dict[str, Any] = {"color": colour, "mec": "white", "mew": 0.6, "zorder": 7}
            (mark,) = axes.plot(*point, "X", clip_on=False, **style)
            self._exits.append((mark, last))

    def animate(self, path: Path, shown: Callable[[int], object]) -> None:
        """Write the whole descent as a GIF or HTML file, by the path's suffix, atomically.

        `shown` is told after each frame how many are done.
        """
        self.figure.set_dpi(DOTS_PER_INCH)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")  # once is enough, and nothing is to move
        content = ANIMATIONS[path.suffix](self.figure, self._frames(shown))
        write_atomically(path, lambda file: file.write(content), durable=False)

    def _frames(self, shown: Callable[[int], object]) -> Iterator[None]:
        """Show one frame after the other: small steps at first, long ones towards the end."""
        for number, time in enumerate(np.linspace(0, 1, FRAMES), 1):
            self.show(round(self.steps * time**2))
            yield
            shown(number)


def _is_inside(points: Array, lows: Array, highs: Array) -> Any:
    return ((lows <= points) & (points <= highs)).all(axis=-1)


def _within_reach(points: Array, lows: Array, highs: Array) -> Array:
    """Return the points, after moving those that are very far from a box towards it.

    Dashes on the whole of a line of 1e300 would take for ever.
    """
    middle, size = (lows + highs) / 2, highs - lows
    distance = np.abs((points - middle) / size).max(axis=-1, keepdims=True)
    near = middle + (points - middle) * (REACH / np.maximum(distance, REACH))
    return np.where(distance > REACH, near, points)


def _window(surface: Surface, start: Array) -> tuple[tuple[float, float], ...]:
    """Return the surface's window, grown to hold the start and a margin beside it."""
    window = []
    for (low, high), at in zip(surface.window, start.tolist(), strict=True):
        new_low, new_high = min(low, at), max(high, at)
        margin = MARGIN * (new_high - new_low)
        window.append(
            (low if new_low == low else at - margin, high if new_high == high else at + margin)
        )
    return tuple(window)


def _until_lost(path: Trajectory, steps: int, limit: float) -> Trajectory:
    """Return the path up to its first loss above the limit, if it does not come back for good."""
    if len(path.losses) > steps and path.losses[-1] <= limit:
        return path
    beyond = np.flatnonzero(path.losses > limit)
    end = beyond[0] + 1 if beyond.size else len(path.losses)
    return Trajectory(path.points[:end], path.losses[:end])


def _exit(points: Array, lows: Array, highs: Array) -> tuple[Array, int] | None:
    """Return where a path leaves a box for good, and its last step inside; None if it stays."""
    inside = _is_inside(points, lows, highs)
    if inside[-1] or not inside.any():
        return None
    last = int(np.flatnonzero(inside)[-1])
    begin, way = points[last], points[last + 1] - points[last]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(
            way > 0, (highs - begin) / way, np.where(way < 0, (lows - begin) / way, 1)
        )
    return begin + shares.min() * way, last


def _height(loss: Array) -> Array:
    """Return how high to draw a loss: walls hide nothing, and a floor is as flat as it is."""
    return np.log1p(loss)


def _place(artist: Any, coordinates: Array) -> None:
    if len(coordinates) == 3:
        artist.set_data_3d(*coordinates)
    else:
        artist.set_data(*coordinates)


def _gif(figure: "Figure", frames: Iterator[None]) -> bytes:
    """Return a GIF, in the same colours from frame to frame."""
    from PIL import Image  # matplotlib needs it, so it comes with it

    images = []
    for _ in frames:
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        images.append(Image.fromarray(pixels[..., :3]))
    first, *rest = _in_one_palette(images)
    file = BytesIO()
    durations = [MILLISECONDS] * len(rest) + [MILLISECONDS_AT_THE_END]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return file.getvalue()


def _in_one_palette(images: "list[Image.Image]") -> "list[Image.Image]":
    """Return the images in 256 colours: the paths' own, and others for shades and edges."""
    from PIL import Image

    colours = [*bytes.fromhex("".join(COLOURS).replace("#", ""))]
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE):
        colours += images[-1].quantize(124, method).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _html(figure: "Figure", frames: Iterator[None]) -> bytes:
    """Return matplotlib's page with buttons, made to need no network."""
    from matplotlib.animation import HTMLWriter

    writer: Any = HTMLWriter(  # Any: not all of it is annotated
        1000 // MILLISECONDS, embed_frames=True, embed_limit=100, default_mode="once"
    )
    writer.frame_format = "jpeg"
    with TemporaryDirectory() as folder:
        path = Path(folder, "animation.html")
        with writer.saving(figure, str(path), DOTS_PER_INCH):
            for _ in frames:
                writer.grab_frame(pil_kwargs={"quality": 85, "subsampling": 0})
        page = path.read_text(encoding="utf-8")
    return re.sub("<link[^>]*>", f"<style>{_SIGNS}</style>", page, count=1).encode()


ANIMATIONS: Mapping[str, Callable[["Figure", Iterator[None]], bytes]] = {
    ".gif": _gif,
    ".html": _html,
}
"""What makes a file's content, by its suffix."""

# matplotlib's page takes the signs on its buttons from a font on another server.
_SIGNS = (
    ".fa { font-style: normal } .fa-flip-horizontal { display: inline-block; rotate: y 180deg }"
    + "".join(
        f".fa-{name}::before {{ content: '{sign}' }}"
        for name, sign in {
            "minus": "-",
            "plus": "+",
            "fast-backward": "|\u25c0",
            "step-backward": "\u25c0|",
            "play": "\u25b6",
            "pause": "||",
            "step-forward": "|\u25b6",
            "fast-forward": "\u25b6|",
        }.items()
    )
)
