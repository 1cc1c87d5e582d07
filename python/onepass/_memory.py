"""Arrays that start where the kernels want them."""

import math
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


Order = Any
"""How the elements of an array without gaps stand in memory: "C", "F", or a list of the axes, that
of the farthest elements first."""


def order_of(array: Array) -> Order:
    """Return the order of an array without gaps."""
    if array.flags.c_contiguous:
        return "C"
    if array.flags.f_contiguous:
        return "F"
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def is_in_order(array: npt.NDArray[Any], order: Order) -> bool:
    """Return whether the elements stand in this order, without gaps."""
    if order == "F":
        return array.flags.f_contiguous
    return (array if order == "C" else array.transpose(order)).flags.c_contiguous


def raveled(array: npt.NDArray[Any], order: Order) -> npt.NDArray[Any]:
    """Return the elements in this order, as a vector."""
    if isinstance(order, str):
        return array.ravel(order=order)  # type: ignore[arg-type]
    return array.transpose(order).ravel()


def unraveled(flat: npt.NDArray[Any], shape: tuple[int, ...], order: Order) -> npt.NDArray[Any]:
    """Return an array of this shape, whose elements in this order are those of a vector."""
    if isinstance(order, str):
        return flat.reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]
    return flat.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def in_order(array: npt.NDArray[Any], order: Order) -> npt.NDArray[Any]:
    """Return an array whose elements stand in this order; it may be the same one."""
    if isinstance(order, str):
        return np.asarray(array, order=order)  # type: ignore[call-overload, no-any-return]
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def state_like(
    param: Array,
    value: float = 0.0,
    dtype: npt.DTypeLike | None = None,
    shape: tuple[int, ...] | None = None,
) -> Array:
    """Return a state array for a parameter: of its shape and order, by default of `compute_dtype`.

    It lies as many elements past a cache line as the parameter, so that one short first tile aligns
    every array of a step at once; but in 16 bits nothing is taken in tiles that begin there.
    """
    dtype = compute_dtype(param) if dtype is None else np.dtype(dtype)
    in_step = min(dtype.itemsize, param.dtype.itemsize) > 2
    past = address(param) * dtype.itemsize // param.dtype.itemsize % CACHE_LINE
    offset = past if in_step else 0
    shape = param.shape if shape is None else shape
    flat = aligned_zeros(math.prod(shape), dtype, offset=offset)
    if value:
        flat.fill(value)
    return unraveled(flat, shape, order_of(param) if len(shape) == param.ndim else "C")
