"""The iteration that brings a matrix near the orthogonal one of its singular vectors."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from onepass._typing import Array

_ORIGINAL, _MATCH_RMS_ADAMW = range(2)


def orthogonalize(directions: Sequence[tuple[Array, float, Mapping[str, float]]]) -> None:
    """Replace each array by the matrix that Muon steps along, times the ratio of its shape.

    Each comes with its Euclidean norm and Muon's hyperparameters, as numbers by name. The products
    are `numpy.matmul`'s, in the array's dtype, and this is the order of all operations::

        X = U / max(norm, eps)                    transposed if it has more rows than columns
        ns_steps times:
            A = X @ X.T
            B = (A @ A) * c + A * b, and a is added to its diagonal
            X = B @ X
        X * ratio                                 transposed back

    The products of all arrays share their memory: twice the largest matrix, and two squares.
    """
    work: dict[np.dtype, _Work] = {}
    for dtype in {direction.dtype for direction, _, _ in directions}:
        shapes = [_shape(each) for each, _, _ in directions if each.dtype == dtype]
        work[dtype] = _Work(shapes, dtype)
    for direction, norm, numbers in directions:
        below = float(direction.dtype.type(max(norm, numbers["eps"])))
        if below != 0:  # else it is all zeros, and stays so
            _orthogonalize(direction, below, numbers, work[direction.dtype])


class _Work:
    """The memory of the products."""

    def __init__(self, shapes: Sequence[tuple[int, int]], dtype: np.dtype) -> None:
        size = max(rows * columns for rows, columns in shapes)
        square = max(min(shape) ** 2 for shape in shapes)
        self._memory = [np.empty(n, dtype) for n in (size, size, square, square)]

    def matrices(self, m: int, n: int) -> list[Array]:
        """Return two matrices of m by n, and two of m by m."""
        shapes = [(m, n), (m, n), (m, m), (m, m)]
        pairs = zip(self._memory, shapes, strict=True)
        return [memory[: a * b].reshape(a, b) for memory, (a, b) in pairs]


def _shape(direction: Array) -> tuple[int, int]:
    """Return the rows and columns of an array that has elements: all dimensions but the first."""
    rows = direction.shape[0]
    return rows, direction.size // rows


def _orthogonalize(
    direction: Array, below: float, numbers: Mapping[str, float], work: _Work
) -> None:
    rows, columns = _shape(direction)
    matrix = direction.reshape(rows, columns)
    if is_tall := rows > columns:
        matrix = matrix.T
    x, y, gram, polynomial = work.matrices(*matrix.shape)
    diagonal = polynomial.reshape(-1)[:: len(polynomial) + 1]
    a, b, c = (numbers[f"ns_coefficient{i}"] for i in (1, 2, 3))
    np.divide(matrix, below, out=x)
    for _ in range(int(numbers["ns_steps"])):
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram, out=polynomial)
        polynomial *= c
        gram *= b
        polynomial += gram
        diagonal += a
        np.matmul(polynomial, x, out=y)
        x, y = y, x
    back = (x.T if is_tall else x).reshape(direction.shape)
    np.multiply(back, _ratio(numbers["adjust_lr_fn"], rows, columns), out=direction)


def _ratio(adjust_lr_fn: float, rows: int, columns: int) -> float:
    """Return what a matrix of this shape is multiplied by; NaN stands for None."""
    if adjust_lr_fn == _MATCH_RMS_ADAMW:
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
