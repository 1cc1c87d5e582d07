"""Writing into the arrays of a layer: what a `state_dict` has, checked, and all in one call."""

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NEVER_NEGATIVE = ("running_var", "num_batches_tracked")
MOST_BATCHES = 2**53
"""More are not counted: up to here the float64 1 / count is exact in the count."""


def load(own: Mapping[str, npt.NDArray[Any]], state: Any) -> None:
    """Take what `BatchNorm.load_state_dict` is given into the layer's own arrays."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
    given = dict(state)
    if "num_batches_tracked" in own:
        given.setdefault("num_batches_tracked", np.zeros((), np.int64))
    if given.keys() != own.keys():
        raise KeyError(f"state: expected the keys {sorted(own)}, got {sorted(state)}")
    values = []
    with np.errstate(all="ignore"):
        for name, array in own.items():
            value = np.asarray(given[name])
            _check_fits(name, value, array)
            values.append(np.array(value, array.dtype))
            if (np.isfinite(value) & ~np.isfinite(values[-1])).any():
                lost = f"values beyond the range of {array.dtype} become infinite"
                warnings.warn(f"state['{name}']: {lost}", RuntimeWarning, stacklevel=3)
    write(own.values(), values)


def write(arrays: Iterable[npt.NDArray[Any]], values: Iterable[Any]) -> None:
    """Write what fits into each array, in one call: Ctrl-C comes before all or after all."""
    plain = [np.asarray(array) for array in arrays]  # or a subclass would run code of its own
    deque(map(np.copyto, plain, values), maxlen=0)


def _check_fits(name: str, value: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
    """Raise what copying the value into the array would raise, or worse."""
    label = f"state['{name}']"
    if not np.can_cast(value.dtype, array.dtype, "same_kind"):
        raise TypeError(f"{label}: expected dtype {array.dtype}, got {value.dtype}")
    if value.shape != array.shape:
        raise ValueError(f"{label}: expected shape {array.shape}, got {value.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{label}: expected a writable array to load into, got a read-only one")
    if name in NEVER_NEGATIVE and (value < 0).any():
        raise ValueError(f"{label}: expected values >= 0, got {value}")
    if name == "num_batches_tracked" and value >= MOST_BATCHES:
        raise ValueError(f"{label}: expected a number of batches below 2**53, got {value}")
