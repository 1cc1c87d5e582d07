"""The page on which the paths grow: a picture of the surface, and a script that draws on it.

It stands alone in one file of about 100 KB, needs no network, and fits a phone.
"""

import json
from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepass._typing import Array
from onepass.lab._picture import LogScale, new_figure, styles
from onepass.lab.surface.panels import (
    Window,
    draw_map,
    is_lost,
    label_curves,
    limit_of,
    scale_of,
    until_lost,
    window_of,
)
from onepass.lab.surface.report import Contest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 7.4  # inches, for a phone held upright
DOTS_PER_INCH = 150
COLOURS = 96
UNITS = 4000
"""Into how many parts each side of a panel is divided: points are integers."""
FARTHEST = 10 * UNITS


def page(contest: Contest) -> str:
    """Return the page."""
    start = contest.entrants[0].path.points[0]
    window, limit = window_of(contest.surface, start), limit_of(contest.surface, start)
    lost = {label for label, path in contest.labels.items() if is_lost(path, contest.steps, limit)}
    kept = {label: until_lost(path, contest.steps, limit) for label, path in contest.labels.items()}
    scale = scale_of(kept.values(), contest.searches.values(), limit)
    figure, panels = _draw_background(contest, window, scale)
    ends = np.log10(panels[1].get_ylim())
    data = {
        "steps": contest.steps,
        "units": UNITS,
        "decades": [round(float(each), 4) for each in ends],
        "floor": round(float(np.log10(scale.low)), 4),
        "below": scale.below,
        "panels": [_box(figure, axes) for axes in panels],
        "paths": [
            {
                "label": label + (": diverges" if label in lost else ""),
                "colour": colour,
                "dashed": dashes != "-",
                "points": _differences(_in_units(path.points, np.array(window))),
                "losses": _differences(_in_units(np.log10(scale.fit(path.losses)), ends)),
            }
            for (label, path), (colour, dashes) in zip(kept.items(), styles(), strict=False)
        ],
    }
    said = [contest.surface.note, *contest.remarks]
    fields = {
        "TITLE": escape(f"onepass surface: {contest.surface.name}"),
        "HEADING": escape(contest.surface.title or contest.surface.name),
        "EQUATION": escape(contest.surface.equation),
        "NOTE": escape(" ".join(filter(None, said))),
        "BACKGROUND": _as_url(figure),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", r"\u003c"),
    }
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text


def _draw_background(
    contest: Contest, window: Window, scale: LogScale
) -> tuple["Figure", list["Axes"]]:
    """Draw the map, and below it empty axes for the losses."""
    figure = new_figure(WIDTH, HEIGHT)
    above, below = figure.subplots(2, 1, height_ratios=(2, 1))
    draw_map(above, contest.surface, window, contest.entrants[0].path.points[0])
    label_curves(below)
    below.set_xlim(0, contest.steps)
    for (label, tried), dashes in zip(contest.searches.items(), (":", "--"), strict=False):
        best = float(scale.fit(tried.losses.min()))
        below.axhline(best, color="grey", ls=dashes, lw=1, label=f"best of {label}")
    if contest.searches:
        figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    scale.draw(below)
    figure.canvas.draw()
    figure.set_layout_engine("none")
    return figure, [above, below]


def _box(figure: "Figure", axes: "Axes") -> list[float]:
    """Return a panel's left, top, width and height, as parts of the picture's."""
    box = axes.get_window_extent()
    width, height = figure.bbox.size
    parts = (box.x0 / width, 1 - box.y1 / height, box.width / width, box.height / height)
    return [round(float(part), 5) for part in parts]


def _in_units(values: Array, ends: Array) -> Array:
    """Return where values lie between the ends, in integers."""
    low, high = ends[..., 0], ends[..., 1]
    with np.errstate(over="ignore", invalid="ignore"):
        at = UNITS * (values - low) / (high - low)
    return np.rint(np.clip(np.nan_to_num(at), -FARTHEST, FARTHEST)).astype(int)


def _differences(values: Array) -> list[int]:
    """Return the first value, and what each of the others adds: short to write."""
    rows = np.atleast_2d(values.T).T
    changes = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), int))
    return [int(each) for each in changes.ravel()]


def _as_url(figure: "Figure") -> str:
    """Return the picture as it stands in the page."""
    from PIL import Image  # matplotlib needs it, so it comes with it

    pixels: Any = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    image = Image.fromarray(pixels[..., :3]).quantize(COLOURS, dither=Image.Dither.NONE)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
