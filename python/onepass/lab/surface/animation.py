"""The whole descent as it grows: a picture file, or a page for the browser."""

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onepass._files import write_atomically
from onepass.lab._picture import COLOURS
from onepass.lab.surface.drawing import Picture
from onepass.lab.surface.page import page
from onepass.lab.surface.report import Contest

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 60
MILLISECONDS = 80  # between two frames
MILLISECONDS_AT_THE_END = 2500
DOTS_PER_INCH = 100  # of a frame


def animate(contest: Contest, path: Path, shown: Callable[[int], object]) -> None:
    """Write the paths as they grow, as a GIF or HTML file by the path's suffix, atomically.

    `shown` is told how many of the frames are done.
    """
    content = ANIMATIONS[path.suffix](contest, shown)
    write_atomically(path, lambda file: file.write(content), durable=False)


def _gif(contest: Contest, shown: Callable[[int], object]) -> bytes:
    picture = Picture(contest.surface, contest.labels, contest.searches, contest.remarks)
    return gif(picture, picture.frames(FRAMES), shown)


def _html(contest: Contest, shown: Callable[[int], object]) -> bytes:
    content = page(contest).encode()
    shown(FRAMES)
    return content


ANIMATIONS: Mapping[str, Callable[[Contest, Callable[[int], object]], bytes]] = {
    ".gif": _gif,
    ".html": _html,
}
"""What makes a file's content, by its suffix."""


def gif(picture: Picture, steps: Iterator[int], shown: Callable[[int], object]) -> bytes:
    """Return a GIF of the paths up to each of these steps, in the same colours throughout."""
    from PIL import Image  # matplotlib needs it, so it comes with it

    figure = picture.figure
    figure.set_dpi(DOTS_PER_INCH)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough, and nothing is to move
    images = []
    for number, step in enumerate(steps, 1):
        picture.show(step)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        images.append(Image.fromarray(pixels[..., :3]))
        shown(number)
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
