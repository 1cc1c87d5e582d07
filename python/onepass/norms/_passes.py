"""The passes in native code, and the checks of what they are given as numbers."""

from operator import index
from typing import Any

from onepass import _core
from onepass._hyperparameters import Whole
from onepass._typing import Array
from onepass.batchnorm.functional import CHECKS

Shape = tuple[int, ...]


@_core.native
def row_norm(
    x: Array,
    normalized_shape: Shape | None,
    num_groups: int | None,
    centered: bool,
    weight: Array | None,
    bias: Array | None,
    eps: float | None,
    out: Array | None,
    num_threads: int | None,
) -> Any:
    """Normalise what has a mean of its own: `normalized_shape`, or a group of channels.

    Without either, that is each channel. Without `centered` the mean is 0, and not returned.
    """


@_core.native
def row_norm_backward(
    dy: Array,
    x: Array,
    normalized_shape: Shape | None,
    num_groups: int | None,
    centered: bool,
    saved_mean: Array | None,
    saved_invstd: Array,
    weight: Array | None,
    out: Array | None,
    weight_grad: Array | None,
    bias_grad: Array | None,
    num_threads: int | None,
) -> Any:
    """Return the gradients; `weight_grad` and `bias_grad` take theirs."""


def check_shape(value: Any) -> Shape:
    """Return `normalized_shape`, an integer or several, as a tuple."""
    sizes = value if isinstance(value, tuple | list) else (value,)
    try:
        shape = tuple(map(index, sizes))
    except TypeError:
        shape = ()
    if not shape or any(isinstance(size, bool) for size in sizes):
        raise TypeError(
            f"normalized_shape: expected an integer or a tuple of integers, got {value!r}"
        )
    if min(shape) < 1:
        raise ValueError(f"normalized_shape: expected integers >= 1, got {value!r}")
    return shape


def check_groups(value: Any) -> int:
    """Return `num_groups`, checked."""
    return Whole(low=1, below=2**31)("num_groups", value)


def check_eps(value: Any) -> float:
    """Return `eps`, checked."""
    return float(CHECKS["eps"]("eps", value))
