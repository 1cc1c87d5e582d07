"""Arrays that start where the kernels want them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array

CACHE_LINE = 64


def address(array: npt.NDArray[Any]) -> int:
    """Where the data of an array begins."""
    pointer: int = array.__array_interface__["data"][0]
    return pointer


def aligned_zeros(
    size: int, dtype: npt.DTypeLike = np.float32, *, offset: int = 0
) -> npt.NDArray[Any]:
    """Return a zeroed vector whose data begins `offset` bytes past a cache line.

    Large ones get the huge pages that NumPy asks for, and no memory until they are written.
    """
    nbytes = size * np.dtype(dtype).itemsize
    buffer = np.zeros(nbytes + CACHE_LINE, np.uint8)
    start = (offset - address(buffer)) % CACHE_LINE
    return buffer[start : start + nbytes].view(dtype)


def compute_dtype(param: Array) -> np.dtype[Any]:
    """Return the dtype that a step of this parameter computes in."""
    return param.dtype if param.dtype.itemsize > 2 else np.dtype(np.float32)


def state_like(param: Array, value: float = 0.0, dtype: npt.DTypeLike | None = None) -> Array:
    """Return a state array for a parameter: of its shape, order and offset from a cache line.

    With the same offset, one short first tile aligns every array of a step at once. The dtype is
    that which the step computes in.
    """
    order = "C" if param.flags.c_contiguous else "F"
    dtype = compute_dtype(param) if dtype is None else dtype
    offset = address(param) % CACHE_LINE if dtype == param.dtype else 0
    flat = aligned_zeros(param.size, dtype, offset=offset)
    if value:
        flat.fill(value)
    return flat.reshape(param.shape, order=order)  # type: ignore[call-overload, no-any-return]
