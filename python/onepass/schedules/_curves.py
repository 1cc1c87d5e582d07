"""Schedules that fall, or rise, along one curve."""

import math
from dataclasses import dataclass
from typing import ClassVar

from onepass._hyperparameters import DECAY_RATE, NON_NEGATIVE, Number, Whole
from onepass.schedules._base import BaseSchedule, between, progress


@dataclass(frozen=True)
class exponential(BaseSchedule):
    r"""Exponential decay.

    .. math:: \eta_t = \eta_0 \, e^{-k t}

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_0`.
    rate : float >= 0
        :math:`k`, per step; the value halves every :math:`\ln 2 / k` steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``ExponentialLR(gamma)`` is that with :math:`k = -\ln \gamma`.
    * optax: ``exponential_decay(transition_steps=n, decay_rate=r)`` with :math:`k = -\ln r / n`.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.exponential(1.0, rate=0.01)
    >>> round(schedule(100), 4)
    0.3679
    """

    initial: float
    rate: float

    checks: ClassVar = {"initial": NON_NEGATIVE, "rate": NON_NEGATIVE}

    def _value(self, step: int) -> float:
        return self.initial * math.exp(-self.rate * step)


@dataclass(frozen=True)
class inverse_time(BaseSchedule):
    r"""Decay with one over the step.

    .. math:: \eta_t = \frac{\eta_0}{1 + k t}

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_0`.
    rate : float >= 0
        :math:`k`, per step; the value has halved after :math:`1 / k` steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Its sum over all steps is infinite and the sum of its squares finite, which is what stochastic
    approximation needs to converge (Robbins and Monro).

    Differs from

    * PyTorch and optax: they have none. Keras: ``InverseTimeDecay(decay_steps, decay_rate)`` with
      :math:`k` their quotient.

    References
    ----------
    H. Robbins and S. Monro, "A stochastic approximation method", 1951.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.inverse_time(1.0, rate=0.25)
    >>> [schedule(step) for step in (0, 4, 12)]
    [1.0, 0.5, 0.25]
    """

    initial: float
    rate: float

    checks: ClassVar = {"initial": NON_NEGATIVE, "rate": NON_NEGATIVE}

    def _value(self, step: int) -> float:
        return self.initial / (1 + self.rate * step)


@dataclass(frozen=True)
class polynomial(BaseSchedule):
    r"""From one value to another along a power; a straight line by default.

    .. math:: \eta_t = \eta_T + (\eta_0 - \eta_T) (1 - \min(t, T) / T)^p

    Parameters
    ----------
    initial : float >= 0
        :math:`\eta_0`.
    steps : int >= 0
        :math:`T`; later the value stays. With 0 there is no way to go, and it stays `initial`.
    final : float >= 0
        :math:`\eta_T`; it may be the larger one.
    power : float > 0
        :math:`p`.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * PyTorch: ``PolynomialLR(total_iters, power)`` ends at 0. ``LinearLR`` is that with power 1
      and factors of the optimizer's rate.
    * optax: ``polynomial_schedule`` has the same values.

    Examples
    --------
    >>> import onepass as op
    >>> schedule = op.schedules.polynomial(1.0, steps=4)
    >>> [schedule(step) for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    initial: float
    steps: int
    final: float = 0.0
    power: float = 1.0

    checks: ClassVar = {
        "initial": NON_NEGATIVE,
        "steps": Whole(),
        "final": NON_NEGATIVE,
        "power": Number(above=0.0),
    }

    def _value(self, step: int) -> float:
        left = 1 - progress(step, self.steps)
        return between(self.final, self.initial, left**self.power)


@dataclass(frozen=True)
class sutskever_momentum(BaseSchedule):
    r"""Momentum that grows towards 1 as training goes on: 0.5, 0.75, 0.833, ...

    .. math::

        \mu_t = \min\left(1 - 2^{-1 - \log_2(\lfloor t / 250 \rfloor + 1)},\ \mu_{\max}\right)
              = \min\left(1 - \frac{1}{2 (\lfloor t / 250 \rfloor + 1)},\ \mu_{\max}\right)

    Parameters
    ----------
    maximum : float in [0, 1)
        :math:`\mu_{\max}`. The paper tries 0.999, 0.995, 0.99, 0.9 and 0.

    Raises
    ------
    TypeError, ValueError
        If the maximum is out of range.

    Notes
    -----
    Differs from

    * The paper: it returns to 0.9 for the last 1,000 updates; `join` does that here.
    * PyTorch, Keras and optax have none.

    References
    ----------
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013, equation 5.

    Examples
    --------
    >>> import onepass as op
    >>> momentum = op.schedules.sutskever_momentum(0.9)
    >>> [momentum(step) for step in (0, 249, 250, 1_000, 10_000)]
    [0.5, 0.5, 0.75, 0.9, 0.9]
    """

    maximum: float = 0.99

    checks: ClassVar = {"maximum": DECAY_RATE}

    def _value(self, step: int) -> float:
        return min(1 - 0.5 / (step // 250 + 1), self.maximum)
