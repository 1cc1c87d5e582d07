"""Down a surface: one path an optimizer, and the searches that no path should lose against."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import Whole
from onepass._typing import Array
from onepass.lab.surface.surfaces import Surface
from onepass.optim import SGD, Optimizer, RMSprop, registry

SQUARE = 6.0
"""The searches try points from -6 to 6 in both parameters."""

_COUNT = Whole(1)


class Trajectory(NamedTuple):
    """Where a descent went, or what a search tried.

    Attributes
    ----------
    points : ndarray of shape (n, 2)
        The first point of a descent is the start. If it diverged, its last point is the last one
        with a finite loss.
    losses : ndarray of shape (n,)
    """

    points: Array
    losses: Array

    def steps_to(self, goal: float) -> int | None:
        """Return after how many steps the loss first was `goal` or less, None if it never was."""
        reached = np.flatnonzero(self.losses <= goal)
        return int(reached[0]) if len(reached) else None


def descend(
    surface: Surface,
    make: Callable[[Array], Optimizer],
    start: npt.ArrayLike | None = None,
    steps: int = 100,
    *,
    lookahead: bool = False,
) -> Trajectory:
    """Run an optimizer down a surface and return its path.

    Parameters
    ----------
    surface : Surface
    make : callable
        Called with the parameters, an array of shape (2,), and returns the optimizer.
    start : two finite numbers, optional
        The surface's own by default.
    steps : int >= 1
    lookahead : bool
        Take each gradient where momentum leads, as Nesterov did: see `onepass.SGD.lookahead`.

    Returns
    -------
    Trajectory
        Of ``steps + 1`` points; of fewer if the loss or the point stopped being finite.

    Raises
    ------
    ValueError
        ``<argument>: expected ..., got ...`` for a start that is no point or has no finite loss,
        or steps out of range.
    TypeError
        The same, if `steps` is no integer.

    Examples
    --------
    >>> import onepass as op
    >>> ravine = op.surface.SURFACES["ravine"]
    >>> path = op.surface.descend(ravine, lambda w: op.SGD(w, lr=0.02), start=(1, 1), steps=2)
    >>> path.points
    array([[1.    , 1.    ],
           [0.98  , 0.    ],
           [0.9604, 0.    ]])
    """
    w = check_start(surface, surface.start if start is None else start)
    steps = _COUNT("steps", steps)
    optimizer = make(w)
    shown = optimizer.lookahead if lookahead else nullcontext  # type: ignore[attr-defined]
    points, losses = [w.copy()], [surface.loss(w)]
    with np.errstate(over="ignore", invalid="ignore"):  # a rate may be too high
        for _ in range(steps):
            with shown():
                gradient = surface.gradient(w)
            _step(optimizer, gradient)
            loss = surface.loss(w)
            if not (np.isfinite(loss) and np.isfinite(w).all()):
                break
            points.append(w.copy())
            losses.append(loss)
    return Trajectory(np.array(points), np.array(losses))


def random_search(surface: Surface, n: int, rng: np.random.Generator) -> Trajectory:
    """Try `n` points, uniform over [-6, 6]².

    Raises
    ------
    TypeError, ValueError
        ``n: expected an integer >= 1, got ...``.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> neuron = op.surface.SURFACES["neuron"]
    >>> tried = op.surface.random_search(neuron, 500, np.random.default_rng(0))
    >>> tried.points.shape, bool(tried.losses.min() < 0.02)
    ((500, 2), True)
    """
    points = rng.uniform(-SQUARE, SQUARE, size=(_COUNT("n", n), 2))
    return Trajectory(points, surface.loss(points))


def grid_search(surface: Surface, n: int) -> Trajectory:
    """Try the points of the largest square grid over [-6, 6]² that has no more than `n`.

    They are the middles of equal squares, row by row.

    Raises
    ------
    TypeError, ValueError
        ``n: expected an integer >= 1, got ...``.

    Examples
    --------
    >>> import onepass as op
    >>> op.surface.grid_search(op.surface.SURFACES["neuron"], 5).points
    array([[-3., -3.],
           [ 3., -3.],
           [-3.,  3.],
           [ 3.,  3.]])
    """
    side = math.isqrt(_COUNT("n", n))
    middles = SQUARE * ((2 * np.arange(side) + 1) / side - 1)
    points = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return Trajectory(points, surface.loss(points))


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
            _step(self.make(w, lr=1e-3), np.full(2, gradient))
            lengths.append(float(np.linalg.norm(w - 1)))
        return lengths[1] < 1.5 * lengths[0]

    def lr(self, surface: Surface) -> float:
        """Return the surface's learning rate for this optimizer."""
        return surface.adaptive_lr if self.adaptive else surface.lr

    def descend(
        self,
        surface: Surface,
        start: npt.ArrayLike | None = None,
        steps: int = 100,
        lr: float | None = None,
    ) -> Trajectory:
        """Return the path at this learning rate, by default the surface's."""
        make = partial(self.make, lr=self.lr(surface) if lr is None else lr)
        return descend(surface, make, start, steps, lookahead=self.lookahead)


def _step(optimizer: Optimizer, gradient: Array) -> None:
    """Step a point, which the optimizer may see as a matrix."""
    param, *_ = optimizer.param_groups[0]["params"]
    optimizer.step(gradient.reshape(param.shape))


def _of_a_matrix(cls: type[Optimizer], point: Array, **settings: Any) -> Optimizer:
    """Return an optimizer that steps matrices: it sees the point as a row."""
    return cls(point.reshape(1, -1), **settings)


_momentum = partial(SGD, momentum=0.9)

# As the lecture has them: Nesterov's gradient is the one at the look-ahead point, and RMSProp
# remembers about ten steps.
_LECTURE = {
    "SGD": Walker(SGD),
    "Momentum": Walker(_momentum),
    "Nesterov": Walker(_momentum, lookahead=True),
    "RMSprop": Walker(partial(RMSprop, alpha=0.9)),
}


def walkers() -> dict[str, Walker]:
    """Return the walkers by name: the lecture's, then the classes that these lack.

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
    return _LECTURE | {name: walker for name, walker in others.items() if name not in _LECTURE}


def check_start(surface: Surface, start: npt.ArrayLike) -> Array:
    """Return a copy of the start, or raise ValueError if it is no point with a finite loss."""
    try:
        point = np.array(start, dtype=float)
    except (TypeError, ValueError):
        point = np.empty(0)
    if point.shape != (2,) or not np.isfinite(point).all():
        raise ValueError(f"start: expected two finite numbers, got {start!r}")
    with np.errstate(over="ignore", invalid="ignore"):
        loss = surface.loss(point)
    if not np.isfinite(loss):
        raise ValueError(f"start: expected a point with a finite loss, got {start!r}")
    return point
