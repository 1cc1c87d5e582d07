"""Schedules made of half waves of a cosine."""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

from onepass._hyperparameters import DECAY_RATE, NON_NEGATIVE, Number, Whole
from onepass.schedules._base import BaseSchedule, between, progress


@dataclass(frozen=True)
class cosine(BaseSchedule):
    r"""From one value to another along half a wave of the cosine.

    .. math::

        \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
                 \left(1 + \cos\frac{\pi \min(t, T)}{T}\right)

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_{\max}`, the value at step 0.
    steps : int >= 0
        :math:`T`; later the value stays. With 0 there is no way to go, and it stays `initial`.
    final : float >= 0
        :math:`\eta_{\min}`, the value from step :math:`T` on. It may be the larger one.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``CosineAnnealingLR(T_max, eta_min)`` rises again after ``T_max``.
    * optax: ``cosine_decay_schedule(alpha)`` with ``alpha`` the final value over the initial one.
    * Both take no decay of 0 steps.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017,
    arXiv:1608.03983.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.cosine(1.0, steps=100, final=0.1)
    >>> [round(schedule(step), 4) for step in (0, 25, 50, 100, 500)]
    [1.0, 0.8682, 0.55, 0.1, 0.1]
    """

    initial: float
    steps: int
    final: float = 0.0

    checks: ClassVar = {"initial": NON_NEGATIVE, "steps": Whole(), "final": NON_NEGATIVE}

    def _value(self, step: int) -> float:
        return _half_wave(self.initial, self.final, progress(step, self.steps))


@dataclass(frozen=True)
class cosine_restarts(BaseSchedule):
    r"""The cosine again and again, each cycle as long as the one before or longer (SGDR).

    .. math::

        \eta_t = \eta_{\min} + \tfrac{1}{2} (\eta_{\max} - \eta_{\min})
                 \left(1 + \cos\frac{\pi t_i}{T_i}\right), \qquad T_{i+1} = m T_i

    where :math:`t_i` counts the steps since the cycle began.

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_{\max}`, where every cycle begins.
    steps : int >= 1
        :math:`T_0`, the first cycle's length.
    final : float >= 0
        :math:`\eta_{\min}`, which a cycle would reach where the next one begins.
    multiplier : int >= 1
        :math:`m`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    It has no end.

    Differs from

    * PyTorch: ``CosineAnnealingWarmRestarts(T_0, T_mult, eta_min)`` has the same values.
    * optax: ``sgdr_schedule`` takes the settings of each cycle, and has an end.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017,
    arXiv:1608.03983.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.cosine_restarts(1.0, steps=10, multiplier=2)
    >>> [round(schedule(step), 4) for step in (0, 5, 9, 10, 20, 30)]
    [1.0, 0.5, 0.0245, 1.0, 0.5, 1.0]
    """

    initial: float
    steps: int
    final: float = 0.0
    multiplier: int = 1

    checks: ClassVar = {
        "initial": NON_NEGATIVE,
        "steps": Whole(1),
        "final": NON_NEGATIVE,
        "multiplier": Whole(1),
    }

    def _value(self, step: int) -> float:
        length = self.steps
        if self.multiplier == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.multiplier
        return _half_wave(self.initial, self.final, step / length)


@dataclass(frozen=True)
class one_cycle(BaseSchedule):
    r"""Up to a peak and down again, far below the start, both along half a cosine (1cycle).

    With :math:`T` steps, :math:`\rho` `pct_start`, :math:`t_1 = \rho T - 1` the step of the peak,
    and :math:`c(a, b, x) = b + \frac{1}{2} (a - b) (1 + \cos \pi x)`

    .. math::

        \eta_t = \begin{cases}
            c(\eta_0, \eta_{\max}, t / t_1) & t \le t_1 \\
            c(\eta_{\max}, \eta_T, (t - t_1) / (T - 1 - t_1)) & t > t_1
        \end{cases}
        \qquad \eta_0 = \frac{\eta_{\max}}{d}, \quad \eta_T = \frac{\eta_0}{f}

    Parameters
    ----------
    peak : float >= 0
        :math:`\eta_{\max}`.
    steps : int >= 2
        :math:`T`; the last of them has the lowest value, and later it stays.
    pct_start : float in [0, 1]
        The share of the steps in which the value rises.
    div_factor : float > 0
        :math:`d`: the peak over the first value.
    final_div_factor : float > 0
        :math:`f`: the first value over the last one.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    `momentum` returns the schedule that goes with it, which falls while the rate rises.

    Differs from

    * PyTorch: ``OneCycleLR(max_lr, total_steps)`` has the same values, also changes the momentum
      (Adam's :math:`\beta_1`) unless you switch that off, and raises an error after its end. By
      option it has straight lines, or a third phase.
    * optax: ``cosine_onecycle_schedule`` has its peak at step :math:`\rho T` and its end at
      :math:`T`, one step later each.
    * The paper: straight lines, down to where it began, and a short last phase far below.

    References
    ----------
    L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large
    learning rates", 2018, arXiv:1708.07120.

    Examples
    --------
    >>> import onepass as op
    >>> lr = op.schedules.one_cycle(1.0, steps=100)
    >>> [round(lr(step), 4) for step in (0, 29, 64, 99)]
    [0.04, 1.0, 0.5, 0.0]

    An optimizer with the rate and the momentum of PyTorch's ``OneCycleLR``:

    >>> import numpy as np
    >>> opt = op.AdamW(np.ones(3), lr=lr, betas=(lr.momentum(), 0.999))
    """

    peak: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    checks: ClassVar = {
        "peak": NON_NEGATIVE,
        "steps": Whole(2),
        "pct_start": Number(high=1.0),
        "div_factor": Number(above=0.0),
        "final_div_factor": Number(above=0.0),
    }

    def momentum(self, base_momentum: float = 0.85, max_momentum: float = 0.95) -> BaseSchedule:
        r"""Return the schedule of a momentum, or of a beta, that goes with this one.

        It falls from `max_momentum` to `base_momentum` while the rate rises, and rises back while
        the rate falls, along the same half waves.

        Parameters
        ----------
        base_momentum : float in [0, 1)
            The momentum at the peak of the rate.
        max_momentum : float in [0, 1)
            The momentum at the first step and the last.

        Returns
        -------
        schedule

        Raises
        ------
        TypeError, ValueError
            If an argument is out of range.

        Examples
        --------
        >>> import onepass as op
        >>> momentum = op.schedules.one_cycle(1.0, steps=100).momentum(0.85, 0.95)
        >>> [round(momentum(step), 4) for step in (0, 29, 64, 99)]
        [0.95, 0.85, 0.9, 0.95]
        """
        return OneCycleMomentum(self, base_momentum, max_momentum)

    def _value(self, step: int) -> float:
        initial = self.peak / self.div_factor
        return self._along(step, initial, self.peak, initial / self.final_div_factor)

    def _along(self, step: int, first: float, middle: float, last: float) -> float:
        """Return a step's value of a curve that has `middle` where the rate has its peak."""
        end = self.steps - 1
        turn = self.pct_start * self.steps - 1
        step = min(step, end)
        if step <= turn and turn > 0:
            return _half_wave(first, middle, step / turn)
        return _half_wave(middle, last, (step - turn) / (end - turn))


@dataclass(frozen=True, repr=False)
class OneCycleMomentum(BaseSchedule):
    """What `one_cycle.momentum` returns."""

    cycle: one_cycle
    base_momentum: float
    max_momentum: float

    checks: ClassVar = {"base_momentum": DECAY_RATE, "max_momentum": DECAY_RATE}

    def __repr__(self) -> str:
        """Return how it is made."""
        return f"{self.cycle!r}.momentum({self.base_momentum!r}, {self.max_momentum!r})"

    def _value(self, step: int) -> float:
        return self.cycle._along(step, self.max_momentum, self.base_momentum, self.max_momentum)


def _half_wave(start: float, end: float, share: float) -> float:
    """Return the value on half a wave of the cosine from `start` to `end`, exact at both."""
    return between(start, end, 0.5 * (1 - cos(pi * share)))
