"""What the command runs on a surface, and the table it prints."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onepass.lab._arguments import SEED
from onepass.lab._spelling import spelt
from onepass.lab._tables import Column
from onepass.lab._tables import print_table as print_rows
from onepass.lab.surface.descent import Trajectory, grid_search, random_search
from onepass.lab.surface.surfaces import Point, Surface
from onepass.lab.surface.walking import SEARCHERS, walker

SHARE = 1e-3
LAST = 20
"""From how many of its last steps a path is judged to be restless ..."""
RESTLESS = 1e-3
"""... and how long they are at least, as a part of the way."""
MOST_NAMES = 5
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
    lr: float | None
    """None where its maker keeps it."""
    path: Trajectory
    decays: bool = False
    """Whether it has weight decay."""

    @property
    def label(self) -> str:
        """What a legend calls it."""
        if self.lr is None or "lr" in spelt(self.name).settings:
            return self.name
        return f"{self.name}, lr {self.lr:g}"


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
        return {each.label: each.path for each in self.entrants}

    @property
    def remarks(self) -> list[str]:
        """Sentences on what a reader may wonder about in the picture."""
        restless = [each.label for each in self.entrants if _is_restless(each.path, self.steps)]
        decayed = [each.label for each in self.entrants if each.decays]
        said = []
        if restless:
            said.append(
                f"At the end these still step to and fro, as their rates are constant: "
                f"{_some(restless)}."
            )
        if decayed and any(any(at) for at in self.surface.minima):
            said.append(f"Weight decay draws these towards (0, 0): {_some(decayed)}.")
        return said

    @property
    def title(self) -> str:
        """What the gradients are of, for a picture."""
        if self.batch_size is None:
            return f"all {self.surface.rows} rows"
        return f"batch size {self.batch_size}"


def _is_restless(path: Trajectory, steps: int) -> bool:
    """Return whether a path ends with steps that turn back, and become no shorter."""
    last = np.diff(path.points, axis=0)[-LAST:]
    if len(path.losses) <= steps or len(last) < LAST:
        return False
    lengths = np.linalg.norm(last, axis=1)
    turns = (last[1:] * last[:-1]).sum(axis=1) < 0
    return bool(
        turns.mean() > 0.3 and lengths.mean() > RESTLESS * np.ptp(path.points, axis=0).max()
    )


def _some(labels: Sequence[str]) -> str:
    """Return the first of these labels, and how many more there are."""
    more = len(labels) - MOST_NAMES
    return ", ".join(labels[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


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
    entrants = entrants_of(surface, names, start, steps, lr)
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
    entrants = entrants_of(surface, names, start, steps, lr, batch_size=batch_size, seed=seed)
    return Contest(surface, entrants, {}, steps, batch_size)


def entrants_of(
    surface: Surface,
    names: Iterable[str],
    start: npt.ArrayLike | None,
    steps: int,
    lr: float | Sequence[float] | None,
    **batches: Any,
) -> list[Entrant]:
    """Return the optimizers' paths."""
    entrants = []
    for name in names:
        who, own = walker(name)
        for rate in _rates(lr if own is None else own, who.lr(surface)):
            path = who.descend(surface, start, steps, rate, **batches)
            entrants.append(Entrant(name, rate, path, who.decays))
    return entrants


def _rates(given: float | Sequence[float] | None, own: float) -> Sequence[float]:
    if given is None:
        return [own]
    return given if isinstance(given, Sequence) else [float(given)]


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
    print_rows((), columns, sections, caption, keys=3)


def _name(contest: Contest) -> str:
    name = contest.surface.name
    return name if contest.searches else f"{name}, {contest.title}"


def _rows(contest: Contest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, lr, path, _ in contest.entrants:
        diverged = len(path.losses) <= contest.steps
        last = "diverged" if diverged else f"{path.losses[-1]:.2g}"
        rows.append((name, f"{lr or 0:g}", _steps(path, contest.goal), last))
    for name, tried in contest.searches.items():
        rows.append((name, "", _steps(tried, contest.goal), f"{tried.losses.min():.2g}"))
    return rows


def _steps(path: Trajectory, goal: float) -> str:
    steps = path.steps_to(goal)
    return "-" if steps is None else f"{steps:,}"
