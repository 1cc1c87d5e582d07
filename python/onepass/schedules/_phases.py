"""Schedules that are made of others, or of phases."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onepass._hyperparameters import NON_NEGATIVE, Whole
from onepass._typing import Schedule
from onepass.schedules._base import (
    AnySchedule,
    BaseSchedule,
    Boundaries,
    Several,
    between,
    check_length,
    value_of,
)


@dataclass(frozen=True)
class warmup(BaseSchedule):
    r"""Up to another schedule's first value in a straight line, then that schedule.

    .. math::

        \eta_t = \begin{cases}
            \eta_0 + (s(0) - \eta_0)\, t / n & t < n \\
            s(t - n) & t \ge n
        \end{cases}

    Parameters
    ----------
    steps : int >= 0
        :math:`n`, how long it rises; with 0 it is the other schedule.
    then : schedule
        :math:`s`; its steps count from where the warm-up ends.
    initial : float >= 0
        :math:`\eta_0`. With 0 the first step moves nothing; :math:`s(0) / n` lets it move.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``SequentialLR`` of ``LinearLR(start_factor)`` and another.
    * optax: ``warmup_cosine_decay_schedule`` counts the warm-up into its `decay_steps`.

    References
    ----------
    P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017,
    arXiv:1706.02677.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.warmup(4, then=op.schedules.cosine(1.0, steps=100))
    >>> [schedule(step) for step in (0, 1, 2, 3, 4, 104)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
    """

    steps: int
    then: Schedule
    initial: float = 0.0

    checks: ClassVar = {"steps": Whole(), "then": AnySchedule(), "initial": NON_NEGATIVE}

    def _value(self, step: int) -> float:
        if step < self.steps:
            return between(self.initial, value_of(self.then, 0), step / self.steps)
        return value_of(self.then, step - self.steps)

    @property
    def parts(self) -> Sequence[Schedule]:
        """The schedule that follows."""
        return (self.then,)


@dataclass(frozen=True)
class join(BaseSchedule):
    r"""Schedules one after another, each from its own step 0.

    .. math:: \eta_t = s_k(t - b_k), \qquad k = \#\{i \ge 1 : b_i \le t\}, \quad b_0 = 0

    Parameters
    ----------
    schedules : sequence of schedules
        :math:`s_0, s_1, \ldots`
    boundaries : sequence of int >= 0
        The steps :math:`b_1, b_2, \ldots` at which the next one takes over, in increasing order:
        one fewer than schedules. Where two are equal, the schedule between them has no step.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``SequentialLR(milestones)``, whose parts share the optimizer's initial rate.
    * optax: ``join_schedules`` has the same values.

    Examples
    --------
    >>> import onepass as op
    >>> constant, polynomial = op.schedules.constant, op.schedules.polynomial
    >>> schedule = op.schedules.join([constant(1.0), polynomial(1.0, steps=4)], boundaries=[10])
    >>> [schedule(step) for step in (0, 9, 10, 11, 14)]
    [1.0, 1.0, 1.0, 0.75, 0.0]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    checks: ClassVar = {"schedules": Several(AnySchedule()), "boundaries": Boundaries()}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("schedules", self.schedules, len(self.boundaries) + 1)

    def _value(self, step: int) -> float:
        begun = bisect_right(self.boundaries, step)
        return value_of(self.schedules[begun], step - (0, *self.boundaries)[begun])

    @property
    def parts(self) -> Sequence[Schedule]:
        """The schedules in their order."""
        return self.schedules


@dataclass(frozen=True)
class scaled(BaseSchedule):
    r"""Another schedule times a factor, such as the learning rate of one layer.

    .. math:: \eta_t = \gamma \, s(t)

    `overrides` with ``"lr_scale"`` make such schedules, and so does `onepass.layer_decay`.

    Parameters
    ----------
    schedule : schedule
        :math:`s`.
    factor : float >= 0
        :math:`\gamma`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: there a scheduler multiplies the rate with which each group began.
    * optax: there you write a function of your own.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.scaled(op.schedules.step_decay(0.5, every=5), 0.25)
    >>> [schedule(step) for step in (0, 4, 5)]
    [0.125, 0.125, 0.0625]
    """

    schedule: Schedule
    factor: float

    checks: ClassVar = {"schedule": AnySchedule(), "factor": NON_NEGATIVE}

    def _value(self, step: int) -> float:
        return self.factor * NON_NEGATIVE("schedule", self.schedule(step))

    @property
    def parts(self) -> Sequence[Schedule]:
        """The schedule that is scaled."""
        return (self.schedule,)


@dataclass(frozen=True)
class warmup_stable_decay(BaseSchedule):
    r"""Up in a straight line, level for most of the run, down in a straight line (WSD).

    .. math::

        \eta_t = \begin{cases}
            \eta_{\max}\, t / w & t < w \\
            \eta_{\max} & w \le t \le T - d \\
            \eta_{\max} + (\eta_T - \eta_{\max}) (t - T + d) / d & T - d < t < T \\
            \eta_T & t \ge T
        \end{cases}

    Parameters
    ----------
    peak : float >= 0
        :math:`\eta_{\max}`.
    steps : int >= 1
        :math:`T`, of all three phases together.
    warmup : int >= 0
        :math:`w`, steps of the first phase.
    decay : int >= 0
        :math:`d`, steps of the last one; with 0 it is level until :math:`T`.
    final : float >= 0
        :math:`\eta_T`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, or the phases do not fit into the steps.

    Notes
    -----
    Until the decay begins nothing depends on `steps`, so a run can be made longer, or ended, from
    any of its checkpoints.

    Differs from

    * Hu et al.: their decay is exponential. Other shapes are a `join` away.
    * PyTorch and optax: they have none, but the parts (`join`).

    References
    ----------
    S. Hu et al., "MiniCPM: unveiling the potential of small language models with scalable training
    strategies", 2024, arXiv:2404.06395.
    A. Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations",
    NeurIPS 2024, arXiv:2405.18392.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.warmup_stable_decay(1.0, steps=100, warmup=4, decay=20)
    >>> [schedule(step) for step in (0, 2, 4, 80, 90, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    peak: float
    steps: int
    warmup: int
    decay: int
    final: float = 0.0

    checks: ClassVar = {
        "peak": NON_NEGATIVE,
        "steps": Whole(1),
        "warmup": Whole(),
        "decay": Whole(),
        "final": NON_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        phases = self.warmup + self.decay
        if phases > self.steps:
            raise ValueError(
                f"steps: expected at least warmup + decay = {phases}, got {self.steps}"
            )

    def _value(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / self.warmup
        left = self.steps - step
        if left <= 0:
            return self.final
        return (
            self.peak if left >= self.decay else between(self.final, self.peak, left / self.decay)
        )
