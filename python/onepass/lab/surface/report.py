"""What the command runs on a surface, and the table it prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onepass.lab._tables import Column
from onepass.lab._tables import print_table as print_rows
from onepass.lab.surface.descent import Trajectory, grid_search, random_search, walkers
from onepass.lab.surface.surfaces import Point, Surface

SHARE = 1e-3
SEED = 0
CAPTION = (
    "The searches try one point a step, over [-6, 6] x [-6, 6]; their last loss is their best."
)


@dataclass(frozen=True)
class Contest:
    """The paths of several optimizers down one surface, beside what searching finds."""

    surface: Surface
    paths: Mapping[str, Trajectory]
    rates: Mapping[str, float]
    searches: Mapping[str, Trajectory]
    """The searches by name, each over as many points as the paths have steps."""
    steps: int

    @property
    def goal(self) -> float:
        """The loss to get down to, a fixed share of the first one."""
        first = next(iter(self.paths.values())).losses[0]
        return SHARE * float(first)

    @property
    def labels(self) -> dict[str, Trajectory]:
        """The paths by their labels in a legend."""
        return {f"{name}, lr {self.rates[name]:g}": path for name, path in self.paths.items()}


def contest(
    surface: Surface, names: Sequence[str], start: Point | None, steps: int, lr: float | None
) -> Contest:
    """Run these optimizers and the searches; at the surface's rates if none is given."""
    chosen = {name: walkers()[name] for name in names}
    rates = {name: walker.lr(surface) if lr is None else lr for name, walker in chosen.items()}
    return Contest(
        surface,
        {name: walker.descend(surface, start, steps, lr) for name, walker in chosen.items()},
        rates,
        {
            "random search": random_search(surface, steps, np.random.default_rng(SEED)),
            "grid search": grid_search(surface, steps),
        },
        steps,
    )


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
        [(each.surface.name if number == 0 else "", *row) for number, row in enumerate(_rows(each))]
        for each in contests
    ]
    print_rows((), columns, sections, CAPTION)


def _rows(contest: Contest) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, path in contest.paths.items():
        diverged = len(path.losses) <= contest.steps
        last = "diverged" if diverged else f"{path.losses[-1]:.2g}"
        rows.append((name, f"{contest.rates[name]:g}", _steps(path, contest.goal), last))
    for name, tried in contest.searches.items():
        rows.append((name, "", _steps(tried, contest.goal), f"{tried.losses.min():.2g}"))
    return rows


def _steps(path: Trajectory, goal: float) -> str:
    steps = path.steps_to(goal)
    return "-" if steps is None else f"{steps:,}"
