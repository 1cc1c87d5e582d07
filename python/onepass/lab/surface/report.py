"""What the command runs on a surface, and the table it prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onepass.lab._tables import Column
from onepass.lab._tables import print_table as print_rows
from onepass.lab.surface.descent import Trajectory, grid_search, random_search
from onepass.lab.surface.surfaces import Point, Surface
from onepass.lab.surface.walking import SEARCHERS, walkers

SHARE = 1e-3
SEED = 0
BATCH_CAPTION = (
    "Gradients of a batch are multiplied to be those of all rows on average; the loss is that of "
    "all rows."
)
CAPTION = (
    "The searches try one point a step, over [-6, 6] x [-6, 6]; their last loss is their best."
)


class Entrant(NamedTuple):
    """An optimizer or a line search, its learning rate, and its path."""

    name: str
    lr: float
    path: Trajectory


@dataclass(frozen=True)
class Contest:
    """The paths of several optimizers down one surface, beside what searching finds."""

    surface: Surface
    entrants: Sequence[Entrant]
    searches: Mapping[str, Trajectory]
    """The searches by name, each over as many points as the paths have steps; none of batches."""
    steps: int
    batch_size: int | None = None
    """How many rows of data a gradient is estimated from; None for all."""

    @property
    def goal(self) -> float:
        """The loss to get down to, a fixed share of the first one."""
        return SHARE * float(self.entrants[0].path.losses[0])

    @property
    def labels(self) -> dict[str, Trajectory]:
        """The paths by their labels in a legend."""
        return {f"{name}, lr {lr:g}": path for name, lr, path in self.entrants}

    @property
    def title(self) -> str:
        """What the gradients are of, for a picture."""
        if self.batch_size is None:
            return f"all {self.surface.rows} rows"
        return f"batch size {self.batch_size}"


def contest(
    surface: Surface,
    names: Sequence[str],
    start: Point | None,
    steps: int,
    lr: float | Sequence[float] | None,
    *,
    line_search: bool = False,
    seed: int = SEED,
) -> Contest:
    """Run these optimizers and the searches; at the surface's rates if none is given."""
    entrants = _entrants(surface, names, start, steps, lr)
    for name, searcher in SEARCHERS.items() if line_search else ():
        for rate in _rates(lr, searcher.lr(surface)):
            entrants.append(Entrant(name, rate, searcher.descend(surface, start, steps, rate)))
    searches = {
        "random search": random_search(surface, steps, np.random.default_rng(seed)),
        "grid search": grid_search(surface, steps),
    }
    return Contest(surface, entrants, searches, steps)


def contest_of_batches(
    surface: Surface,
    names: Sequence[str],
    start: Point | None,
    steps: int,
    lr: float | Sequence[float] | None,
    *,
    batch_size: int | None,
    seed: int = SEED,
) -> Contest:
    """Run these optimizers with the gradients of so many rows; None for all of them."""
    entrants = _entrants(surface, names, start, steps, lr, batch_size=batch_size, seed=seed)
    return Contest(surface, entrants, {}, steps, batch_size)


def _entrants(
    surface: Surface,
    names: Sequence[str],
    start: Point | None,
    steps: int,
    lr: float | Sequence[float] | None,
    **batches: Any,
) -> list[Entrant]:
    """Return the optimizers' paths."""
    known = walkers()
    return [
        Entrant(name, rate, known[name].descend(surface, start, steps, rate, **batches))
        for name in names
        for rate in _rates(lr, known[name].lr(surface))
    ]


def _rates(given: float | Sequence[float] | None, own: float) -> Sequence[float]:
    if given is None:
        return [own]
    return [given] if isinstance(given, float) else given


def print_table(contests: Sequence[Contest]) -> None:
    """Print one row for each path and search."""
    columns: list[Column] = [
        ("\nsurface", "left"),
        ("\noptimizer", "left"),
        ("\nlr", "right"),
        (f"steps to {SHARE:.1%}\nof the first loss", "right"),
        ("last\nloss", "right"),
    ]
    sections = [
        [(_name(each) if number == 0 else "", *row) for number, row in enumerate(_rows(each))]
        for each in contests
    ]
    caption = CAPTION if any(each.searches for each in contests) else BATCH_CAPTION
    print_rows((), columns, sections, caption)


def _name(contest: Contest) -> str:
    name = contest.surface.name
    return name if contest.searches else f"{name}, {contest.title}"


def _rows(contest: Contest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, lr, path in contest.entrants:
        diverged = len(path.losses) <= contest.steps
        last = "diverged" if diverged else f"{path.losses[-1]:.2g}"
        rows.append((name, f"{lr:g}", _steps(path, contest.goal), last))
    for name, tried in contest.searches.items():
        rows.append((name, "", _steps(tried, contest.goal), f"{tried.losses.min():.2g}"))
    return rows


def _steps(path: Trajectory, goal: float) -> str:
    steps = path.steps_to(goal)
    return "-" if steps is None else f"{steps:,}"
