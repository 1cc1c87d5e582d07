"""Bounds of each element, and what a descent does at them."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from onepass._quiet import quiet
from onepass._typing import Array


class Box:
    """The lowest and the highest value that each element of an array may have."""

    def __init__(self, bounds: Any, shape: tuple[int, ...]) -> None:
        """Take pairs (low, high) for the elements in order, or arrays as `lb` and `ub`."""
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            self.low, self.high = (_like(bounds, name, shape) for name in ("lb", "ub"))
        else:
            low, high = _pairs(bounds, math.prod(shape))
            self.low, self.high = low.reshape(shape), high.reshape(shape)
        fits = (self.low <= self.high) & (self.low < math.inf) & (self.high > -math.inf)
        if not fits.all():
            at = int(np.argmin(fits))
            got = f"({self.low.flat[at]:g}, {self.high.flat[at]:g})"
            raise ValueError(f"bounds[{at}]: expected low <= high, got {got}")

    def project(self, x: Array) -> None:
        """Move each element of `x` that is outside to its nearest bound, in place."""
        np.clip(x, self.low, self.high, out=x)

    def inward(self, x: Array, grad: Array) -> Array:
        """Return the gradient with zeros where descending along it would leave the box at once."""
        outward = ((x <= self.low) & (grad > 0)) | ((x >= self.high) & (grad < 0))
        return np.where(outward, 0.0, grad)

    @quiet
    def way(self, x: Array, grad: Array) -> Array:
        """Return how far each element can go down the gradient: the projected gradient."""
        return x - np.clip(x - grad, self.low, self.high)


def _like(bounds: Any, name: str, shape: tuple[int, ...]) -> Array:
    value = np.asarray(getattr(bounds, name), np.float64)
    try:
        return np.broadcast_to(value, shape)
    except ValueError:
        expected = f"bounds.{name}: expected shape {shape}, that of x0"
        raise ValueError(f"{expected}, got {value.shape}") from None


def _pairs(bounds: Any, size: int) -> tuple[Array, Array]:
    if isinstance(bounds, np.ndarray):
        bounds = bounds.tolist()
    if not isinstance(bounds, Sequence):
        raise TypeError(f"bounds: expected a sequence of pairs (low, high), got {bounds!r}")
    if len(bounds) != size:
        expected = f"bounds: expected {size} pairs (low, high), one for each element of x0"
        raise ValueError(f"{expected}, got {len(bounds)}")
    low, high = np.full(size, -math.inf), np.full(size, math.inf)
    for at, pair in enumerate(bounds):
        if np.shape(pair) != (2,):
            raise TypeError(f"bounds[{at}]: expected a pair (low, high), got {pair!r}")
        for side, value in zip((low, high), pair, strict=True):
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, Real):
                    expected = f"bounds[{at}]: expected two numbers, or None for a side"
                    raise TypeError(f"{expected}, got {pair!r}")
                side[at] = value
    return low, high
