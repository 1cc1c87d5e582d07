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


def load(own: Mapping[str, npt.NDArray[Any]], state: Any, prefix: str = "") -> None:
    """Take what `BatchNorm.load_state_dict` is given into the layer's own arrays."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
    check_prefix(prefix)
    own = {prefix + name: array for name, array in own.items()}
    given = {name: value for name, value in state.items() if str(name).startswith(prefix)}
    if (count := f"{prefix}num_batches_tracked") in own:
        given.setdefault(count, np.zeros((), np.int64))
    if given.keys() != own.keys():
        found = sorted(given.keys() & state.keys(), key=str)
        raise KeyError(f"state: expected the keys {sorted(own)}, got {found}")
    values = []
    with np.errstate(all="ignore"):
        for name, array in own.items():
            value = _as_array(name, given[name])
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


def check_prefix(prefix: Any) -> None:
    """Raise an error if it is not a string."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string, got {type(prefix).__name__}")


def check_grads(
    grads: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    others: Mapping[str, Any],
) -> None:
    """Raise what is wrong with arrays that gradients are added to, as the native passes would."""
    seen = {name: array for name, array in others.items() if isinstance(array, np.ndarray)}
    for name, array in grads.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"{name}: expected the layer's dtype {dtype}, got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got shape {array.shape}")
        if not array.flags.writeable:
            raise ValueError(f"{name}: expected a writable array, got a read-only one")
        for other, taken in seen.items():
            if np.may_share_memory(array, taken):
                raise ValueError(f"{name}: expected memory of its own, got an overlap with {other}")
        seen[name] = array


def add(arrays: Iterable[npt.NDArray[Any]], terms: Iterable[npt.NDArray[Any]]) -> None:
    """Add to each array, in one call: Ctrl-C comes before all or after all."""
    plain = [np.asarray(array) for array in arrays]
    with np.errstate(all="ignore"):
        deque(map(np.add, plain, terms, plain), maxlen=0)


def _as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Return what NumPy reads of it; a tensor on a GPU, or in bfloat16, says why there is none."""
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"state['{name}']: expected an array or a tensor that NumPy reads, got "
            f"{type(value).__name__}: {error}"
        ) from error


def _check_fits(name: str, value: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
    """Raise what copying the value into the array would raise, or worse."""
    label = f"state['{name}']"
    if not np.can_cast(value.dtype, array.dtype, "same_kind"):
        raise TypeError(f"{label}: expected dtype {array.dtype}, got {value.dtype}")
    if value.shape != array.shape:
        raise ValueError(f"{label}: expected shape {array.shape}, got {value.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{label}: expected a writable array to load into, got a read-only one")
    if name.endswith(NEVER_NEGATIVE) and (value < 0).any():
        raise ValueError(f"{label}: expected values >= 0, got {value}")
    if name.endswith("num_batches_tracked") and value >= MOST_BATCHES:
        raise ValueError(f"{label}: expected a number of batches below 2**53, got {value}")
