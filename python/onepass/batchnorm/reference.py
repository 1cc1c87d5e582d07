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
"""For float64 values whose squares, or products with another's, would be infinite."""
MAX_TRIES = 3
"""As it comes, in other units, about a better center."""
MAX_OFF_CENTER = 49
"""In variances; where the first samples are farther from the mean, it takes their place."""
MAX_CENTER = 2.0**800
"""About which a float32 value's product with another is finite."""


class Statistics(NamedTuple):
    """The statistics of one batch, a value per channel."""

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
    total, squares = centered.sum(axis=0), (centered * centered).sum(axis=0)
    count = float(len(samples))
    square = np.maximum((count * squares - total * total) / (count * count), 0)
    var = square / magnitude / magnitude
    invstd = np.where(np.isinf(var), magnitude / np.sqrt(square), 1 / np.sqrt(var + eps))
    return Statistics(_mean_about(shift, total, count) / magnitude, var, invstd)


def _mean_about(center: Float64, total: Float64, count: float) -> Float64:
    """Return the mean from a sum about a center, with what two roundings lost put back."""
    delta = total / count
    mean = center + delta
    moved = mean - center
    large = (2.0**27 + 1) * delta
    high = large - (large - delta)  # the first half of its digits, whose product is exact
    of_division = ((total - high * count) - (delta - high) * count) / count
    of_addition = (center - (mean - moved)) + (delta - moved)
    lost = of_addition + of_division
    return np.where(np.isnan(lost), mean, mean + lost)


def _first_mean(x: Float64) -> Float64:
    """Return the mean of the first samples: exactly themselves where they are equal."""
    count = min(MOST_SAMPLES, 1 << (len(x).bit_length() - 1))
    total = x[:count]
    while len(total) > 1:
        total = total[0::2] + total[1::2]
    mean: Float64 = total[0] / count
    return mean


@np.errstate(all="ignore")
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
    scale = _within(weight.astype(np.float64) * invstd / SHRINK, x.dtype)
    centered = x * x.dtype.type(SHRINK) - high
    y = centered * scale.astype(x.dtype) + _narrow(bias - low * scale, x.dtype)
    return centered, y if residual is None else y + residual


@np.errstate(all="ignore")
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
    sums = _gradients(g, x, mean, invstd)
    gain = _narrow(weight.astype(np.float64) * invstd, x.dtype)
    if frozen:
        return g * gain, sums.weight, sums.bias, g
    slope = _within(invstd * sums.mean_weight / SHRINK, x.dtype)
    offset = _within(sums.mean_bias - _split(mean, x.dtype)[1] * slope, x.dtype)
    counts = np.where(gain == 0, 0.0, 1.0)  # 0 times infinity would be a NaN
    slope, offset = (slope * counts).astype(x.dtype), (offset * counts).astype(x.dtype)
    dx = (g - (centered * slope + offset)) * gain
    return dx, sums.weight, sums.bias, g


class _Gradients(NamedTuple):
    """The gradients of weight and bias, also divided by the number of elements of a channel."""

    weight: Float64
    bias: Float64
    mean_weight: Float64
    mean_bias: Float64


def _gradients(g: Array, x: Array, mean: Float64, invstd: Float64) -> _Gradients:
    is_double = x.dtype == np.float64
    magnitude = np.where(is_double & (invstd < 2.0**-500), SMALL_MAGNITUDE, 1.0)
    center = mean
    if not is_double:
        center = np.where(np.isfinite(mean), np.clip(mean, -MAX_CENTER, MAX_CENTER), mean)
    found = _gradients_in_units(g, x, center, invstd, magnitude, 1.0)
    finite = np.isfinite(found.weight) & np.isfinite(found.bias)
    if finite.all() or not is_double:
        return found
    small = np.full_like(magnitude, SMALL_MAGNITUDE)
    again = _gradients_in_units(g, x, mean, invstd, small, SMALL_MAGNITUDE)
    return _Gradients(*(np.where(finite, *pair) for pair in zip(found, again, strict=True)))


def _gradients_in_units(
    g: Array, x: Array, center: Float64, invstd: Float64, magnitude: Float64, unit: float
) -> _Gradients:
    """Sum the gradients, x times `magnitude` and g times `unit`."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    upstream = g.astype(np.float64) * unit
    bias = upstream.sum(axis=axes)
    product = (upstream * (x.astype(np.float64) * magnitude - center * magnitude)).sum(axis=axes)
    weight = np.where(
        (unit == 1) | (abs(invstd) < 1),
        product * (invstd / magnitude),
        product * invstd / magnitude,  # in the order that leaves the range last
    )
    return _Gradients(weight / unit, bias / unit, weight / count / unit, bias / count / unit)


@np.errstate(all="ignore")
def running(old: Array, new: Float64, momentum: float) -> Array:
    """Return the running statistic after a batch; a term with weight 0 is left out, even a NaN."""
    terms = [
        w * value for w, value in ((1 - momentum, old.astype(np.float64)), (momentum, new)) if w
    ]
    moved: Array = sum(terms[1:], start=terms[0]).astype(old.dtype)
    return moved


def _split(mean: Float64, dtype: np.dtype[Any]) -> tuple[Array, Float64]:
    """Return the mean, shrunk, as a high part in this dtype and the rest.

    No rest where the high part is subnormal: x is rounded just so.
    """
    whole = np.asarray(mean * SHRINK)
    most = float(np.finfo(dtype).max) / 2  # so that x less it is finite
    high = np.clip(whole, -most, most).astype(dtype)
    normal = np.abs(high) >= np.finfo(dtype).smallest_normal
    rest = (whole - high.astype(np.float64)) + (mean - mean)  # an infinite mean shows
    return high, np.where(normal, rest, 0)


def _within(values: Float64, dtype: np.dtype[Any]) -> Float64:
    """Return the values within the range of this dtype; an infinity times 0 would be a NaN."""
    most = float(np.finfo(dtype).max)
    clipped: Float64 = np.clip(values, -most, most)
    return clipped


def _narrow(values: Float64, dtype: np.dtype[Any]) -> Array:
    narrow: Array = _within(values, dtype).astype(dtype)
    return narrow
