"""Schedules that are constant between some steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onepass._hyperparameters import NON_NEGATIVE, Maybe, Number, Whole
from onepass.schedules._base import BaseSchedule, Boundaries, Several, check_length


@dataclass(frozen=True)
class constant(BaseSchedule):
    r"""The same value at every step, for where a schedule must stand (in `join`, in `warmup`).

    .. math:: \eta_t = \eta_0

    Parameters
    ----------
    value : float >= 0
        :math:`\eta_0`.

    Raises
    ------
    TypeError, ValueError
        If the value is not such a number.

    Examples
    --------
    >>> import onepass as op
    >>> op.schedules.constant(0.1)(1_000)
    0.1
    """

    value: float

    checks: ClassVar = {"value": NON_NEGATIVE}

    def _value(self, _step: int) -> float:
        return self.value


@dataclass(frozen=True)
class step_decay(BaseSchedule):
    r"""Times a factor every so many steps.

    .. math:: \eta_t = \eta_0 \, \gamma^{\lfloor t / n \rfloor}

    Halve every 5 epochs: ``step_decay(lr, every=5 * steps_per_epoch)``. To a tenth every 30:
    ``step_decay(lr, every=30 * steps_per_epoch, factor=0.1)``.

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_0`.
    every : int >= 1
        :math:`n`, in steps.
    factor : float in (0, 1]
        :math:`\gamma`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``StepLR(step_size=every, gamma=factor)``, whose `gamma` is 0.1 by default.
    * optax: ``exponential_decay(transition_steps=every, decay_rate=factor, staircase=True)``.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.step_decay(0.8, every=5)
    >>> [schedule(step) for step in (0, 4, 5, 9, 10)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    initial: float
    every: int
    factor: float = 0.5

    checks: ClassVar = {
        "initial": NON_NEGATIVE,
        "every": Whole(1),
        "factor": Number(above=0.0, high=1.0),
    }

    def _value(self, step: int) -> float:
        return float(self.initial * self.factor ** (step // self.every))


@dataclass(frozen=True)
class piecewise(BaseSchedule):
    r"""Another value from each boundary on, given as it is or as a factor of the one before.

    .. math::

        \eta_t = v_k \quad\text{or}\quad \eta_t = \eta_0 \prod_{i \le k} \gamma_i,
        \qquad k = \#\{i : b_i \le t\}

    Parameters
    ----------
    initial : float >= 0
        The value before the first boundary, :math:`v_0 = \eta_0`.
    boundaries : sequence of int >= 0
        The steps :math:`b_i`, in increasing order. Where two are equal, both have been passed.
    values : sequence of float >= 0
        The value :math:`v_i` from each boundary on; either these or `factors`.
    factors : sequence of float >= 0
        What each boundary multiplies the value by, :math:`\gamma_i`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or there is not one value, or one factor, a boundary.

    Notes
    -----
    Differs from

    * PyTorch: ``MultiStepLR(milestones, gamma)`` has one factor for all.
    * optax: ``piecewise_constant_schedule`` has factors only.
    * Keras: in its ``PiecewiseConstantDecay`` a boundary still has the value before it.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.piecewise(0.1, boundaries=(100, 200), values=(0.05, 0.01))
    >>> [schedule(step) for step in (99, 100, 200)]
    [0.1, 0.05, 0.01]
    >>> op.schedules.piecewise(0.5, boundaries=(100, 200), factors=(0.5, 0.5))(200)
    0.125
    """

    initial: float
    boundaries: Sequence[int]
    values: Sequence[float] | None = None
    factors: Sequence[float] | None = None

    checks: ClassVar = {
        "initial": NON_NEGATIVE,
        "boundaries": Boundaries(),
        "values": Maybe(Several(NON_NEGATIVE)),
        "factors": Maybe(Several(NON_NEGATIVE)),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.values is None) == (self.factors is None):
            got = "both" if self.factors is not None else "neither"
            raise ValueError(f"values: expected them or factors, got {got}")
        for name in ("values", "factors"):
            given = getattr(self, name)
            if given is not None:
                check_length(name, given, len(self.boundaries))

    def _value(self, step: int) -> float:
        passed = bisect_right(self.boundaries, step)
        if self.factors is not None:
            return math.prod(self.factors[:passed], start=self.initial)
        assert self.values is not None
        return (self.initial, *self.values)[passed]
