"""Folding a BatchNorm with its running statistics into the layer before it."""

from typing import Any

import numpy as np

from onepass._typing import Array


def fold(
    weight: Array,
    bias: Array | None,
    axis: int,
    *,
    mean: Array,
    var: Array,
    eps: float,
    gamma: Array | None,
    beta: Array | None,
) -> tuple[Array, Array]:
    """Return new weight and bias of a layer whose output channels are on this axis of `weight`."""
    channels = len(mean)
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and not _is_floating(array):
            raise TypeError(f"{name}: expected an array of floating-point numbers, got {array!r}")
    if not -weight.ndim <= axis < weight.ndim or weight.shape[axis] != channels:
        raise ValueError(
            f"weight: expected {channels} output channels on axis {axis}, got shape {weight.shape}"
        )
    if bias is not None and np.shape(bias) != (channels,):
        raise ValueError(f"bias: expected shape ({channels},), got shape {np.shape(bias)}")
    along = [1] * weight.ndim
    along[axis] = channels
    with np.errstate(all="ignore"):
        scale = 1 / np.sqrt(var.astype(np.float64) + eps)
        if gamma is not None:
            scale = scale * gamma
        shift = (np.zeros(channels) if bias is None else bias) - mean.astype(np.float64)
        shift = shift * scale + (0 if beta is None else beta)
        folded = weight * scale.reshape(along)
        return folded.astype(weight.dtype), shift.astype(weight.dtype)


def _is_floating(array: Any) -> bool:
    return isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)
