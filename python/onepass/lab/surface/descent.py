"""Down a surface: one path an optimizer, and the searches that no path should lose against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import count, repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import Whole
from onepass._typing import Array
from onepass.lab.surface.surfaces import Surface
from onepass.optim import Optimizer

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
    evaluations : int
        How often a line search has computed the loss for it, to choose its step sizes.
    """

    points: Array
    losses: Array
    evaluations: int = 0

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
    batch_size: int | None = None,
    seed: int = 0,
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
    batch_size : int >= 1, optional
        How many rows of the surface's data each gradient is estimated from, as
        `Surface.batch_gradient` does it; all of them by default. Every row comes once before any
        comes again.
    seed : int >= 0
        Of the rows' order.

    Returns
    -------
    Trajectory
        Of ``steps + 1`` points; of fewer if the loss or the point stopped being finite.

    Raises
    ------
    ValueError
        ``<argument>: expected ..., got ...`` for a start that is no point or has no finite loss,
        or steps out of range, or a `batch_size` where the surface has no data.
    TypeError
        The same, if `steps`, `batch_size` or `seed` is no integer.

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
    if batch_size is None:
        gradients: Iterator[Callable[[Array], Array]] = repeat(surface.gradient)
    else:
        gradients = _of_batches(surface, _COUNT("batch_size", batch_size), Whole()("seed", seed))
    optimizer = make(w)
    shown = optimizer.lookahead if lookahead else nullcontext  # type: ignore[attr-defined]
    points, losses = [w.copy()], [surface.loss(w)]
    with np.errstate(over="ignore", invalid="ignore"):  # a rate may be too high
        for _, gradient_at in zip(range(steps), gradients, strict=False):
            with shown():
                gradient = gradient_at(w)
            step(optimizer, gradient)
            loss = surface.loss(w)
            if not (np.isfinite(loss) and np.isfinite(w).all()):
                break
            points.append(w.copy())
            losses.append(loss)
    return Trajectory(np.array(points), np.array(losses))


def step(optimizer: Optimizer, gradient: Array) -> None:
    """Step a point, which the optimizer may see as a matrix."""
    param, *_ = optimizer.param_groups[0]["params"]
    optimizer.step(gradient.reshape(param.shape))


def _of_batches(surface: Surface, batch_size: int, seed: int) -> Iterator[Callable[[Array], Array]]:
    """Yield the gradients of one batch after the other, without end."""
    if not surface.rows:
        raise ValueError(f"batch_size: expected None, as there are no data, got {batch_size}")
    rng, ends = np.random.default_rng(seed), range(batch_size, surface.rows, batch_size)
    return (
        partial(surface.batch_gradient, rows=rows)
        for _ in count()
        for rows in np.split(rng.permutation(surface.rows), ends)
    )


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
