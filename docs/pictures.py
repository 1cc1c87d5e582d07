"""The pictures that neither a command nor a page's own code draws."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import onepass.init
import onepass.schedules
from onepass.lab._picture import COLOURS, new_figure
from onepass.lab.surface import SURFACES, Surface, Trajectory, draw, walkers
from onepass.lab.surface.drawing import Picture
from onepass.lab.surface.panels import grid_of, shades
from onepass.lab.surface.report import contest
from onepass.lab.surface.walking import LineSearcher
from onepass.line_search import backtracking, best_of
from onepass.optim import Optimizer, registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 300
GALLERY_STEPS = 100
THUMBNAIL = 2.4, 1.9  # inches

# How each schedule could stand in a user's code, and over how many steps to look at it.
SCHEDULES = {
    "constant(1.0)": 100,
    "step_decay(1.0, every=25)": 100,
    "piecewise(1.0, boundaries=(30, 80), values=(0.4, 0.1))": 100,
    "exponential(1.0, rate=0.03)": 100,
    "inverse_time(1.0, rate=0.1)": 100,
    "polynomial(1.0, steps=100, power=2.0)": 100,
    "cosine(1.0, steps=100, final=0.1)": 100,
    "cosine_restarts(1.0, steps=15, multiplier=2)": 100,
    "warmup(10, then=cosine(1.0, steps=90))": 100,
    "one_cycle(1.0, steps=100)": 100,
    "warmup_stable_decay(1.0, steps=100, warmup=10, decay=30)": 100,
    "join([constant(1.0), exponential(0.5, rate=0.05)], boundaries=[40])": 100,
    "scaled(cosine(1.0, steps=100), factor=0.5)": 100,
    "sutskever_momentum(0.99)": 20_000,
    "ReduceOnPlateau(1.0)": 100,
}


def optimizer(cls: type[Optimizer], surface: str, path: Path) -> None:
    """Draw the paths of a class, in all its forms that the course has, and plain descent's."""
    names = dict.fromkeys((*forms(cls), "SGD"))
    found = contest(SURFACES[surface], list(names), None, STEPS, None)
    Picture(found.surface, found.labels, found.searches, found.remarks).save(path)


def forms(cls: type[Optimizer]) -> list[str]:
    """Return the names of the walkers that step by this class."""
    found = []
    for name, walker in walkers().items():
        make = walker.make
        makes = (make.func, *make.args) if isinstance(make, partial) else (make,)
        if cls in makes:
            found.append(name)
    return found


def gallery(folder: Path) -> None:
    """Draw a small picture of each optimizer, schedule and surface, under its name."""
    for surface in SURFACES.values():
        _map(surface, {}, folder / f"{surface.name}.png")
    neuron = SURFACES["neuron"]
    for cls in registry.values():
        name, *_ = forms(cls)
        path = walkers()[name].descend(neuron, steps=GALLERY_STEPS)
        _map(neuron, {cls.__name__: path}, folder / f"{cls.__name__}.png")
    for code, steps in SCHEDULES.items():
        figure = new_figure(*THUMBNAIL)
        _draw_schedule(figure.subplots(), code, steps)
        figure.savefig(folder / f"{code.partition('(')[0]}.png")


def _map(surface: Surface, paths: Mapping[str, Trajectory], path: Path) -> None:
    """Draw a surface from above, as small as can be read."""
    figure = new_figure(*THUMBNAIL)
    axes = figure.subplots()
    x, y, loss = grid_of(surface, surface.window)
    lowest = max(float(surface.loss(surface.start)) / 1e3, 1e-6)
    levels = np.geomspace(lowest, loss.max(), 12)
    axes.contourf(x, y, loss, levels, norm="log", cmap=shades(), extend="both")
    axes.contour(x, y, loss, levels, colors="#5b6b7a", linewidths=0.5, alpha=0.6)
    for trajectory in paths.values():
        axes.plot(*trajectory.points.T, "-", color=COLOURS[0], lw=2)
        axes.plot(*trajectory.points[-1], "o", color=COLOURS[0], mec="white", ms=8)
    for best in surface.minima:
        axes.plot(*best, "*", mfc="none", mec="black", ms=14)
    axes.plot(*surface.start, "o", mfc="white", mec="black", ms=7)
    x_limits, y_limits = surface.window
    axes.set(xlim=x_limits, ylim=y_limits, xticks=(), yticks=())
    figure.savefig(path)


def line_searches(path: Path) -> None:
    """Draw two line searches beside steps of one size."""
    surface, steps = SURFACES["ravine"], 40
    paths = contest(surface, ["SGD"], None, steps, None).labels
    searches = {
        "best_of((0.01, 0.1, 1))": LineSearcher(lambda _: best_of((0.01, 0.1, 1))),
        "backtracking()": LineSearcher(lambda _: backtracking()),
    }
    for label, searcher in searches.items():
        paths[label] = searcher.descend(surface, steps=steps)
    draw(surface, paths, path)


def schedules(path: Path) -> None:
    """Draw every schedule."""
    columns = 3
    rows = -(-len(SCHEDULES) // columns)
    figure = new_figure(9, 1.8 * rows)
    grid = figure.subplots(rows, columns)
    for axes, (code, steps) in zip(grid.flat, SCHEDULES.items(), strict=False):
        _draw_schedule(axes, code, steps)
        title = textwrap.fill(code, 36, subsequent_indent="  ")
        axes.set_title(title, family="monospace", fontsize=8)
    for axes in grid.flat[len(SCHEDULES) :]:
        axes.remove()
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.savefig(path)


def _draw_schedule(axes: "Axes", code: str, steps: int) -> None:
    schedule = eval(code, vars(onepass.schedules).copy())
    axes.step(range(steps), _values(schedule, steps), where="post", color=COLOURS[0])
    axes.set_ylim(-0.05, 1.08)
    axes.grid(alpha=0.3)


def _values(schedule: Callable[[int], float], steps: int) -> list[float]:
    """Return a schedule's values; one that wants errors hears of an epoch every ten steps."""
    rng = np.random.default_rng(3)
    values = []
    for step in range(steps):
        if hasattr(schedule, "report") and step % 10 == 9:
            schedule.report(np.exp(-step / 40) * rng.uniform(0.5, 1.5))
        values.append(schedule(step))
    return values


def initialisers(path: Path) -> None:
    """Draw the spread of the activations through a deep network, for each initialiser."""
    layers, width = 20, 256
    scales = {
        name: function
        for name in onepass.init.__all__
        if "rng" in inspect.signature(function := getattr(onepass.init, name)).parameters
    }
    scales["normal, standard deviation 0.01"] = lambda shape, rng: rng.normal(0, 0.01, shape)
    figure = new_figure(10, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, activation) in zip(
        panels, {"ReLU": lambda z: np.maximum(z, 0), "tanh": np.tanh}.items(), strict=True
    ):
        for number, (name, make) in enumerate(scales.items()):
            rng = np.random.default_rng(0)
            x = rng.normal(size=(512, width))
            spread = []
            for _ in range(layers):
                x = activation(x @ make((width, width), rng))
                spread.append(np.sqrt(np.mean(x**2)))
            dashes = "--" if name.endswith("uniform") else "-"
            axes.plot(range(1, layers + 1), spread, dashes, color=COLOURS[number], label=name)
        axes.set(title=title, xlabel="layer", yscale="log", ylim=(1e-4, 3))
        axes.locator_params("x", integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("root mean square of the activations")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path)
