"""What is said of momentum: on the plateau, in a valley, past the minimum, with single points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.lab.surface.claims._paths import SGDS, descend_by
from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.surfaces import SURFACES, Point, Surface
from onepass.lab.surface.walking import walkers

_NEURON, _RAVINE = SURFACES["neuron"], SURFACES["ravine"]


def steps_across_the_plateau(
    start: npt.ArrayLike = _NEURON.start, lr: float = _NEURON.lr, goal: float = 0.01
) -> dict[str, int | None]:
    """Return how many steps each form of SGD takes to a loss of `goal`, None for over 1000.

    The claim, *momentum passes plain descent on the plateau*, holds from the course's start. It
    is about the plateau: from (0, -4), where there is none in the way, momentum arrives first
    too, and then shoots past the minimum onto the plateau beyond, where after 1000 steps its loss
    is still 0.005 while plain descent's is 1e-11.

    Examples
    --------
    >>> import onepass as op
    >>> op.surface.claims.steps_across_the_plateau()
    {'SGD': 113, 'Momentum': 32, 'Nesterov': 29}
    >>> op.surface.claims.steps_across_the_plateau(start=(0, -4), goal=0.001)
    {'SGD': 92, 'Momentum': None, 'Nesterov': None}
    """
    paths = descend_by(SGDS, _NEURON, start, lr)
    return {name: path.steps_to(goal) for name, path in paths.items()}


class UTurn(NamedTuple):
    """What a path does once it has crossed the valley.

    Attributes
    ----------
    step : int
        The crossing: the first after which the loss rises, of those with less than a quarter of
        the loss at the start.
    overshoot : float
        The farthest from the minimum that the path gets afterwards.
    length : float
        Of the path from there on: with no u-turn it would be the distance to the minimum.
    """

    step: int
    overshoot: float
    length: float


def u_turns(start: npt.ArrayLike = _NEURON.start, lr: float = _NEURON.lr) -> dict[str, UTurn]:
    """Measure the u-turns of momentum and of Nesterov's look-ahead, over 1000 steps.

    The claim, *Nesterov's u-turns are shorter*, holds from the course's start in both measures.
    At half the learning rate the first u-turns reach as far (2.30 against 2.31); Nesterov's path
    is then shorter because it makes fewer.

    Examples
    --------
    >>> import onepass as op
    >>> for name, turn in op.surface.claims.u_turns().items():
    ...     print(f"{name}: past {turn.overshoot:.2f}, length {turn.length:.2f}")
    Momentum: past 3.64, length 12.29
    Nesterov: past 2.31, length 6.89
    """
    (minimum,) = _NEURON.minima
    paths = descend_by(("Momentum", "Nesterov"), _NEURON, start, lr)
    return {name: _u_turn(path, minimum) for name, path in paths.items()}


def _u_turn(path: Trajectory, minimum: Point) -> UTurn:
    in_valley = path.losses[:-1] < path.losses[0] / 4
    crossing = int(np.argmax(in_valley & (np.diff(path.losses) > 0)))
    after = path.points[crossing:]
    overshoot = np.linalg.norm(after - minimum, axis=1).max()
    length = np.linalg.norm(np.diff(after, axis=0), axis=1).sum()
    return UTurn(crossing, float(overshoot), float(length))


class Reached(NamedTuple):
    """The loss that a path has reached.

    Attributes
    ----------
    loss : float
        The loss after so many steps.
    highest : float
        The highest loss from there on, of as many steps again.
    """

    loss: float
    highest: float


def losses_in_a_valley(
    start: npt.ArrayLike = (1.0, 1.0), lr: float = 0.005, steps: int = 100
) -> dict[str, Reached]:
    """Return the loss in the ravine after so many steps, and how high it gets again.

    The claim, *after 100 iterations in a valley momentum is at 1e-5 where plain descent is at
    0.36*, holds in this valley at this rate: plain descent is at 0.18 and momentum at 7e-6, or at
    0.37 and 1.5e-5 for twice this loss, x² + 50 y². But that is a moment of momentum's swing across
    the valley, and three steps later it is at 5e-4. The swing leaves 0.9 of the loss in a step,
    whatever the rate, which comes to 3e-5 after 100. Nesterov's look-ahead damps the swing, and
    stays at 1e-5. Plain descent leaves (1 - lr)² along the valley's floor: at five times the rate
    it is at 0.003, and momentum at 0.0009. And where there is no floor to follow,
    from (0, 1), plain descent is at 1e-119 then, and momentum at 0.0009 still.

    Examples
    --------
    >>> import onepass as op
    >>> for name, reached in op.surface.claims.losses_in_a_valley().items():
    ...     print(f"{name}: {reached.loss:.1e}, then up to {reached.highest:.1e}")
    SGD: 1.8e-01, then up to 1.8e-01
    Momentum: 7.4e-06, then up to 5.0e-04
    Nesterov: 9.6e-06, then up to 9.6e-06
    >>> for name, reached in op.surface.claims.losses_in_a_valley((0, 1), lr=0.025).items():
    ...     print(f"{name}: {reached.loss:.0e}, then up to {reached.highest:.0e}")
    SGD: 1e-119, then up to 1e-119
    Momentum: 9e-04, then up to 9e-04
    Nesterov: 8e-23, then up to 8e-23
    """
    paths = descend_by(SGDS, _RAVINE, start, lr, 2 * steps)
    return {
        name: Reached(float(path.losses[steps]), float(path.losses[steps:].max()))
        for name, path in paths.items()
    }


def losses_of_stochastic_steps(
    surface: Surface = _NEURON, lr: float = 0.5, steps: int = 60, seeds: int = 10
) -> dict[str, Array]:
    """Return the loss after so many steps that take the gradient of one point each.

    The arrays have one loss for each order of the points, of the seeds from 0 on. The claim, *after
    60 stochastic steps plain descent is far off where momentum and Nesterov are near*, holds for
    each of ten orders on the course's neuron. (It takes the gradient of a point as it is, which is
    half of `Surface.batch_gradient` there, at rate 1.) What it shows is the plateau, which plain
    descent has not crossed with all points either. On the sparse surface the claim does not hold:
    at its rate, 0.02, plain descent is between 1.0 and 2.2, and momentum between 0.03 and 4.9,
    which is past the minimum; at 0.1 plain descent is below 0.4, and both others above 3.

    Examples
    --------
    >>> import onepass as op
    >>> for name, losses in op.surface.claims.losses_of_stochastic_steps().items():
    ...     print(f"{name}: {losses.min():.4f} to {losses.max():.4f}")
    SGD: 0.4121 to 0.4121
    Momentum: 0.0027 to 0.0128
    Nesterov: 0.0015 to 0.0075
    """
    known = walkers()
    return {
        name: np.array(
            [
                known[name].descend(surface, None, steps, lr, batch_size=1, seed=seed).losses[-1]
                for seed in range(seeds)
            ]
        )
        for name in SGDS
    }
