"""What a step reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from onepass._typing import Array


class ParamStats(NamedTuple):
    """What a step with ``stats=True`` reports of one parameter.

    The norms are Euclidean and computed in double. They are the same bits for any number of threads
    and on every instruction set.

    Attributes
    ----------
    grad_norm : float
        The norm of the gradient, after the division by `grad_scale` and before clipping.
    grad_zero_fraction : float
        The share of the gradient's elements that are exactly 0.
    update_norm : float
        The norm of what the step has added to the parameter, weight decay and all other stages
        included; 0 where the step was skipped.
    param_norm : float
        The norm of the parameter after the step.
    update_ratio : float
        `update_norm` / `param_norm`; 0 where the parameter has not moved.
    """

    grad_norm: float
    grad_zero_fraction: float
    update_norm: float
    param_norm: float
    update_ratio: float


class Stats(Mapping[str | int, ParamStats]):
    """What a step reports of each parameter, by its key."""

    __slots__ = ("_rows", "_values")

    def __init__(self, keys: Sequence[str | int]) -> None:
        self._rows = {key: row for row, key in enumerate(keys)}
        self._values = np.empty((len(keys), len(ParamStats._fields)))

    def __getitem__(self, key: str | int) -> ParamStats:
        """Return what the step reports of one parameter."""
        return ParamStats(*self._values[self._rows[key]].tolist())

    def __iter__(self) -> Iterator[str | int]:
        """Iterate over the keys."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return how many parameters had a gradient."""
        return len(self._rows)

    def __repr__(self) -> str:
        """Return what a dictionary of them shows."""
        return repr(dict(self))


def new_stats(keys: Sequence[str | int]) -> tuple[Stats, Array]:
    """Return the mapping for these parameters, and the array behind it, which a step fills."""
    stats = Stats(keys)
    return stats, stats._values


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes
    ----------
    step : int
        How many steps the optimizer has completed, this one included.
    lr : float
        The learning rate it used (of the first of `param_groups`).
    grad_norm : float or None
        The norm of all gradients together, after the division by `grad_scale` and before clipping.
        None where neither `max_grad_norm`, `max_grad_norm_each`, `skip_grad_norm` nor `nonfinite`
        asks for it.
    clipped : bool
        Whether `max_grad_norm` or `max_grad_norm_each` made a gradient smaller.
    skipped : bool
        Whether the step was left out: everything is as it was, but for gradients that are zeroed.
    d : float or None
        `Prodigy`'s estimate after the step; of other optimizers None.
    skip_reason : {None, "nonfinite", "grad_norm"}
        Why the step was left out: a gradient was not finite, or `grad_norm` was above
        `skip_grad_norm`. None where it was taken.
    stats : mapping of `ParamStats`, or None
        Only with ``stats=True``: from the key in `state_dict` of each parameter that had a gradient
        to what the step did to it.
    """

    step: int
    lr: float
    grad_norm: float | None = None
    clipped: bool = False
    skipped: bool = False
    d: float | None = None
    skip_reason: Literal["nonfinite", "grad_norm"] | None = None
    stats: Mapping[str | int, ParamStats] | None = None
