"""Batch normalisation in plain NumPy: what the kernels must equal.

What an element is multiplied with is computed in float64; the elements themselves are computed in
their own dtype, in the order written here, so that the kernels give the same bits wherever the
statistics are the same. Those are, for arrays in C order whose sums are exact; elsewhere the
order of the sums is another.

Every function takes the channels as the last axis: ``np.moveaxis(x, axis, -1)``.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._typing import Array

Float64 = npt.NDArray[np.float64]

MOST_SAMPLES = 16
SHRINK = 2.0**-4
"""x is made smaller, so that it stays finite when the mean is taken off."""
SMALL_MAGNITUDE = 2.0**-600
"""For float64 values whose squares would be infinite."""
MAX_TRIES = 3
"""As it comes, in other units, about a better center."""
MAX_OFF_CENTER = 1e4
"""In variances; where the first samples are farther from the mean, it takes their place."""


class Statistics(NamedTuple):
    """Of one batch, a value per channel."""

    mean: Float64
    var: Float64
    """Biased."""
    invstd: Float64


@np.errstate(all="ignore")  # an overflow leads to another try
def statistics(x: Array, eps: float) -> Statistics:
    """Return the statistics of a batch."""
    samples = x.reshape(-1, x.shape[-1]).astype(np.float64)
    magnitude = np.ones(x.shape[-1])
    shift = _first_mean(samples)  # near the mean, so that the squares lose nothing
    for _ in range(MAX_TRIES):
        found = _statistics(samples, magnitude, shift, eps)
        mean = found.mean * magnitude
        infinite = ~np.isfinite(found.var) & (magnitude == 1) & (x.dtype == np.float64)
        far = (mean - shift) ** 2 > MAX_OFF_CENTER * (found.var * magnitude * magnitude)
        if not (infinite | far).any():
            break
        magnitude = np.where(infinite, SMALL_MAGNITUDE, magnitude)
        first = _first_mean(samples * magnitude)
        shift = np.where(infinite, first, np.where(far, mean, shift))
    return found


def _statistics(samples: Float64, magnitude: Float64, shift: Float64, eps: float) -> Statistics:
    centered = samples * magnitude - shift
    delta = centered.sum(axis=0) / len(samples)
    square = np.maximum((centered * centered).sum(axis=0) / len(samples) - delta * delta, 0)
    var = square / magnitude / magnitude
    invstd = np.where(np.isinf(var), magnitude / np.sqrt(square), 1 / np.sqrt(var + eps))
    return Statistics((shift + delta) / magnitude, var, invstd)


def _first_mean(x: Float64) -> Float64:
    """Return the mean of the first samples: exactly themselves where they are equal."""
    count = min(MOST_SAMPLES, 1 << (len(x).bit_length() - 1))
    total = x[:count]
    while len(total) > 1:
        total = total[0::2] + total[1::2]
    mean: Float64 = total[0] / count
    return mean


def normalize(
    x: Array,
    mean: Float64,
    invstd: Float64,
    weight: Array,
    bias: Array,
    *,
    relu: bool = False,
    residual: Array | None = None,
) -> Array:
    """Return y."""
    _, y = _normalize(x, mean, invstd, weight, bias, residual)
    return np.where(y <= 0, 0, y).astype(x.dtype) if relu else y


def _normalize(
    x: Array, mean: Any, invstd: Any, weight: Array, bias: Array, residual: Array | None
) -> tuple[Array, Array]:
    """Return x without the mean's high part, shrunk, and y before ReLU."""
    high, low = _split(mean, x.dtype)
    scale = _within(weight.astype(np.float64) * (invstd / SHRINK), x.dtype)
    centered = x * x.dtype.type(SHRINK) - high
    y = centered * scale.astype(x.dtype) + _narrow(bias - low * scale, x.dtype)
    return centered, y if residual is None else y + residual


def backward(
    dy: Array,
    x: Array,
    mean: Float64,
    invstd: Float64,
    weight: Array,
    bias: Array,
    *,
    relu: bool = False,
    residual: Array | None = None,
    frozen: bool = False,
) -> tuple[Array, Float64, Float64, Array]:
    """Return dx, dweight, dbias and dresidual; `frozen`: the statistics are constants."""
    centered, y = _normalize(x, mean, invstd, weight, bias, residual)
    g = np.where(y <= 0, 0, dy).astype(x.dtype) if relu else dy
    magnitude = np.where((x.dtype == np.float64) & (invstd < 2.0**-500), SMALL_MAGNITUDE, 1.0)
    axes = tuple(range(x.ndim - 1))
    g64 = g.astype(np.float64)
    dbias = g64.sum(axis=axes)
    product = (g64 * (x.astype(np.float64) * magnitude - mean * magnitude)).sum(axis=axes)
    dweight = product * (invstd / magnitude)
    gain = _narrow(weight.astype(np.float64) * invstd, x.dtype)
    if frozen:
        return g * gain, dweight, dbias, g
    count = x.size // x.shape[-1]
    slope = _within(invstd / SHRINK * (dweight / count), x.dtype)
    offset = dbias / count - _split(mean, x.dtype)[1] * slope
    dx = (g - (centered * slope.astype(x.dtype) + _narrow(offset, x.dtype))) * gain
    return dx, dweight, dbias, g


def running(old: Array, new: Float64, momentum: float) -> Array:
    """Return the running statistic after a batch; what has no weight does not count."""
    terms = [
        w * value for w, value in ((1 - momentum, old.astype(np.float64)), (momentum, new)) if w
    ]
    moved: Array = sum(terms[1:], start=terms[0]).astype(old.dtype)
    return moved


def _split(mean: Float64, dtype: np.dtype[Any]) -> tuple[Array, Float64]:
    """Return the mean, shrunk, as a high part in this dtype and the rest.

    No rest where the high part is subnormal: x is rounded just so.
    """
    high = (mean * SHRINK).astype(dtype)
    normal = np.abs(high) >= np.finfo(dtype).smallest_normal
    return high, np.where(normal, mean * SHRINK - high.astype(np.float64), 0)


def _within(values: Float64, dtype: np.dtype[Any]) -> Float64:
    """Return the values within the range of this dtype; an infinity times 0 would be a NaN."""
    most = float(np.finfo(dtype).max)
    clipped: Float64 = np.clip(values, -most, most)
    return clipped


def _narrow(values: Float64, dtype: np.dtype[Any]) -> Array:
    narrow: Array = _within(values, dtype).astype(dtype)
    return narrow
