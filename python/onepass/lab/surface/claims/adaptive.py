"""What is said of AdaGrad, RMSProp and Adam, whose rate each parameter has for itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from onepass._typing import Array
from onepass.lab.surface.claims._paths import SGDS, descend_by
from onepass.lab.surface.descent import descend
from onepass.lab.surface.surfaces import SURFACES, Surface
from onepass.optim import Adagrad, Adam, Optimizer, RMSprop


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
    paths = descend_by((*SGDS, "Adagrad"), surface, surface.start, lr, steps)
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


class Arrival(NamedTuple):
    """When a path has arrived, and where it stays.

    Attributes
    ----------
    steps : int or None
        To a thousandth of the first loss; None if it did not get there.
    last : float
        The highest loss of its last 100 steps.
    """

    steps: int | None
    last: float


def adam_beside_rmsprop(
    surface: Surface = SURFACES["rosenbrock"], steps: int = 1000
) -> dict[str, Arrival]:
    """Measure what Adam's cumulated gradient gains over RMSProp.

    All three divide by the same average of the squares, which forgets as the course's RMSProp does
    (0.9), at the surface's one rate; Adam without its cumulated gradient, ``betas=(0, 0.9)``, is
    RMSProp but for the correction of the bias. The claim, *Adam is faster than RMSProp, because it
    cumulates the gradient*, holds in Rosenbrock's valley, whose slope goes on in one direction
    along the valley and changes its sign across it: the other two do not get there. On the other
    five surfaces it does not hold: RMSProp takes 17 to 28 steps and Adam 40 to 65, since its first
    steps are shorter, and since it swings past the minimum. What holds on all six is that Adam ends
    nearer to the minimum, where RMSProp goes to and fro by as much as the rate.

    Examples
    --------
    >>> import onepass as op
    >>> for surface in ("rosenbrock", "neuron"):
    ...     found = op.surface.claims.adam_beside_rmsprop(op.surface.SURFACES[surface])
    ...     for name, arrival in found.items():
    ...         print(f"{surface:10} {name:13} {arrival.steps} steps, then {arrival.last:.0e}")
    rosenbrock RMSprop       None steps, then 5e-01
    rosenbrock Adam, beta1 0 None steps, then 5e-01
    rosenbrock Adam          132 steps, then 4e-03
    neuron     RMSprop       27 steps, then 9e-04
    neuron     Adam, beta1 0 32 steps, then 9e-04
    neuron     Adam          40 steps, then 6e-06
    """
    makes: dict[str, Callable[..., Optimizer]] = {
        "RMSprop": partial(RMSprop, alpha=0.9),
        "Adam, beta1 0": partial(Adam, betas=(0.0, 0.9)),
        "Adam": partial(Adam, betas=(0.9, 0.9)),
    }
    goal = float(surface.loss(surface.start)) / 1e3
    found = {}
    for name, make in makes.items():
        path = descend(surface, partial(make, lr=surface.adaptive_lr), steps=steps)
        found[name] = Arrival(path.steps_to(goal), float(path.losses[-100:].max()))
    return found
