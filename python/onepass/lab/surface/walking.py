"""Who walks down a surface: every optimizer, in the course's forms too, and line searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import Whole
from onepass._typing import Array
from onepass.lab._spelling import check_names, spelt
from onepass.lab.surface.descent import Trajectory, check_start, descend, step
from onepass.lab.surface.surfaces import Surface
from onepass.line_search import LineSearch, backtracking, best_of
from onepass.optim import SGD, Optimizer, RMSprop, registry


@dataclass(frozen=True)
class Walker:
    """An optimizer with all its settings but the learning rate."""

    make: Callable[..., Optimizer]
    """The optimizer's class or another function, called with the parameters and ``lr=``."""
    lookahead: bool = False
    """Whether gradients are taken where momentum leads."""

    @property
    def adaptive(self) -> bool:
        """Whether steps are about as long as the rate: twice the gradient does not double them.

        This is found by trying, so that no rule has to say so.
        """
        lengths = []
        for gradient in (1.0, 2.0):
            w = np.ones(2)
            step(self.make(w, lr=1e-3), np.full(2, gradient))
            lengths.append(float(np.linalg.norm(w - 1)))
        return lengths[1] < 1.5 * lengths[0]

    @property
    def decays(self) -> bool:
        """Whether it has weight decay."""
        (group,) = self.make(np.ones(2), lr=1e-3).param_groups
        return bool(group.get("weight_decay"))

    def lr(self, surface: Surface) -> float:
        """Return the surface's learning rate for this optimizer."""
        return surface.adaptive_lr if self.adaptive else surface.lr

    def descend(
        self,
        surface: Surface,
        start: npt.ArrayLike | None = None,
        steps: int = 100,
        lr: float | None = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Trajectory:
        """Return the path at this learning rate, by default the surface's; see `descend`."""
        make = partial(self.make, lr=self.lr(surface) if lr is None else lr)
        return descend(
            surface,
            make,
            start,
            steps,
            lookahead=self.lookahead,
            batch_size=batch_size,
            seed=seed,
        )


@dataclass(frozen=True)
class LineSearcher:
    """Plain descent whose every step is as long as a line search finds good."""

    make: Callable[[float], LineSearch]
    """Makes the line search for a surface's learning rate."""

    def lr(self, surface: Surface) -> float:
        """Return the surface's learning rate: the search looks for steps about that long."""
        return surface.lr

    def descend(
        self,
        surface: Surface,
        start: npt.ArrayLike | None = None,
        steps: int = 100,
        lr: float | None = None,
    ) -> Trajectory:
        """Return the path at this learning rate, by default the surface's."""
        w = check_start(surface, surface.start if start is None else start)
        search = self.make(self.lr(surface) if lr is None else lr)
        points, losses, evaluations = [w.copy()], [surface.loss(w)], 0
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(Whole(1)("steps", steps)):
                info = search(w, surface.gradient(w), lambda: float(surface.loss(w)))
                points.append(w.copy())
                losses.append(np.asarray(info.loss))
                evaluations += info.evaluations
        return Trajectory(np.array(points), np.array(losses), evaluations)


def _of_a_matrix(cls: type[Optimizer], point: Array, **settings: Any) -> Optimizer:
    """Return an optimizer that steps matrices: it sees the point as a row."""
    return cls(point.reshape(1, -1), **settings)


_momentum = partial(SGD, momentum=0.9)

# As the course has them: Nesterov's gradient is the one at the look-ahead point, and RMSProp
# remembers about ten steps.
_COURSE = {
    "SGD": Walker(SGD),
    "Momentum": Walker(_momentum),
    "Nesterov": Walker(_momentum, lookahead=True),
    "RMSprop": Walker(partial(RMSprop, alpha=0.9)),
}


LONGEST = 10.0
"""How many times the learning rate the line searches' longest step size is."""
FACTORS = (0.1, 0.5, 1.0, 5.0, LONGEST)
"""The multiples of the learning rate that the search among given step sizes tries."""

SEARCHERS = {
    "best_of": LineSearcher(lambda lr: best_of(factor * lr for factor in FACTORS)),
    "backtracking": LineSearcher(lambda lr: backtracking(LONGEST * lr)),
}


def walker(text: str) -> tuple[Walker, float | None]:
    """Return a walker by its name, with settings behind it or without, and its rate if it has one.

    Raises
    ------
    ValueError, TypeError
        For settings that its class has not, or refuses.
    """
    named = spelt(text)
    known = walkers()[named.name]
    point = np.ones(2)
    own = known.make(point, lr=1e-3)
    check_names(named, own.defaults)
    settings = dict(named.settings)
    lr = settings.pop("lr", None)
    made = replace(known, make=partial(known.make, **settings)) if settings else known
    made.make(point, lr=1e-3 if lr is None else lr)
    return made, lr


def walkers() -> dict[str, Walker]:
    """Return the walkers by name: the course's, then the classes that these lack.

    Examples
    --------
    >>> import onepass as op
    >>> nesterov = op.surface.walkers()["Nesterov"]
    >>> path = nesterov.descend(op.surface.SURFACES["neuron"], steps=100)
    >>> path.steps_to(0.01)
    29
    """
    others = {
        cls.__name__: Walker(partial(_of_a_matrix, cls) if any(cls.row.directed) else cls)
        for cls in registry.values()
    }
    return _COURSE | {name: walker for name, walker in others.items() if name not in _COURSE}
