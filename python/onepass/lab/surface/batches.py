"""The picture of mini-batches: the same optimizers side by side, a column for each batch size."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onepass.lab._picture import new_figure, save_png, styles
from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.panels import (
    Paths,
    dots_say,
    draw_map,
    is_lost,
    label_curves,
    limit_of,
    scale_of,
    steps_between_dots,
    until_lost,
    window_of,
)
from onepass.lab.surface.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_batches(surface: Surface, columns: Mapping[str, Mapping[str, Trajectory]]) -> "Figure":
    """Return a map above losses against steps for each title, of paths by their labels.

    All columns have one window, one scale of the losses, and the same labels.
    """
    every = [path for paths in columns.values() for path in paths.values()]
    start, steps = every[0].points[0], max(len(path.losses) for path in every) - 1
    window, limit = window_of(surface, start), limit_of(surface, start)
    scale = scale_of([until_lost(path, steps, limit) for path in every], [], limit)
    figure = new_figure(4 * len(columns), 6.4)
    panels = figure.subplots(
        2, len(columns), sharex="row", sharey="row", squeeze=False, height_ratios=(1.5, 1)
    )
    drawn, lost = Paths(steps_between_dots(steps)), set()
    for (title, paths), (above, below) in zip(columns.items(), panels.T, strict=True):
        draw_map(above, surface, window, start)
        label_curves(below)
        above.set_title(title)
        for (label, path), style in zip(paths.items(), styles(), strict=False):
            kept = until_lost(path, steps, limit)
            drawn.draw_on_map(above, kept, window, (label, *style))
            drawn.draw_curve(below, kept, scale, (label, *style))
            lost |= {label} if is_lost(path, steps, limit) else set()
        scale.draw(below)
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    drawn.draw_legend(figure, panels[1, 0], lost)
    figure.suptitle(f"{surface.heading}\n{dots_say(steps_between_dots(steps))}", fontsize=11)
    return figure


def save_batches(
    surface: Surface, columns: Mapping[str, Mapping[str, Trajectory]], path: Path
) -> None:
    """Write the picture as a PNG file, atomically."""
    save_png(draw_batches(surface, columns), path)
