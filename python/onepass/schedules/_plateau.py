"""The schedule with a memory: it falls when the validation error stops falling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from onepass._hyperparameters import NON_NEGATIVE, Checks, Choice, Maybe, Number, Whole, as_real
from onepass.schedules._base import BaseSchedule

_MEMORY: Checks = {
    "lr": NON_NEGATIVE,
    "reference": Maybe(Number(low=-math.inf)),
    "num_bad_epochs": Whole(),
    "cooldown_counter": Whole(),
}


@dataclass(eq=False)
class ReduceOnPlateau(BaseSchedule):
    r"""The learning rate times a factor after an epoch that did not help.

    Call `report` with the validation error after each epoch. With the defaults it is the course's
    rule: halve where the error is worse than the last,

    .. math:: \eta \leftarrow \tfrac{1}{2} \eta \quad\text{if}\quad E_k > E_{k-1}

    In general an epoch is bad, with :math:`\theta` the `threshold`,

    =========== ===================================================================
    ``compare`` an epoch with error :math:`E_k` is bad where
    =========== ===================================================================
    "last"      :math:`E_k > E_{k-1} + \theta |E_{k-1}|`
    "best"      not :math:`E_k < E^* - \theta |E^*|`, :math:`E^*` the best so far
    =========== ===================================================================

    and more than `patience` bad epochs in a row make it
    :math:`\eta \leftarrow \max(\gamma \eta, \eta_{\min})`.

    Parameters
    ----------
    lr : float >= 0
        The learning rate to begin with.
    factor : float in (0, 1)
        :math:`\gamma`.
    patience : int >= 0
        How many bad epochs in a row are let pass.
    threshold : float in [0, 1)
        :math:`\theta`, relative: what makes worse, or better, significant.
    cooldown : int >= 0
        Epochs after a reduction in which none is bad.
    min_lr : float >= 0
        :math:`\eta_{\min}`, at most `lr`.
    compare : {"last", "best"}
        What an error is compared with.

    Attributes
    ----------
    lr : float
        The learning rate as it is now.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Lower errors are better; report the negative of what is to grow. The first error has nothing to
    be worse than. A NaN or an infinity is bad, and no later error is compared with it.

    The memory is part of the optimizer's `state_dict` and of what it saves, also where the schedule
    stands in `warmup` or `join`. One schedule may serve several groups. Two of them are never
    equal: each is its own run's.

    Differs from

    * PyTorch: ``ReduceLROnPlateau`` has `compare` "best", factor 0.1, patience 10 and threshold
      1e-4 by default; it reduces rates that the optimizer holds, and not by less than `eps`.
    * optax: its ``contrib.reduce_on_plateau`` scales the updates, and averages the errors first.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> schedule = op.schedules.ReduceOnPlateau(0.1)
    >>> opt = op.SGD(np.ones(3), lr=schedule)
    >>> for error in (0.9, 0.5, 0.6, 0.55):
    ...     info = opt.step(np.ones(3))  # an epoch
    ...     schedule.report(error)
    ...     print(error, schedule.lr)
    0.9 0.1
    0.5 0.1
    0.6 0.05
    0.55 0.05
    """

    lr: float
    factor: float = 0.5
    patience: int = 0
    threshold: float = 0.0
    cooldown: int = 0
    min_lr: float = 0.0
    compare: Literal["last", "best"] = "last"
    reference: float | None = field(default=None, init=False, repr=False)
    num_bad_epochs: int = field(default=0, init=False, repr=False)
    cooldown_counter: int = field(default=0, init=False, repr=False)

    checks: ClassVar = {
        "lr": NON_NEGATIVE,
        "factor": Number(above=0.0, below=1.0),
        "patience": Whole(),
        "threshold": Number(below=1.0),
        "cooldown": Whole(),
        "min_lr": NON_NEGATIVE,
        "compare": Choice(("last", "best")),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: expected at most lr = {self.lr}, got {self.min_lr}")

    def _value(self, _step: int) -> float:
        return self.lr

    def report(self, error: float) -> None:
        """Take note of an epoch's validation error, and reduce the rate where it is time to.

        Parameters
        ----------
        error : float
            Lower is better. A NaN or an infinity is worse than anything.

        Raises
        ------
        TypeError
            If the error is not a number. Then nothing has changed.
        """
        number = as_real(error)
        if number is None:
            raise TypeError(f"error: expected a number, got {error!r}")
        error = number
        bad = self._is_bad(error)
        if self.compare == "last":
            self.reference = error if math.isfinite(error) else None
        elif not bad:
            self.reference = error
        self.num_bad_epochs = self.num_bad_epochs + 1 if bad else 0
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.lr = max(self.lr * self.factor, self.min_lr)
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    def _is_bad(self, error: float) -> bool:
        if not math.isfinite(error):
            return True
        if self.reference is None:
            return False
        margin = self.threshold * abs(self.reference)
        if self.compare == "last":
            return error > self.reference + margin
        return not error < self.reference - margin

    def state_dict(self) -> dict[str, Any]:
        """Return the memory, as a dictionary of numbers and None."""
        return {name: getattr(self, name) for name in _MEMORY}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a memory that `state_dict` returned; the arguments stay.

        Raises
        ------
        TypeError, ValueError
            If it is not one. Then nothing has changed.
        """
        if not isinstance(state_dict, Mapping) or state_dict.keys() != _MEMORY.keys():
            keys = ", ".join(_MEMORY)
            raise ValueError(f"state_dict: expected the keys {keys}, got {state_dict!r}")
        self.__dict__.update(
            {name: check(name, state_dict[name]) for name, check in _MEMORY.items()}
        )
