"""The arrays that a parameter's settings ask for."""

from collections.abc import Mapping
from typing import Any

from onepass._memory import compute_dtype
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import _reference, _storage
from onepass.optim._maker import AVERAGE, SLOW, Allocator, Maker
from onepass.optim._row import ROWS, Row
from onepass.optim._settings import averages

Kept = tuple[Any, ...]
"""A parameter's arrays: the rule's in order, the average of the weights, their master in float32,
and Lookahead's slow weights; None where no setting has asked for one."""


@quiet
def arrange(
    rule: str,
    settings: Mapping[str, Any],
    param: Array,
    kept: Kept,
    steps: int,
    allocator: Allocator | None = None,
    whole_size: int | None = None,
) -> Kept:
    """Return the arrays that the settings ask for, those that are there already among them.

    The new arrays depend only on the old ones, the settings and the steps done. So a run that was
    saved and loaded before this call gets the same arrays as one that was not. `whole_size` is of
    the parameter that this one is a part of, if it is.
    """
    row, make = ROWS[rule], Maker(param, allocator, whole_size)
    _storage.check_format(settings["state_format"], [param])
    *state, average, master, slow = kept
    if not steps:  # there is nothing to keep; the settings of its first step say how it begins
        state = [None] * len(state)
    average = _average(average, make, settings) if averages(settings) else None
    if not _storage.needs_master(param, settings["rounding"]):
        master = None
    elif master is None:
        master = _storage.master_of(make)
    if settings["lookahead_every"] is None:
        slow = None
    elif slow is None:  # in the middle of a round: it is as if it began here
        slow = make(SLOW, _storage.weights(param, master))
    shapes = row.state_shapes(settings, param.shape)
    new = [
        _of_rule(row, k, make, array, settings, shape)
        for k, (array, shape) in enumerate(zip(state, shapes, strict=True))
    ]
    return (*new, average, master, slow)


def _average(average: Any, make: Maker, settings: Mapping[str, Any]) -> Any:
    dtype = _reference.average_dtype(compute_dtype(make.param), settings)
    if average is None:
        return make(AVERAGE, dtype=dtype)  # the first step writes it
    return average if average.dtype == dtype else make(AVERAGE, average, dtype)


def _of_rule(
    row: Row,
    k: int,
    make: Maker,
    array: Any,
    settings: Mapping[str, Any],
    shape: tuple[int, ...] | None,
) -> Any:
    """Return the k-th array of the rule in the format that the settings ask for.

    `shape` is that of a new one, None where the settings use none.
    """
    name, has_sign, param = row.states[k], row.has_sign[k], make.param
    state_format = None if row.in_full[k] else settings["state_format"]
    if array is None:
        if shape is None:
            return None
        start = row.start_values(settings)[k]
        return _storage.fresh(make, name, start, state_format, has_sign, shape)
    if _storage.is_kept_as(array, make, state_format):
        return array
    values = _storage.opened(array, param, has_sign)
    return _storage.keep(values, make, name, state_format, has_sign)
