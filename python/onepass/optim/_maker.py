"""What makes the arrays that belong to a parameter: NumPy, or a function of the user's."""

from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._memory import Order, compute_dtype, is_in_order, order_of, state_like
from onepass._typing import Array, StateAlloc

AVERAGE, MASTER, SLOW = "average", "master", "slow"
GATHERED = "accumulated"
"""What a parameter has beside the rule's own arrays: the average of the weights, the weights of a
parameter of 16 bits in float32, Lookahead's slow weights, the sum of gradients."""

Allocator = tuple[StateAlloc, str | int, str]
"""A user's function, and a parameter's key and label."""


class Maker:
    """Makes the arrays that belong to a parameter."""

    def __init__(
        self, param: Array, allocator: Allocator | None = None, whole_size: int | None = None
    ) -> None:
        self.param = param
        self.whole_size = param.size if whole_size is None else whole_size
        """The parameter's size, where `param` is a part of one."""
        self._allocator = allocator

    def __call__(
        self,
        name: str,
        values: npt.ArrayLike = 0.0,
        dtype: npt.DTypeLike | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Array:
        """Return a new array with these values: of the parameter's shape and order.

        By default it has the dtype that a step of this parameter computes in.
        """
        is_zero = np.isscalar(values) and not values
        if self._allocator is None:
            array = state_like(self.param, dtype=dtype, shape=shape)  # of zeros
        else:
            dtype = compute_dtype(self.param) if dtype is None else np.dtype(dtype)
            shape = self.param.shape if shape is None else shape
            order = order_of(self.param) if len(shape) == self.param.ndim else "C"
            array = _allocated(self._allocator, name, shape, dtype, order)
            is_zero = False
        if not is_zero:
            array[...] = values
        return array

    def loaded(
        self,
        name: str,
        values: Array,
        dtype: npt.DTypeLike | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Array:
        """Return an array that will have these values once a checkpoint is in force."""
        return self(name, values, dtype, shape)


class Refilling(Maker):
    """Takes the arrays that a parameter has where they fit, since a user's function made them.

    They are written last, when nothing can fail any more: `writes` has each with its values.
    """

    def __init__(
        self,
        param: Array,
        allocator: Allocator | None,
        there: dict[str, Array],
        writes: list[tuple[Array, Array]],
        whole_size: int | None = None,
    ) -> None:
        super().__init__(param, allocator, whole_size)
        self._there, self._writes = there, writes

    def loaded(
        self,
        name: str,
        values: Array,
        dtype: npt.DTypeLike | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Array:
        """Return an array that will have these values once a checkpoint is in force."""
        array = self._there.get(name)
        expected = compute_dtype(self.param) if dtype is None else np.dtype(dtype)
        like = self.param.shape if shape is None else shape
        if array is None or array.dtype != expected or array.shape != like:
            return super().loaded(name, values, dtype, shape)
        self._writes.append((array, values))
        return array


def _allocated(
    allocator: Allocator, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], order: Order
) -> Array:
    """Return what a user's function gives for an array, or raise where the kernels cannot take it.

    Whether it overlaps another is seen once all are there.
    """
    function, key, label = allocator
    got = function(f"{key}.{name}", shape, dtype)
    what = f"state_alloc{label}[{name!r}]"
    if not isinstance(got, np.ndarray):
        raise TypeError(f"{what}: expected a NumPy array, got {type(got).__name__}")
    if isinstance(got, np.ma.MaskedArray):
        raise TypeError(f"{what}: expected an array without a mask, got a masked array")
    if got.dtype != dtype:
        raise TypeError(f"{what}: expected dtype {dtype}, got {got.dtype}")
    if got.shape != shape:
        raise ValueError(f"{what}: expected shape {shape}, got {got.shape}")
    if not got.flags.writeable:
        raise ValueError(f"{what}: expected a writable array, got a read-only one")
    if not got.flags.aligned:
        raise ValueError(f"{what}: expected data aligned to its item size, got a misaligned array")
    if not is_in_order(got, order):
        has = f"{order} order" if isinstance(order, str) else f"the order {order} of axes"
        expected = f"an array in {has}, as its parameter"
        raise ValueError(f"{what}: expected {expected}, got strides {got.strides}")
    return np.asarray(got).view()  # whoever has the array itself cannot resize it then
