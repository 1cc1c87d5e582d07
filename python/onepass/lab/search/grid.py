"""The search that the course teaches: a log scale, then a finer grid around its best."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from onepass._hyperparameters import Number
from onepass._loss import to_loss
from onepass.lab.search.picture import draw_grid

_POSITIVE = Number(above=0.0)


class Trial(NamedTuple):
    """One training.

    Attributes
    ----------
    lr : float
        The learning rate.
    loss : float
        The loss after the training; infinite or NaN if it diverged.
    grid : str
        "coarse" or "fine".
    """

    lr: float
    loss: float
    grid: str


@dataclass(frozen=True)
class LearningRates:
    """What a search over learning rates found.

    Attributes
    ----------
    trials : tuple of Trial
        All trials, sorted by learning rate: the curve.
    """

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the smallest loss; among equal ones, that with the smallest rate."""
        return min(self.trials, key=_rank)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw the loss against the learning rate into a file, which needs ``onepass[plot]``."""
        draw_grid(self, path)


def learning_rate(
    train: Callable[[float], float],
    rates: Iterable[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    *,
    factors: Iterable[float] = (0.5, 2.0, 3.0),
    on_trial: Callable[[Trial], object] | None = None,
) -> LearningRates:
    r"""Try learning rates on a log scale, then finer ones around the best of them.

    With :math:`L(\eta)` the loss after a few epochs with the rate :math:`\eta`,

    .. math::

        \hat\eta = \arg\min_{\eta \in \mathrm{rates}} L(\eta), \qquad
        \eta^* = \arg\min \{L(\eta) : \eta \in \mathrm{rates} \cup
            \hat\eta \cdot \mathrm{factors}\}

    so that around 0.1 it tries 0.05, 0.2 and 0.3 by default.

    Parameters
    ----------
    train : callable
        Takes a learning rate, trains for a few epochs, each time anew from the same start, and
        returns the loss, best of the validation data. A loss that is not finite says that the
        training diverged; such a rate ranks last.
    rates : iterable of float > 0
        The coarse grid, at least one rate.
    factors : iterable of float > 0
        The finer grid, as multiples of the best rate; rounded to 12 digits. A rate that was
        already tried is not tried again.
    on_trial : callable, optional
        Is told each `Trial` as soon as it is done: to show progress, or to keep what was tried
        where a later training fails or is interrupted.

    Returns
    -------
    LearningRates

    Raises
    ------
    TypeError, ValueError
        If a rate or a factor is no such number, or `train` returns none; ValueError also where
        the training diverges with all rates of the coarse grid. What `train` raises comes out.

    Notes
    -----
    Where the best rate is an end of the coarse grid, the finer one reaches only a little beyond
    it: look at the curve, and search again with other rates.

    References
    ----------
    Y. Bengio, "Practical recommendations for gradient-based training of deep architectures",
    2012, arXiv:1206.5533, section 3.3 (why on a log scale, and then around the best).

    Examples
    --------
    Gradient descent on ``5 / 2 * w**2``, where a step with the rate 1 / 5 ends in the minimum:

    >>> import numpy as np
    >>> import onepass as op
    >>> def train(lr):
    ...     w = np.array([1.0])
    ...     opt = op.SGD(w, lr)
    ...     for _ in range(10):
    ...         info = opt.step(5 * w)
    ...     return 5 / 2 * w.item() ** 2
    >>> found = op.search.learning_rate(train)
    >>> found.best.lr
    0.2
    >>> [trial.lr for trial in found.trials]
    [0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 1.0]
    """
    coarse = _checked("rates", rates)
    finer = _checked("factors", factors)
    if not coarse:
        raise ValueError("rates: expected at least one, got none")
    tried: dict[float, Trial] = {}

    def run(rates: Iterable[float], grid: str) -> None:
        for lr in rates:
            if lr not in tried:
                tried[lr] = Trial(lr, to_loss("train", train(lr)), grid)
                if on_trial is not None:
                    on_trial(tried[lr])

    run(coarse, "coarse")
    best = min(tried.values(), key=_rank)
    if not math.isfinite(best.loss):
        raise ValueError(f"rates: expected one that does not diverge, got {coarse}")
    run([float(f"{best.lr * factor:.12g}") for factor in finer], "fine")  # 0.3 as 3 * 0.1
    return LearningRates(tuple(sorted(tried.values())))


def _checked(name: str, values: Iterable[float]) -> list[float]:
    return [_POSITIVE(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _rank(trial: Trial) -> tuple[float, float]:
    return (trial.loss if math.isfinite(trial.loss) else math.inf, trial.lr)
