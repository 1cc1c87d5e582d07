"""What the lectures say of these paths, each as a measurement."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.lab.surface.descent import Trajectory, walkers
from onepass.lab.surface.surfaces import SURFACES, Point, Surface
from onepass.optim import Adagrad, Optimizer, RMSprop

__all__ = [
    "Guess",
    "Moved",
    "UTurn",
    "effective_rates",
    "first_steps_on_sparse",
    "guesses",
    "steps_across_the_plateau",
    "u_turns",
]

_NEURON = SURFACES["neuron"]


class Guess(NamedTuple):
    """One of the lecture's guesses, the loss it prints, and the loss that the formula gives."""

    w: float
    b: float
    printed: str
    loss: float

    @property
    def holds(self) -> bool:
        """Whether the loss, rounded, is what the lecture prints."""
        return f"{self.loss:.4f}" == self.printed


_GUESSES = (
    (0.50, 0.00, "0.0730"),
    (-0.10, 0.00, "0.1481"),
    (0.94, -0.94, "0.0214"),
    (1.42, -1.73, "0.0028"),
    (1.65, -2.08, "0.0003"),
    (1.78, -2.27, "0.0000"),
)


def guesses() -> list[Guess]:
    """Return the guesses with which the lecture feels its way down, and their losses.

    Three are as printed. The other three are not, by 0.0001, 0.0003 and 0.0001. Guesses within
    half a unit of the last digit of these w and b do give the printed losses, with further digits
    cut off; so the lecture may have rounded its guesses for print.

    Examples
    --------
    >>> import onepass as op
    >>> for guess in op.surface.claims.guesses():
    ...     print(f"{guess.w:5} {guess.b:5} {guess.printed} {guess.loss:.4f} {guess.holds}")
      0.5   0.0 0.0730 0.0731 False
     -0.1   0.0 0.1481 0.1481 True
     0.94 -0.94 0.0214 0.0217 False
     1.42 -1.73 0.0028 0.0029 False
     1.65 -2.08 0.0003 0.0003 True
     1.78 -2.27 0.0000 0.0000 True
    """
    return [Guess(w, b, printed, float(_NEURON.loss((w, b)))) for w, b, printed in _GUESSES]


def steps_across_the_plateau(
    start: npt.ArrayLike = _NEURON.start, lr: float = _NEURON.lr, goal: float = 0.01
) -> dict[str, int | None]:
    """Return how many steps each form of SGD takes to a loss of `goal`, None for over 1000.

    The claim, *momentum passes plain descent on the plateau*, holds from the lecture's start. It
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
    paths = _paths(_NEURON, ("SGD", "Momentum", "Nesterov"), start, lr)
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

    The claim, *Nesterov's u-turns are shorter*, holds from the lecture's start in both measures.
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
    paths = _paths(_NEURON, ("Momentum", "Nesterov"), start, lr)
    return {name: _u_turn(path, minimum) for name, path in paths.items()}


def _u_turn(path: Trajectory, minimum: Point) -> UTurn:
    in_valley = path.losses[:-1] < path.losses[0] / 4
    crossing = int(np.argmax(in_valley & (np.diff(path.losses) > 0)))
    after = path.points[crossing:]
    overshoot = np.linalg.norm(after - minimum, axis=1).max()
    length = np.linalg.norm(np.diff(after, axis=0), axis=1).sum()
    return UTurn(crossing, float(overshoot), float(length))


class Moved(NamedTuple):
    """How far the first steps went along each parameter."""

    w: float
    b: float

    @property
    def ratio(self) -> float:
        """The distance along w per unit along b."""
        return self.w / self.b


def first_steps_on_sparse(
    surface: Surface = SURFACES["sparse"], steps: int = 5, lr: float = 0.1
) -> dict[str, Moved]:
    """Return how far the first steps go where the feature of w is mostly 0.

    The claim, *AdaGrad moves along w from the first steps; plain descent, momentum and Nesterov
    move along b*, holds for the direction, for each of the ten seeds we tried. Two things the
    picture does not say: AdaGrad's first step is equally long in every direction by construction,
    so its ratio begins at 1 on any surface; and at the same learning rate the other three go
    farther along w than AdaGrad does, only many times farther still along b.

    Examples
    --------
    >>> import onepass as op
    >>> for name, moved in op.surface.claims.first_steps_on_sparse().items():
    ...     print(f"{name}: w {moved.w:.2f}, b {moved.b:.2f}, ratio {moved.ratio:.2f}")
    SGD: w 0.39, b 2.75, ratio 0.14
    Momentum: w 0.84, b 6.12, ratio 0.14
    Nesterov: w 0.88, b 4.75, ratio 0.19
    Adagrad: w 0.34, b 0.33, ratio 1.01
    """
    names = ("SGD", "Momentum", "Nesterov", "Adagrad")
    paths = _paths(surface, names, surface.start, lr, steps)
    moved = {name: np.abs(path.points[-1] - path.points[0]) for name, path in paths.items()}
    return {name: Moved(float(w), float(b)) for name, (w, b) in moved.items()}


def effective_rates(
    surface: Surface = SURFACES["sparse"], steps: int = 1000, lr: float = 0.1
) -> dict[str, Array]:
    r"""Return what AdaGrad and RMSProp multiply each gradient with, step by step.

    .. math:: \frac{\eta}{\sqrt{s_t} + \epsilon}

    in arrays of shape (steps, 2), with the :math:`s_t` in each one's ``state_dict()``. The claim,
    *AdaGrad's rate dies and RMSProp's does not*, holds: AdaGrad's sum can only grow, RMSProp's
    average falls again with the gradient. That has a price: RMSProp ends in steps to and fro
    across the minimum, about as long as the rate, and here its loss stays at 0.006; AdaGrad's,
    though slow, is still falling when it gets to 0.007 at step 1000.

    Examples
    --------
    >>> import onepass as op
    >>> for name, rates in op.surface.claims.effective_rates().items():
    ...     w, b = rates[-1] / rates[0]
    ...     print(f"{name}: times {w:.1g} along w, {b:.1g} along b")
    Adagrad: times 0.03 along w, 0.06 along b
    RMSprop: times 4 along w, 9 along b
    """
    return {
        "Adagrad": _rates(Adagrad, "sum", surface, steps, lr),
        "RMSprop": _rates(partial(RMSprop, alpha=0.9), "square_avg", surface, steps, lr),
    }


def _rates(
    make: Callable[..., Optimizer], accumulator: str, surface: Surface, steps: int, lr: float
) -> Array:
    w = np.array(surface.start)
    optimizer = make(w, lr=lr)
    eps = optimizer.param_groups[0]["eps"]
    rates = np.empty((steps, 2))
    for step in range(steps):
        optimizer.step(surface.gradient(w))
        accumulated = optimizer.state_dict()["state"][0][accumulator]
        rates[step] = lr / (np.sqrt(accumulated) + eps)
    return rates


def _paths(
    surface: Surface, names: Sequence[str], start: npt.ArrayLike, lr: float, steps: int = 1000
) -> dict[str, Trajectory]:
    known = walkers()
    return {name: known[name].descend(surface, start, steps, lr) for name in names}
