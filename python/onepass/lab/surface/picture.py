"""The picture: paths on the map and on the relief, losses against steps; still and moving."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from onepass._files import write_atomically
from onepass._typing import Array
from onepass.lab._picture import COLOURS, new_figure, save_png, styles
from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.panels import (
    Paths,
    Style,
    draw_map,
    grid_of,
    is_inside,
    is_lost,
    label_curves,
    limit_of,
    scale_of,
    shades,
    until_lost,
    window_of,
)
from onepass.lab.surface.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

FRAMES = 60
MILLISECONDS = 80  # between two frames
MILLISECONDS_AT_THE_END = 2500
DOTS_PER_INCH = 100  # of an animation's frame


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
        start = next(iter(paths.values())).points[0]
        self.window = window_of(surface, start)
        limit = limit_of(surface, start)
        kept = {label: until_lost(path, self.steps, limit) for label, path in paths.items()}
        scale = scale_of(kept.values(), searches.values(), limit)
        draw_map(self._map, surface, self.window, start)
        self._draw_relief()
        label_curves(self._curves)
        for (label, tried), dashes in zip(searches.items(), (":", "--"), strict=False):
            best = float(scale.fit(tried.losses.min()))
            self._curves.axhline(best, color="grey", ls=dashes, lw=1.2, label=label)
        self._paths = Paths()
        for (label, path), (colour, dashes) in zip(kept.items(), styles(), strict=False):
            style = label, colour, dashes
            self._paths.draw_on_map(self._map, path, self.window, style)
            self._draw_on_relief(path, style)
            self._paths.draw_curve(self._curves, path, scale, style)
        scale.draw(self._curves)
        lost = [label for label, path in kept.items() if is_lost(path, self.steps, limit)]
        self._paths.draw_legend(self.figure, self._curves, lost)
        self.figure.suptitle(f"{surface.title}:  {surface.equation}", fontsize=11)
        self.show(self.steps)

    def show(self, step: int) -> None:
        """Draw the paths up to this step."""
        self._paths.show(step)

    def save(self, path: Path) -> None:
        """Write what is shown as a PNG file, atomically."""
        save_png(self.figure, path)

    def _draw_relief(self) -> None:
        x, y, loss = (each[::3, ::3] for each in grid_of(self.surface, self.window))
        self._relief.plot_surface(
            x,
            y,
            _height(loss),
            cmap=shades(),
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor="#5b6b7a50",
        )
        x_name, y_name = self.surface.axes
        x_limits, y_limits = self.window
        self._relief.set(xlim=x_limits, ylim=y_limits)
        self._relief.set_xlabel(x_name, labelpad=-4)
        self._relief.set_ylabel(y_name, labelpad=-4)
        self._relief.set_zlabel("log(1 + loss)", fontsize=8)
        self._relief.view_init(elev=40, azim=-60)
        self._relief.set_box_aspect((4, 4, 2.6), zoom=1.15)
        self._relief.locator_params(nbins=4)
        self._relief.tick_params(labelsize=7, pad=-2)

    def _draw_on_relief(self, path: Trajectory, style: Style) -> None:
        coordinates = np.vstack((path.points.T, _height(path.losses)))
        inside = is_inside(path.points, *np.transpose(self.window))
        coordinates[:, ~inside] = np.nan  # what leaves 3-D axes is not cut off
        self._paths.draw(self._relief, coordinates, style)

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


def draw(surface: Surface, paths: Mapping[str, Trajectory], path: str | os.PathLike[str]) -> None:
    """Draw paths on the map and on the relief of a surface, and their losses against the steps.

    Parameters
    ----------
    surface : Surface
    paths : mapping
        A `Trajectory` for each label of the legend, at least one.
    path : str or path
        The picture's, which is a PNG file.

    Raises
    ------
    MissingExtraError
        Without matplotlib: ``pip install 'onepass[plot]'``.

    Examples
    --------
    >>> import tempfile
    >>> import onepass as op
    >>> ravine = op.surface.SURFACES["ravine"]
    >>> paths = {
    ...     f"beta2 {beta2}": op.surface.descend(
    ...         ravine, lambda w, beta2=beta2: op.Adam(w, lr=0.2, betas=(0.9, beta2))
    ...     )
    ...     for beta2 in (0.9, 0.999)
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     op.surface.draw(ravine, paths, f"{folder}/betas.png")
    """
    Picture(surface, paths, {}).save(Path(path))


def _height(loss: Array) -> Array:
    """Return how high to draw a loss: walls hide nothing, and a floor is as flat as it is."""
    return np.log1p(loss)


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
