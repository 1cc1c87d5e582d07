"""What is timed: the rules with their settings, BatchNorm's operations, and on which arrays."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from onepass._memory import aligned_zeros, state_like
from onepass._typing import Array
from onepass.optim import Optimizer, registry

Shape = tuple[int, ...]

NUMPY_OFFSET = 16
"""Bytes past a cache line at which NumPy's own large arrays start (glibc's header)."""


@dataclass(frozen=True)
class Case:
    """A class and the settings it is timed with."""

    cls: type[Optimizer]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> list[str | None]:
        """The rule's state arrays in order, None where these settings leave one out."""
        return self.cls.state_names(**self.settings)

    @property
    def n_states(self) -> int:
        return sum(name is not None for name in self.states)

    @property
    def n_small_states(self) -> int:
        """How many of them are kept in fewer bits where the state is."""
        kept = zip(self.states, self.cls.row.in_full, strict=True)
        return sum(name is not None and not in_full for name, in_full in kept)

    def accepts(self, options: Mapping[str, Any]) -> bool:
        """Whether these settings go with options of a step, which some rules refuse."""
        try:
            self.cls(np.ones((1, 1), np.float32), **self.settings, **options)
        except ValueError:
            return False
        return True

    @property
    def arrays_moved(self) -> int:
        """Reads the parameter, the gradient and the state; writes the parameter and the state.

        A pass before, for a direction, reads gradient and state, and the step reads what it wrote.
        """
        return 3 + 2 * self.n_states + self.is_directed * (3 + self.n_states)

    @property
    def is_directed(self) -> bool:
        """Whether a step is a matrix's."""
        return self.cls.row.is_directed({**self.cls.defaults, **self.settings})

    def takes(self, workload: "Workload") -> bool:
        """Whether these arrays are matrices, where they must be."""
        return not self.is_directed or all(len(shape) > 1 for shape in workload.shapes)

    def like_param(self, shape: Shape) -> list[bool]:
        """Which state a parameter of this shape has that is as large as itself."""
        values = {**self.cls.defaults, **self.settings}
        return [own == shape for own in self.cls.row.state_shapes(values, shape)]

    def passes_before(self, ndim: int) -> list[list[bool]]:
        """Which of parameter, gradient and states each pass before the step reads.

        Found out with the NumPy rule, of which what it measures changes with what it reads.
        """
        row, settings = self.cls.row, {**self.cls.defaults, **self.settings}
        shape = (8,) * ndim
        states = row.state_shapes(settings, shape)
        passes = []
        if any(kind == "rows" and own for kind, own in zip(row.shape, states, strict=True)):
            passes.append([False, True] + [False] * len(states))
        if row.measures(settings):
            passes.append(self._reads_to_measure([shape, shape, *states], settings))
        return passes

    def _reads_to_measure(
        self, shapes: Sequence[Shape | None], settings: Mapping[str, Any]
    ) -> list[bool]:
        row = self.cls.row
        remembered = dict(zip(row.memory, row.memory_start, strict=True))
        scalars = self.cls.scalars(2, {**settings, **remembered})
        numbers: dict[str, Any] = {name: scalars[name] for name in row.scalars}
        rng = np.random.default_rng(0)
        arrays: list[Any] = [shape and rng.random(shape) for shape in shapes]
        measured = self.cls.measure(*arrays, **numbers)

        def reads(k: int) -> bool:
            if arrays[k] is None or arrays[k].shape != arrays[0].shape:
                return False  # numbers of rows and columns are too few to count
            others = [*arrays[:k], rng.random(arrays[k].shape) - 0.5, *arrays[k + 1 :]]
            with np.errstate(invalid="ignore"):
                return not all(map(np.array_equal, measured, self.cls.measure(*others, **numbers)))

        return [reads(k) for k in range(len(arrays))]

    def elements_moved(self, workload: "Workload") -> int:
        """The same in elements; numbers of rows, columns or axes are too few to count."""
        return sum(
            math.prod(s)
            * (3 + 2 * sum(self.like_param(s)) + sum(map(sum, self.passes_before(len(s)))))
            for s in workload.shapes
        )

    def __str__(self) -> str:
        return " ".join([self.cls.__name__, *(f"{k}={v}" for k, v in self.settings.items())])


def cases(rules: Sequence[str] = tuple(registry)) -> list[Case]:
    """Every rule as it comes; and with state, or with a pass before, where it comes without."""
    chosen = []
    for rule in rules:
        cls = registry[rule]
        plain = Case(cls)
        variants = [Case(cls, settings) for settings in cls.cases]
        chosen.append(plain)
        if not plain.n_states:
            chosen += [case for case in variants if case.n_states][:1]
        if not plain.passes_before(2):
            chosen += [case for case in variants if case.passes_before(2)][:1]
    return chosen


@dataclass(frozen=True)
class Workload:
    """The shapes of the parameters of one step."""

    name: str
    shapes: Sequence[Shape]
    layout: str = ""
    """Where a batch has its channels."""

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def weights(self) -> list[Array]:
        return normal(self.shapes, 1.0, seed=1)

    def grads(self) -> list[Array]:
        return normal(self.shapes, 0.01, seed=2)


def normal(shapes: Sequence[Shape], scale: float, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    arrays = [aligned_zeros(math.prod(shape), offset=NUMPY_OFFSET) for shape in shapes]
    for array in arrays:
        rng.standard_normal(out=array, dtype=np.float32)
        np.multiply(array, np.float32(scale), out=array)
    return [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]


def mlp(*widths: int) -> Iterator[Shape]:
    """Weight and bias of each Linear layer."""
    for before, after in pairwise(widths):
        yield from [(after, before), (after,)]


def resnet50() -> Iterator[Shape]:
    """He et al. 2015, as torchvision has it."""

    def conv(after: int, before: int, size: int) -> Iterator[Shape]:
        yield from [(after, before, size, size), (after,), (after,)]  # with its batch norm

    yield from conv(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from conv(width, channels, 1)
            yield from conv(width, width, 3)
            yield from conv(4 * width, width, 1)
            if block == 0:
                yield from conv(4 * width, channels, 1)  # the shortcut
            channels = 4 * width
    yield from mlp(channels, 1000)


_RESNET50 = Workload("resnet50", tuple(resnet50()))
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("1e3", [(1_000,)]),
        Workload("1e5", [(100_000,)]),
        Workload("1e6", [(1_000_000,)]),
        Workload("3e7", [(30_000_000,)]),
        Workload("768x3072", [(768, 3072)]),
        # For rules that keep numbers of rows and columns.
        Workload("1e5-matrix", [(200, 500)]),
        Workload("3e7-matrix", [(5_000, 6_000)]),
        Workload("mlp", tuple(mlp(64, 64, 32, 32, 16, 10))),
        _RESNET50,
        Workload("resnet50-flat", [(_RESNET50.elements,)]),
    )
}


@dataclass(frozen=True)
class Operation:
    """One of BatchNorm's, by the name of the contenders' method."""

    name: str
    arrays_moved: int
    """As many of x's size as no way of computing it can do without."""

    def __str__(self) -> str:
        return self.name


OPERATIONS = (
    Operation("train", 2),  # reads x, writes y
    Operation("infer", 2),
    Operation("backward", 3),  # reads dy and x, writes dx
)


@dataclass(frozen=True)
class BatchArrays:
    """What BatchNorm is given, and `out` for what it returns."""

    x: Array
    dy: Array
    out: Array
    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    axis: int


class Batch(Workload):
    """One array to normalise."""

    @property
    def axis(self) -> int:
        return 1 if self.layout == "first" else -1

    def arrays(self) -> BatchArrays:
        (shape,) = self.shapes
        (x,), (dy,) = normal([shape], 1.0, seed=1), normal([shape], 0.01, seed=2)
        np.add(x, 1, out=x)  # a mean that a contender cannot forget
        weight, bias, mean, deviation = normal(4 * [(shape[self.axis],)], 1.0, seed=3)
        var = np.square(deviation, out=deviation)
        return BatchArrays(x, dy, state_like(x), weight, bias, mean, var, self.axis)


def batches(*shapes: Shape) -> list[Batch]:
    """Arrays of shape (N, C) or (N, C, H, W); those of images in both layouts."""
    chosen = []
    for n, channels, *image in shapes:
        name = "x".join(map(str, (n, channels, *image)))
        if image:
            chosen.append(Batch(name, [(n, channels, *image)], "first"))
            chosen.append(Batch(name, [(n, *image, channels)], "last"))
        else:
            chosen.append(Batch(name, [(n, channels)], "-"))
    return chosen


BATCHES = batches(
    (32, 64, 56, 56), (64, 64, 112, 112), (32, 256, 28, 28), (64, 512, 7, 7), (128, 1024)
)
