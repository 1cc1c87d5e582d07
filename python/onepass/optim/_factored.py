"""State with numbers of rows, columns or axes, in NumPy: the kernels' sums and maxima once more.

The layouts are those of cpp/src/shapes.cpp, the order of the sums that of
cpp/include/onepass/factored.hpp.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepass._memory import Order
from onepass._typing import Array

MOST_OF_LINE, LEAST_LINES, LEAST_ELEMENTS, MOST_STRIPS, SUMS_AT_ONCE = 2048, 64, 16384, 64, 16

Shape = tuple[int, ...]


def shape_of(kind: str, shape: Shape) -> Shape:
    """Return the shape of a state of this kind for a parameter of this shape."""
    if kind == "param" or len(shape) < 2:
        return shape
    *batch, rows, columns = shape
    shapes = {"rows": (*batch, rows, 1), "columns": (*batch, 1, columns), "axes": (sum(shape),)}
    return shapes[kind]


@dataclass(frozen=True)
class _Matrix:
    """A parameter as (groups, lines, length, width) in the order of memory: see stored.hpp."""

    groups: int
    lines: int
    length: int
    width: int
    rows_along: bool

    @classmethod
    def of(cls, shape: Shape, order: Order) -> "_Matrix":
        *others, rows, columns = shape
        if order not in ("C", "F"):
            raise ValueError(f"param: expected C or F order, got its axes in the order {order}")
        batch = math.prod(others)
        if order == "F":
            return cls(1, columns, rows, batch, rows_along=False)
        if columns == 1:
            return cls(batch, 1, rows, 1, rows_along=False)
        return cls(batch, rows, columns, 1, rows_along=True)


def _padded(values: Array, axis: int, step: int) -> Array:
    """Return values whose axis is cut into parts of a length, with zeros at the end."""
    n = values.shape[axis]
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, -n % step)
    parts = np.pad(values, widths)
    return parts.reshape(*parts.shape[:axis], -1, step, *parts.shape[axis + 1 :])


def _in_order(values: Array, axis: int) -> Array:
    """Return sums along an axis, one number after the other."""
    return np.asarray(np.take(np.add.accumulate(values, axis=axis), -1, axis=axis))


def _in_lanes(values: Array, axis: int) -> Array:
    """Return sums along an axis, taken side by side and then added up in halves."""
    lanes = np.moveaxis(_in_order(_padded(values, axis, SUMS_AT_ONCE), axis), axis, -1)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def mean_squares(grad: Array, order: Any) -> tuple[Array, Array]:
    """Return the means of the squared gradients over each row and over each column, in double."""
    m = _Matrix.of(grad.shape, order)
    flat = np.square(grad.ravel(order=order).astype(np.float64))
    squares = flat.reshape(m.groups, m.lines, m.length, m.width)
    segment = min(m.length, max(1, MOST_OF_LINE // m.width))
    strip = max(LEAST_LINES, -(-LEAST_ELEMENTS // (segment * m.width)), -(-m.lines // MOST_STRIPS))
    strip = min(strip, m.lines)  # one strip, and no zeros to add
    segments = _padded(squares, 2, segment)
    sums = _in_lanes(segments, 3) if m.width == 1 else _in_order(segments, 3)
    along = _in_order(sums, 2) / m.length  # groups, lines, width
    across = _in_order(_in_order(_padded(squares, 1, strip), 2), 1) / m.lines
    rows, columns = (along, across) if m.rows_along else (across, along)
    return (
        rows.ravel().reshape(shape_of("rows", grad.shape), order=order),
        columns.ravel().reshape(shape_of("columns", grad.shape), order=order),
    )


def mean_of_rows(rows: Array, order: Any) -> Array:
    """Return the mean of the rows of each matrix, in double."""
    *batch, n, _ = rows.shape
    width = math.prod(batch) if order == "F" else 1
    values = rows.ravel(order=order).astype(np.float64)
    if width == 1:
        sums = _in_lanes(values.reshape(-1, n), 1)
    else:
        sums = _in_order(values.reshape(n, width), 0)
    return np.asarray((sums / n).reshape((*batch, 1, 1), order=order))


def smallest_of_axes(numbers: Array, shape: Shape) -> Array:
    """Return the smallest of the numbers of each element, of those of every axis."""
    smallest = np.full(shape, np.inf, numbers.dtype)
    for axis, own in enumerate(np.split(numbers, np.cumsum(shape)[:-1])):
        places = [1] * len(shape)
        places[axis] = -1
        smallest = np.minimum(smallest, own.reshape(places))
    return smallest


def largest_of_axes(values: Array) -> Array:
    """Return the largest value at each place along every axis, those of the first axis first."""
    axes = range(values.ndim)
    return np.concatenate([values.max(axis=tuple(a for a in axes if a != axis)) for axis in axes])
