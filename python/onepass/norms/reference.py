"""Layer, RMS, group and instance normalisation in plain NumPy: what the kernels must equal.

All four normalise rows: what has a mean of its own, as an array of shape (rows, length). A row has
the part of a channel in the reference of batch normalisation, with a weight of 1 and a bias of 0;
the weights of its elements come after that.
"""

from typing import NamedTuple

import numpy as np

from onepass._typing import Array
from onepass.batchnorm import reference as batchnorm
from onepass.batchnorm.reference import SHRINK, SMALL_MAGNITUDE, Float64


class Rows(NamedTuple):
    """An array as rows, and the weights of each of their elements."""

    x: Array
    weight: Array
    bias: Array


def rows_of(x: Array, weight: Array, bias: Array) -> Rows:
    """Return the rows of layer and RMS normalisation: they have the weights' shape."""
    rows = x.reshape(-1, weight.size)
    return Rows(rows, *(np.broadcast_to(a.ravel(), rows.shape) for a in (weight, bias)))


def groups_of(x: Array, num_groups: int, weight: Array, bias: Array) -> Rows:
    """Return the rows of group normalisation; of instance normalisation, with a channel each."""
    rows = x.reshape(len(x) * num_groups, -1)
    along = (len(weight),) + (1,) * (x.ndim - 2)
    of_elements = (np.broadcast_to(a.reshape(along), x.shape) for a in (weight, bias))
    return Rows(rows, *(a.reshape(rows.shape) for a in of_elements))


@np.errstate(all="ignore")
def statistics(x: Array, eps: float, *, centered: bool = True) -> tuple[Float64, Float64]:
    """Return mean and 1 / the standard deviation of each row."""
    if centered:
        found = batchnorm.statistics(x.T, eps)
        return found.mean, found.invstd
    square = _mean_square(x, 1.0)
    small = SMALL_MAGNITUDE / np.sqrt(_mean_square(x, SMALL_MAGNITUDE))
    is_wide = ~np.isfinite(square) & (x.dtype == np.float64)
    return np.zeros(len(x)), np.where(is_wide, small, 1 / np.sqrt(square + eps))


def _mean_square(x: Array, unit: float) -> Float64:
    values = x.astype(np.float64) * unit
    mean: Float64 = (values * values).sum(axis=1) / x.shape[1]
    return mean


@np.errstate(all="ignore")
def normalize(rows: Rows, mean: Float64, invstd: Float64) -> Array:
    """Return y, as rows."""
    one, zero = np.ones(len(rows.x)), np.zeros(len(rows.x))
    normalized = batchnorm.normalize(rows.x.T, mean, invstd, one, zero).T
    y: Array = normalized * rows.weight + rows.bias
    return y


@np.errstate(all="ignore")
def backward(
    dy: Array, rows: Rows, mean: Float64, invstd: Float64, *, centered: bool = True
) -> tuple[Array, Float64, Float64]:
    """Return dx, and of each element what it adds to the gradients of its weight and bias."""
    dtype, length = rows.x.dtype, rows.x.shape[1]
    one, zero = np.ones(len(rows.x)), np.zeros(len(rows.x))
    normalized = batchnorm.normalize(rows.x.T.astype(np.float64), mean, invstd, one, zero).T
    upstream = dy.astype(np.float64)
    g = upstream * rows.weight
    first = g.sum(axis=1) if centered else np.zeros(len(g))
    second = (g * normalized).sum(axis=1)
    high, low = batchnorm._split(mean, dtype)
    slope = batchnorm._within(invstd * (second / length) / SHRINK, dtype)
    offset = batchnorm._within(first / length - low * slope, dtype)
    gain = batchnorm._narrow(invstd, dtype)
    counts = np.where(gain == 0, 0.0, 1.0)  # 0 times infinity would be a NaN
    slope, offset = (slope * counts).astype(dtype), (offset * counts).astype(dtype)
    shrunk = rows.x * dtype.type(SHRINK) - high[:, None]
    dx = (dy * rows.weight - (shrunk * slope[:, None] + offset[:, None])) * gain[:, None]
    return dx, upstream * normalized, upstream
