"""The picture: paths on the map and on the relief, losses against steps, shown up to any step."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.lab._picture import new_figure, save_png, styles
from onepass.lab._spelling import optimizer
from onepass.lab.surface.descent import Trajectory, descend
from onepass.lab.surface.panels import (
    Paths,
    Style,
    dots_say,
    draw_map,
    grid_of,
    is_inside,
    is_lost,
    label_curves,
    limit_of,
    scale_of,
    shades,
    steps_between_dots,
    until_lost,
    window_of,
)
from onepass.lab.surface.report import Contest, Entrant, entrants_of
from onepass.lab.surface.surfaces import Surface
from onepass.lab.surface.walking import walkers as walkers_by_name
from onepass.optim import Optimizer

HEIGHT = 6.4  # inches, and for each line of the legend or of the remarks
LINE = 0.2
LETTERS = 88  # of a line of the remarks


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
    remarks : sequence of str
        Sentences to stand below: what is to be seen.
    """

    def __init__(
        self,
        surface: Surface,
        paths: Mapping[str, Trajectory],
        searches: Mapping[str, Trajectory],
        remarks: Sequence[str] = (),
    ) -> None:
        self.surface = surface
        self.steps = max(len(path.losses) for path in paths.values()) - 1
        every = steps_between_dots(self.steps)
        said = fill(" ".join((surface.note, *remarks, dots_say(every))).strip(), LETTERS)
        lines = len(paths) // 4 + said.count("\n")
        self.figure = new_figure(11, HEIGHT + LINE * lines)
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
        self._paths = Paths(every)
        for (label, path), (colour, dashes) in zip(kept.items(), styles(), strict=False):
            style = label, colour, dashes
            self._paths.draw_on_map(self._map, path, self.window, style)
            self._draw_on_relief(path, style)
            self._paths.draw_curve(self._curves, path, scale, style)
        scale.draw(self._curves)
        lost = [label for label, path in kept.items() if is_lost(path, self.steps, limit)]
        self._paths.draw_legend(self.figure, self._curves, lost)
        self.figure.suptitle(surface.heading, fontsize=11)
        self._map.set_title(said, fontsize=8.5, color="0.25", loc="left")
        self.show(self.steps)

    def show(self, step: int) -> None:
        """Draw the paths up to this step."""
        self._paths.show(step)

    def frames(self, count: int) -> Iterator[int]:
        """Yield the steps to show: close together at first, far apart towards the end."""
        for time in np.linspace(0, 1, count):
            yield round(self.steps * time**2)

    def save(self, path: Path) -> None:
        """Write what is shown as a PNG file, atomically."""
        save_png(self.figure, path)

    def _draw_relief(self) -> None:
        x, y, loss = (each[::3, ::3] for each in grid_of(self.surface, self.window))
        self._relief.plot_surface(
            x, y, _height(loss), cmap=shades(), rstride=1, cstride=1, linewidth=0, antialiased=False
        )
        self._relief.set_title("relief: log(1 + loss)", fontsize=9, y=0.98)
        x_name, y_name = self.surface.axes
        x_limits, y_limits = self.window
        self._relief.set(xlim=x_limits, ylim=y_limits)
        self._relief.set_xlabel(x_name, labelpad=-4)
        self._relief.set_ylabel(y_name, labelpad=-4)
        self._relief.view_init(elev=40, azim=-60)
        self._relief.set_box_aspect((4, 4, 2.6), zoom=1.2)
        self._relief.locator_params(nbins=4)
        self._relief.tick_params(labelsize=7, pad=-2)

    def _draw_on_relief(self, path: Trajectory, style: Style) -> None:
        coordinates = np.vstack((path.points.T, _height(path.losses)))
        inside = is_inside(path.points, *np.transpose(self.window))
        coordinates[:, ~inside] = np.nan  # what leaves 3-D axes is not cut off
        self._paths.draw(self._relief, coordinates, style, dots=False)


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


def picture(
    surface: Surface,
    walkers: Iterable[str] | Mapping[str, Callable[[Array], Optimizer]],
    path: str | os.PathLike[str],
    *,
    start: npt.ArrayLike | None = None,
    steps: int = 500,
    lr: float | None = None,
) -> None:
    """Run optimizers down a surface, which may be your own, and draw their paths and losses.

    Parameters
    ----------
    surface : Surface
    walkers : iterable of str, or mapping
        Names of `walkers()`, with settings or without: ``"Adam"``, ``"SGD(lr=0.1, momentum=0.5)"``.
        Or for each label of the legend a function that is called with the parameters, an array of
        shape (2,), and returns the optimizer, as `descend` takes it.
    path : str or path
        The picture's, which is a PNG file.
    start : two finite numbers, optional
        The surface's own by default.
    steps : int >= 1
    lr : float, optional
        A rate for all names that have none behind them; by default the surface's two.

    Raises
    ------
    ValueError, TypeError
        ``<argument>: expected ..., got ...``, for a name that is unknown, a setting that its class
        refuses, a start that is no point or has no finite loss, or no walker at all.
    MissingExtraError
        Without matplotlib: ``pip install 'onepass[plot]'``.

    Examples
    --------
    >>> import tempfile
    >>> import onepass as op
    >>> bowl = op.surface.Surface(
    ...     name="bowl",
    ...     function=lambda x, y: x**2 + 3 * y**2,
    ...     slope=lambda x, y: (2 * x, 6 * y),
    ...     start=(-2.0, 1.0),
    ...     window=((-3.0, 3.0), (-2.0, 2.0)),
    ...     minima=((0.0, 0.0),),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     op.surface.picture(bowl, ["SGD(lr=0.1)", "SGD(lr=0.3)"], f"{folder}/bowl.png")
    """
    found = _contest(surface, walkers, start, steps, lr)
    if not found.entrants:
        raise ValueError(f"walkers: expected one name at least, got {walkers!r}")
    Picture(surface, found.labels, {}, found.remarks).save(Path(path))


def _contest(
    surface: Surface,
    walkers: Iterable[str] | Mapping[str, Callable[[Array], Optimizer]],
    start: npt.ArrayLike | None,
    steps: int,
    lr: float | None,
) -> Contest:
    if isinstance(walkers, Mapping):
        entrants = [
            Entrant(label, None, descend(surface, make, start, steps))
            for label, make in walkers.items()
        ]
        return Contest(surface, entrants, {}, steps)
    names = [walkers] if isinstance(walkers, str) else walkers
    return Contest(surface, entrants_of(surface, map(_known, names), start, steps, lr), {}, steps)


def _known(text: str) -> str:
    """Return a name as `walker` takes it."""
    try:
        return optimizer(walkers_by_name())(text)
    except ArgumentTypeError as error:
        raise ValueError(f"walkers: {error}") from None


def _height(loss: Array) -> Array:
    """Return how high to draw a loss: walls hide nothing, and a floor is as flat as it is."""
    return np.log1p(loss)
