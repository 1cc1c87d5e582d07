"""Error surfaces over two parameters: the course's two, and four that every optimizer meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onepass._typing import Array

Point: TypeAlias = tuple[float, float]
Function: TypeAlias = Callable[[Array, Array], Array]
Slope: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
Rows: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False, kw_only=True)
class Surface:
    """A loss of two parameters, and how to look at it. All arguments go by keyword.

    Attributes
    ----------
    name : str
        What its files are called.
    function, slope : callable
        The loss, and its two partial derivatives, of two arrays of one shape.
    start : tuple of two floats
        Where the paths begin. On the surfaces here it is the course's, or the usual one of the
        literature.
    window : tuple of two pairs of floats
        What part of the plane to draw: low and high of each parameter.
    title, equation, note : str
        What stands above the picture, and below it: a sentence on what is to be seen.
    axes : tuple of two str
        What the parameters are called.
    minima : tuple of points
        Where the loss is at its lowest, which is 0 on all of the surfaces here.
    lr : float
        A learning rate for steps that are proportional to the gradient: SGD in all its forms.
    adaptive_lr : float
        One for steps about as long as the rate: AdaGrad and its heirs.
    rows : int
        How many rows of data the loss is a sum over; 0 for a formula.
    batch_slope : callable, optional
        The two partial derivatives of the sum over some rows alone, of two arrays and the rows'
        indices. A surface with data has it.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> ravine = op.surface.SURFACES["ravine"]
    >>> print(ravine.equation)
    L = (x² + 50 y²) / 2
    >>> float(ravine.loss((2, 1)))
    27.0
    >>> ravine.gradient((2, 1))
    array([ 2., 50.])
    >>> ravine.loss(np.zeros((30, 40, 2))).shape
    (30, 40)
    """

    name: str
    function: Function
    slope: Slope
    start: Point
    window: tuple[Point, Point]
    title: str = ""
    equation: str = ""
    note: str = ""
    axes: tuple[str, str] = ("x", "y")
    minima: tuple[Point, ...] = ()
    lr: float = 0.01
    adaptive_lr: float = 0.1
    rows: int = 0
    batch_slope: Callable[[Array, Array, Rows], tuple[Array, Array]] | None = None

    @property
    def heading(self) -> str:
        """What stands above a picture."""
        return ":  ".join(filter(None, (self.title or self.name, self.equation)))

    def loss(self, points: npt.ArrayLike) -> Array:
        """Return the loss at each point of an array of shape (..., 2), in shape (...)."""
        return self.function(*_coordinates(points))

    def gradient(self, points: npt.ArrayLike) -> Array:
        """Return the gradient at each point of an array of shape (..., 2), in that shape."""
        return np.stack(self.slope(*_coordinates(points)), axis=-1)

    def batch_gradient(self, points: npt.ArrayLike, rows: Rows) -> Array:
        """Return what these rows of the data say of the gradient: on average it is that of all.

        The sum over the rows is multiplied by the number of all rows per row of these.
        """
        assert self.batch_slope is not None
        part = np.stack(self.batch_slope(*_coordinates(points), rows), axis=-1)
        return part * (self.rows / len(rows))


def _coordinates(points: npt.ArrayLike) -> tuple[Array, Array]:
    array = np.asarray(points, dtype=float)
    return array[..., 0], array[..., 1]


# One neuron


def _neuron(inputs: Array, targets: Array, **fields: Any) -> Surface:
    """Return the surface of f(x) = 1 / (1 + exp(-(w x + b))) over these pairs."""
    all_rows = np.arange(len(inputs))

    def output(w: Array, b: Array) -> Array:
        return _sigmoid(w[..., None] * inputs + b[..., None])

    def loss(w: Array, b: Array) -> Array:
        error = targets - output(w, b)
        return np.asarray(0.5 * (error * error).sum(axis=-1))

    def batch_slope(w: Array, b: Array, rows: Rows) -> tuple[Array, Array]:
        f = output(w, b)[..., rows]
        delta = (f - targets[rows]) * f * (1 - f)
        return (delta * inputs[rows]).sum(axis=-1), delta.sum(axis=-1)

    return Surface(
        equation="L = ½ Σ (y - f(x))²,  f(x) = 1 / (1 + exp(-(w x + b)))",
        axes=("w", "b"),
        function=loss,
        slope=lambda w, b: batch_slope(w, b, all_rows),
        rows=len(inputs),
        batch_slope=batch_slope,
        start=(-2.0, -2.0),
        adaptive_lr=0.2,
        **fields,
    )


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * z))  # exp(-z) would overflow


def _course_neuron() -> Surface:
    inputs, targets = np.array([0.5, 2.5]), np.array([0.2, 0.9])
    logits = np.log(targets / (1 - targets))  # two points and two parameters: an exact fit
    w = (logits[1] - logits[0]) / (inputs[1] - inputs[0])
    return _neuron(
        inputs,
        targets,
        name="neuron",
        title="One neuron, two points",
        note="The start is on a plateau, where the gradient is small: steps in proportion to it "
        "crawl, and steps about as long as the rate do not.",
        window=((-4.0, 6.0), (-6.0, 4.0)),
        minima=((float(w), float(logits[0] - w * inputs[0])),),
        lr=1.0,
    )


def sparse_neuron(seed: int = 0) -> Surface:
    """Return the neuron's surface for 100 points of which 80 have x = 0.

    Parameters
    ----------
    seed : int >= 0
        Of the points: x from a standard normal distribution, 80 of them then set to 0. Their y
        are the outputs of the neuron with w = 2 and b = 1, so the loss there is 0.

    Returns
    -------
    Surface
        ``SURFACES["sparse"]`` is the one of seed 0.

    Examples
    --------
    >>> import onepass as op
    >>> float(op.surface.sparse_neuron(seed=3).loss((2, 1)))
    0.0
    """
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=100)
    inputs[rng.permutation(100)[:80]] = 0
    w, b = 2.0, 1.0
    return _neuron(
        inputs,
        _sigmoid(w * inputs + b),
        name="sparse",
        title="One neuron, 100 points, 80 of them with x = 0",
        note="Four of five points say nothing about w, so the gradient points along b; adaptive "
        "steps are as long in w.",
        window=((-4.0, 6.0), (-4.0, 6.0)),
        minima=((w, b),),
        lr=0.02,
    )


# Formulas

RAVINE_CURVATURE = 50.0

_FORMULAS = (
    Surface(
        name="ravine",
        title="Ravine",
        note="Across the valley the loss is 50 times as curved as along it, so the gradient points "
        "across: plain descent goes to and fro, and momentum adds up what points along.",
        equation=f"L = (x² + {RAVINE_CURVATURE:g} y²) / 2",
        axes=("x", "y"),
        function=lambda x, y: 0.5 * (x**2 + RAVINE_CURVATURE * y**2),
        slope=lambda x, y: (x, RAVINE_CURVATURE * y),
        start=(-5.0, 1.0),
        window=((-6.0, 6.0), (-4.0, 4.0)),
        minima=((0.0, 0.0),),
        lr=0.025,
        adaptive_lr=0.2,
    ),
    Surface(
        name="saddle",
        title="Saddle between two minima",
        note="All begin a hair beside the ridge, from where the gradient leads to the saddle and "
        "not past it. Who turns away early reaches a minimum first.",
        equation="L = x² / 2 + (y² - 1)² / 4",
        axes=("x", "y"),
        function=lambda x, y: 0.5 * x**2 + 0.25 * (y**2 - 1) ** 2,
        slope=lambda x, y: (x, y * (y**2 - 1)),
        start=(-1.5, 0.001),  # on the ridge but for a hair
        window=((-2.0, 2.0), (-2.0, 2.0)),
        minima=((0.0, -1.0), (0.0, 1.0)),
        lr=0.05,
        adaptive_lr=0.1,
    ),
    Surface(
        name="rosenbrock",
        title="Rosenbrock's valley",
        note="The curved valley is soon found. Its floor is nearly flat, so the way along it takes "
        "nearly all of the steps.",
        equation="L = (1 - x)² + 100 (y - x²)²",
        axes=("x", "y"),
        function=lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        slope=lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        start=(-1.2, 1.0),
        window=((-2.0, 2.0), (-1.0, 3.0)),
        minima=((1.0, 1.0),),
        lr=0.001,
        adaptive_lr=0.05,
    ),
)


def _beale() -> Surface:
    targets = (1.5, 2.25, 2.625)

    def residuals(x: Array, y: Array) -> list[Array]:
        return [target - x * (1 - y**power) for power, target in enumerate(targets, 1)]

    def loss(x: Array, y: Array) -> Array:
        return np.asarray(sum(residual**2 for residual in residuals(x, y)))

    def slope(x: Array, y: Array) -> tuple[Array, Array]:
        rows = list(enumerate(residuals(x, y), 1))
        by_x = sum(-2 * residual * (1 - y**power) for power, residual in rows)
        by_y = sum(2 * residual * x * power * y ** (power - 1) for power, residual in rows)
        return np.asarray(by_x), np.asarray(by_y)

    return Surface(
        name="beale",
        title="Beale's function",
        note="The walls are steep and the valley is flat: a rate that is safe on the walls is slow "
        "in the valley.",
        equation="L = (1.5 - x (1 - y))² + (2.25 - x (1 - y²))² + (2.625 - x (1 - y³))²",
        axes=("x", "y"),
        function=loss,
        slope=slope,
        start=(1.0, 1.0),
        window=((-1.0, 4.5), (-2.0, 2.0)),
        minima=((3.0, 0.5),),
        lr=0.01,
        adaptive_lr=0.2,
    )


SURFACES: Mapping[str, Surface] = {
    surface.name: surface for surface in (_course_neuron(), sparse_neuron(), *_FORMULAS, _beale())
}
"""All surfaces by name."""
