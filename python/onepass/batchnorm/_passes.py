"""The layer's passes in native code, and what a forward pass leaves for the backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._typing import Array
from onepass.batchnorm.reference import Float64

SMALL = ("float16", "bfloat16")
"""The dtypes of 16 bits that a layer of float32 takes."""

# Why there is no forward to go back through.
NONE_YET = "none"
OVERWROTE = "one that wrote over what it was given"
DONE = "one that has had its backward"
INTERRUPTED = "one that was interrupted, or its backward was"


@_core.native
def layer_train(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    num_batches_tracked: npt.NDArray[np.int64] | None,
    momentum: float | None,
    eps: float,
    axis: int,
    unbiased_running_var: bool,
    nonfinite: str,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    num_threads: int | None,
) -> tuple[Array, Float64, Float64]:
    """Do as `batch_norm_train`, and count the batch; without `momentum` all batches weigh alike."""


@_core.native
def layer_backward(
    dy: Array,
    x: Array,
    mean: Array,
    scale: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float | None,
    axis: int,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    weight_grad: Array | None,
    bias_grad: Array | None,
    num_threads: int | None,
) -> tuple[Array, ...]:
    """Do as `batch_norm_backward`, or with `eps` as `batch_norm_infer_backward`: `scale` is `var`.

    `weight_grad` and `bias_grad` take the gradients.
    """


@_core.native
def piece_moments(
    x: Array, axis: int, num_threads: int | None
) -> tuple[int, Float64, Float64, Float64]:
    """Return count, center, sum and square, as `Moments` has them."""


@_core.native
def piece_train(
    x: Array,
    count: int | None,
    center: Float64 | None,
    total: Float64 | None,
    square: Float64 | None,
    exchange: Callable[..., tuple[int, Float64, Float64, Float64]] | None,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    num_batches_tracked: npt.NDArray[np.int64] | None,
    momentum: float | None,
    eps: float,
    axis: int,
    unbiased_running_var: bool,
    nonfinite: str,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    num_threads: int | None,
) -> tuple[Array, Float64, Float64]:
    """Do as `layer_train` with the moments of the whole batch.

    They are given, or `exchange` takes those of `x`, when everything else has been checked, and
    returns those.
    """


@_core.native
def piece_gradient_sums(
    dy: Array,
    x: Array,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None,
    bias: Array | None,
    axis: int,
    relu: bool,
    residual: Array | None,
    num_threads: int | None,
) -> tuple[int, Float64, Float64]:
    """Return count, product and sum, as `GradientSums` has them."""


@_core.native
def piece_backward(
    dy: Array,
    x: Array,
    count: int | None,
    product: Float64 | None,
    total: Float64 | None,
    exchange: Callable[..., tuple[int, Float64, Float64]] | None,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None,
    bias: Array | None,
    axis: int,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    weight_grad: Array | None,
    bias_grad: Array | None,
    num_threads: int | None,
) -> tuple[Array, ...]:
    """Do as `layer_backward` with the sums of the whole batch, given or exchanged.

    The gradients of weight and bias are those of `x` alone, and 0 where the sums are given.
    """


def check_input(x: Array, axis: int, num_features: int, dtype: npt.DTypeLike) -> None:
    """Raise what is wrong with `x` for a layer; what is wrong for any, the native call says."""
    if not isinstance(x, np.ndarray):
        return
    if x.dtype != dtype and not (dtype == np.float32 and x.dtype.name in SMALL):
        raise TypeError(wrong_dtype("BatchNorm", x, dtype, SMALL if dtype == np.float32 else ()))
    if -x.ndim <= axis < x.ndim and x.shape[axis] != num_features:
        raise ValueError(f"x: expected {num_features} channels on axis {axis}, got shape {x.shape}")


def wrong_dtype(layer: str, x: Array, dtype: npt.DTypeLike, others: tuple[str, ...] = ()) -> str:
    """Return what to say of an `x` that has neither a layer's dtype nor one of the others."""
    last = f" or {others[-1]}" if others else ""
    expected = ", ".join(map(str, (dtype, *others[:-1]))) + last
    advice = f"pass x.astype(np.{dtype})"
    if x.dtype in (np.float32, np.float64):
        advice += f", or make the layer with {layer}(..., dtype=np.{x.dtype})"
    return f"x: expected the layer's dtype {expected}, got {x.dtype} ({advice})"


@dataclass(slots=True)
class Forward:
    """What a forward pass leaves for the backward pass. Nobody changes it.

    Frozen, it would take a microsecond to make, a seventh of a small forward and backward.
    """

    x: Array
    residual: Array | None
    mean: Array
    scale: Array
    eps: float | None
    """With it `scale` is a variance that was given, else the batch's 1 / standard deviation."""
    axis: int
    relu: bool
    shape: tuple[int, ...]
    """The shape of `x` in the forward pass: an array may be given another one."""
    left_out: npt.NDArray[np.bool_] | None = None
    """Where `x` does not count for the statistics."""
