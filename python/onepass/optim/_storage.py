"""The arrays that belong to a parameter, in the format that its group asks for."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass import formats
from onepass._extras import require
from onepass._memory import Order, compute_dtype, in_order, order_of, unraveled
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim._maker import MASTER, Maker

SMALL = 4096
"""Parameters with fewer elements keep their state in float32: less would save next to nothing."""


def check_format(state_format: str | None, params: Iterable[Array]) -> None:
    """Raise where these parameters cannot keep their state so."""
    if state_format is None:
        return
    if any(param.dtype == np.float64 for param in params):
        raise TypeError(
            f"state_format: expected None beside float64 parameters, got {state_format!r}"
        )
    if state_format == "bf16":
        require("formats", ml_dtypes="ml_dtypes")


def _format_of(make: Maker, state_format: str | None) -> str | None:
    """Return the format of a parameter's state in a group of this one."""
    return state_format if make.whole_size >= SMALL else None


def _dtype_of(own: str | None) -> np.dtype[Any] | None:
    return bfloat16() if own == "bf16" else None


def keep(values: Array, make: Maker, name: str, state_format: str | None, has_sign: bool) -> Any:
    """Return an array with these values, rounded to nearest, as state of this format is kept."""
    own = _format_of(make, state_format)
    if own == "q8":
        codes = _encoded(values, make.param, has_sign)
        return make(name, codes, np.uint8, codes.shape)
    return make(name, values, _dtype_of(own))


def _encoded(values: Array, param: Array, has_sign: bool) -> npt.NDArray[np.uint8]:
    """Return the 8-bit codes of these values, in the parameter's order."""
    in_place = in_order(np.asarray(values, np.float32), order_of(param))
    return formats.q8_encode(in_place, signed=has_sign)


def fresh(
    make: Maker,
    name: str,
    value: float,
    state_format: str | None,
    has_sign: bool,
    shape: tuple[int, ...] | None = None,
) -> Any:
    """Return such an array that is filled with a value; one of another shape has no format."""
    own = _format_of(make, state_format)
    if own != "q8":
        return make(name, value, _dtype_of(own), shape)
    if not value:
        return make(name, 0, np.uint8, (formats.q8_size(make.param.size),))
    values = np.broadcast_to(np.float32(value), make.param.shape)
    return keep(values, make, name, state_format, has_sign)


def opened(array: Any, param: Array, has_sign: bool, order: Any = None) -> Array:
    """Return what is kept, in the dtype that the rule computes with; it may be the array itself.

    `order` is that in which 8-bit codes stand, by default the parameter's.
    """
    if array.dtype == np.uint8:
        flat = formats.q8_decode(array, param.size, signed=has_sign)
        return unraveled(flat, param.shape, order or order_of(param))
    return np.asarray(array if array.dtype.itemsize > 2 else array.astype(np.float32))


@quiet
def laid_out_again(array: Any, param: Array, has_sign: bool, order: Order) -> Any:
    """Return what is kept, where it is 8-bit codes that stand in this order, in the parameter's."""
    if array is None or array.dtype != np.uint8 or order == order_of(param):
        return array
    return _encoded(opened(array, param, has_sign, order), param, has_sign)


def closed(
    values: Array,
    before: Any,
    random: Callable[[int], formats.Bits] | None = None,
    has_sign: bool = True,
) -> Any:
    """Return values in the format of the array they replace, rounded by these bits, or to nearest.

    `random` is asked for as many as there are elements.
    """
    if before.dtype.itemsize > 2:
        return values
    bits = None if random is None else random(values.size)
    if before.dtype == np.uint8:
        return formats.q8_encode(values, signed=has_sign, bits=bits)
    if bits is not None:
        bits = unraveled(bits, values.shape, order_of(values))
    return formats.narrow(values, before.dtype, bits)


def is_kept_as(array: Any, make: Maker, state_format: str | None) -> bool:
    """Return whether an array is already in this format."""
    itemsizes = {None: compute_dtype(make.param).itemsize, "bf16": 2, "q8": 1}
    return bool(array.dtype.itemsize == itemsizes[_format_of(make, state_format)])


def needs_master(param: Array, rounding: str) -> bool:
    """Return whether a parameter has a master in float32."""
    return rounding == "master" and param.dtype.itemsize == 2


def master_of(make: Maker) -> Array:
    """Return a master that begins with the parameter."""
    return make(MASTER, make.param)


def weights(param: Array, master: Array | None) -> Array:
    """Return the weights as the next step takes them: the master's, where nobody has changed them.

    The kernels do the same (`follow` in cpp/include/onepass/formats.hpp).
    """
    if master is None:
        return param if param.dtype.itemsize > 2 else param.astype(np.float32)
    return np.where(same_bits(formats.narrow(master, param.dtype), param), master, param)


def same_bits(a: Array, b: Array) -> npt.NDArray[np.bool]:
    """Return where two arrays of 16 bits hold the same; of NaN there are many, and one counts."""
    with np.errstate(invalid="ignore"):  # NaN that signal
        both_nan = np.isnan(a) & np.isnan(b)
    return np.asarray((a.view(np.uint16) == b.view(np.uint16)) | both_nan)


def shown(values: Sequence[Array], params: Sequence[Array]) -> list[Array]:
    """Return values as the parameters can hold them, rounded to nearest.

    To 16 bits by way of float32: where float64 lies within a part in 2**25 of the middle between
    two neighbours, the farther of them may be taken.
    """
    with np.errstate(all="ignore"):
        wide = [
            in_order(np.asarray(v, compute_dtype(p)), order_of(p))
            for v, p in zip(values, params, strict=True)
        ]
    return [
        value if value.dtype == param.dtype else formats.narrow(value, param.dtype)
        for value, param in zip(wide, params, strict=True)
    ]


def labels_with_copies(labels: Sequence[str], copies: Sequence[Any] | None) -> list[str]:
    """Return what messages call the parameters, and then those copies of them that there are."""
    pairs = zip(labels, copies or [None] * len(labels), strict=True)
    return [*labels, *(f"{label} (copy_to)" for label, copy in pairs if copy is not None)]


def bfloat16() -> np.dtype[Any]:
    """Return the dtype, which ml_dtypes brings."""
    require("formats", ml_dtypes="ml_dtypes")
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
