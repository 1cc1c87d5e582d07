"""What is said of the size of a step: a high rate on the plateau, and line searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onepass.lab.surface.claims._paths import descend_by
from onepass.lab.surface.surfaces import SURFACES, Surface
from onepass.lab.surface.walking import SEARCHERS

_NEURON = SURFACES["neuron"]


class Crossing(NamedTuple):
    """How plain descent gets across the plateau at some learning rate.

    Attributes
    ----------
    steps : int or None
        To a loss of 0.01, None for over 1000.
    rises : int
        After how many of these steps the loss was higher than before.
    last : float
        The loss after 1000 steps.
    """

    steps: int | None
    rises: int
    last: float


def high_rates_on_the_plateau(
    lrs: Sequence[float] = (1.0, 10.0, 30.0, 100.0),
) -> dict[float, Crossing]:
    """Measure plain descent on the course's neuron at higher and higher rates.

    The claim, *a rate of 10 crosses the plateau, and is too high where it is steep*, holds in its
    first half: 14 steps instead of 113. The second half holds for one step, which lands across the
    valley; after that descent comes down to a loss of 6e-33. What is too high is 30: a step shoots
    past the minimum onto the slow ground beyond, where after 1000 steps the loss is still 0.005, as
    momentum's may be at any rate. At 100 descent never arrives.

    Examples
    --------
    >>> import onepass as op
    >>> for lr, found in op.surface.claims.high_rates_on_the_plateau().items():
    ...     print(f"{lr:3.0f}: {found.steps} steps, {found.rises} up, then {found.last:.0e}")
      1: 113 steps, 0 up, then 2e-11
     10: 14 steps, 1 up, then 6e-33
     30: 26 steps, 1 up, then 5e-03
    100: None steps, 1 up, then 4e-01
    """
    found = {}
    for lr in lrs:
        path = descend_by(("SGD",), _NEURON, lr=lr)["SGD"]
        steps = path.steps_to(0.01)
        rises = int((np.diff(path.losses[:steps]) > 0).sum())
        found[lr] = Crossing(steps, rises, float(path.losses[-1]))
    return found


class Cost(NamedTuple):
    """What a way down costs.

    Attributes
    ----------
    steps : int or None
        To a thousandth of the first loss, and as many gradients; None for over 1000.
    evaluations : int
        How often a line search computed the loss by then.
    """

    steps: int | None
    evaluations: int


def line_searches_beside_plain_descent(surface: Surface = _NEURON) -> dict[str, Cost]:
    """Measure what it takes to choose the step size anew in every step.

    `best_of` tries 0.1, 0.5, 1, 5 and 10 times the surface's rate, `backtracking` begins at 10
    times it. The claim, *a line search gets down in fewer steps than plain descent*, holds on all
    six surfaces, by a factor of 1.7 to 10. But each step computes the loss too, once for every step
    size that it tries. Where that costs as much as a gradient, `backtracking` is ahead on four of
    the six. In the ravine it takes 67 gradients and 310 losses, where plain descent takes 115
    gradients, and in Rosenbrock's valley 738 and 2573, where plain descent takes 3027.

    Examples
    --------
    >>> import onepass as op
    >>> for surface in ("neuron", "ravine"):
    ...     found = op.surface.claims.line_searches_beside_plain_descent(
    ...         op.surface.SURFACES[surface]
    ...     )
    ...     for name, cost in found.items():
    ...         print(f"{surface}, {name}: {cost.steps} steps, {cost.evaluations} losses")
    neuron, SGD: 216 steps, 0 losses
    neuron, best_of: 23 steps, 138 losses
    neuron, backtracking: 21 steps, 43 losses
    ravine, SGD: 115 steps, 0 losses
    ravine, best_of: 28 steps, 168 losses
    ravine, backtracking: 67 steps, 310 losses
    """
    goal = float(surface.loss(surface.start)) / 1e3
    plain = descend_by(("SGD",), surface)["SGD"]
    found = {"SGD": Cost(plain.steps_to(goal), 0)}
    for name, searcher in SEARCHERS.items():
        path = searcher.descend(surface, steps=1000)
        if steps := path.steps_to(goal):
            path = searcher.descend(surface, steps=steps)
        found[name] = Cost(steps, path.evaluations)
    return found
