"""Who is timed in BatchNorm: onepass, and the rulers it is held against.

A contender is built from an operation and a batch's arrays; its `step` does the operation once,
writes y or dx to an array that is there, and returns what onepass' function returns.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

import onepass as op
from onepass import runtime
from onepass._memory import state_like
from onepass._typing import Array
from onepass.lab.bench.contenders import copy_limit, torch
from onepass.lab.bench.timing import Step
from onepass.lab.bench.workloads import Batch, BatchArrays, Operation, normal

EPS = 1e-5
MOMENTUM = 0.1
"""onepass' defaults, and PyTorch's."""


class Onepass:
    """The functions, as a user calls them."""

    def __init__(self, operation: Operation, arrays: BatchArrays) -> None:
        self.arrays, self.axis = arrays, arrays.axis
        self.running = (self.arrays.running_mean, self.arrays.running_var)
        _, self.mean, self.invstd = self.train()
        self.step: Step = getattr(self, operation.name)

    def train(self) -> tuple[Array, ...]:
        a = self.arrays
        return op.batch_norm_train(
            a.x,
            weight=a.weight,
            bias=a.bias,
            running_mean=self.running[0],
            running_var=self.running[1],
            axis=self.axis,
            out=a.out,
        )

    def infer(self) -> Array:
        a = self.arrays
        return op.batch_norm_infer(
            a.x,
            mean=self.running[0],
            var=self.running[1],
            weight=a.weight,
            bias=a.bias,
            axis=self.axis,
            out=a.out,
        )

    def backward(self) -> tuple[Array, ...]:
        a = self.arrays
        return op.batch_norm_backward(
            a.dy,
            a.x,
            saved_mean=self.mean,
            saved_invstd=self.invstd,
            weight=a.weight,
            bias=a.bias,
            axis=self.axis,
            out=a.out,
        )


class CopyLimit:
    """As many bytes read and written as no way of computing it can do without; nothing computed."""

    def __init__(self, operation: Operation, arrays: BatchArrays) -> None:
        # The kernel moves three arrays, so to move two it gets two thirds of the elements.
        shape = (arrays.x.size * operation.arrays_moved // 3,)
        (self.values,), (zeros,) = normal([shape], 1.0, seed=1), normal([shape], 0.0, seed=2)
        self.step = copy_limit([self.values], [zeros], [()])


class NumPy:
    """The textbook's formulas in float32, by a user who has the patience for `out=`."""

    def __init__(self, operation: Operation, arrays: BatchArrays) -> None:
        self.arrays = a = arrays
        self.scratch = state_like(a.x)
        channel = [1] * a.x.ndim
        channel[a.axis] = -1
        self.running = (a.running_mean, a.running_var)
        # Views that broadcast against x.
        views = [array.reshape(channel) for array in (a.weight, a.bias, *self.running)]
        self.weight, self.bias, self.running_mean, self.running_var = views
        self.axes = tuple(axis for axis, length in enumerate(channel) if length == 1)
        self.count = np.float32(a.x.size // a.weight.size)
        self.train()
        self.step: Step = getattr(self, operation.name)

    def train(self) -> tuple[Array, ...]:
        x, y = self.arrays.x, self.arrays.out
        self.mean = np.mean(x, axis=self.axes, keepdims=True)
        np.subtract(x, self.mean, out=y)
        np.multiply(y, y, out=self.scratch)
        var = np.mean(self.scratch, axis=self.axes, keepdims=True)
        self.invstd = 1 / np.sqrt(var + EPS)
        np.multiply(y, self.invstd * self.weight, out=y)
        np.add(y, self.bias, out=y)
        unbiased = var * (self.count / (self.count - 1))
        self.running_mean += MOMENTUM * (self.mean - self.running_mean)
        self.running_var += MOMENTUM * (unbiased - self.running_var)
        return y, self.mean.ravel(), self.invstd.ravel()

    def infer(self) -> Array:
        x, y = self.arrays.x, self.arrays.out
        scale = self.weight / np.sqrt(self.running_var + EPS)
        np.multiply(x, scale, out=y)
        out: Array = np.add(y, self.bias - self.running_mean * scale, out=y)
        return out

    def backward(self) -> tuple[Array, ...]:
        dy, dx, normalized = self.arrays.dy, self.arrays.out, self.scratch
        np.subtract(self.arrays.x, self.mean, out=normalized)
        np.multiply(normalized, self.invstd, out=normalized)
        np.multiply(dy, normalized, out=dx)
        dweight = np.sum(dx, axis=self.axes, keepdims=True)
        dbias = np.sum(dy, axis=self.axes, keepdims=True)
        np.multiply(normalized, dweight / self.count, out=normalized)
        np.subtract(dy, normalized, out=dx)
        np.subtract(dx, dbias / self.count, out=dx)
        np.multiply(dx, self.weight * self.invstd, out=dx)
        return dx, dweight.ravel(), dbias.ravel()


class Torch:
    """PyTorch's own functions below `torch.nn.BatchNorm`, without autograd."""

    def __init__(self, operation: Operation, arrays: BatchArrays) -> None:
        torch.set_num_threads(runtime.get_num_threads())
        a = arrays
        # (N, C, H, W) in shape; in memory what they are, so (N, H, W, C) becomes channels_last.
        self.x, self.dy, self.out = (
            tensor(np.moveaxis(array, a.axis, 1)) for array in (a.x, a.dy, a.out)
        )
        channel = (a.weight, a.bias, a.running_mean, a.running_var)
        self.weight, self.bias, *self.running = (torch.from_numpy(array) for array in channel)
        self.saved = [torch.empty_like(self.weight) for _ in range(2)]
        self.unsaved = [torch.empty(0) for _ in range(2)]
        self.train()
        self.step: Step = getattr(self, operation.name)

    def train(self) -> tuple[Any, ...]:
        return self._forward(True, self.saved)

    def infer(self) -> Any:
        y, *_ = self._forward(False, self.unsaved)
        return y

    def _forward(self, training: bool, saved: list[Any]) -> tuple[Any, ...]:
        affine, out = (self.weight, self.bias), (self.out, *saved)
        found: tuple[Any, ...] = torch.native_batch_norm(
            self.x, *affine, *self.running, training, MOMENTUM, EPS, out=out
        )
        return found

    def backward(self) -> tuple[Any, ...]:
        # The one with out= calls this one, and copies what it returns.
        found: tuple[Any, ...] = torch.ops.aten.native_batch_norm_backward(
            self.dy, self.x, self.weight, *self.running, *self.saved, True, EPS, [True] * 3
        )
        return found


def tensor(array: Array) -> Any:
    """The same memory; PyTorch does not know NumPy's bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def in_16_bits(arrays: BatchArrays, dtype: Any) -> BatchArrays:
    """What is as large as x in fewer bits; weights and statistics stay float32."""
    x, dy = (array.astype(dtype) for array in (arrays.x, arrays.dy))
    return replace(arrays, x=x, dy=dy, out=np.zeros_like(x))


def rivals(operation: Operation, batch: Batch, small: Iterable[Any] = ()) -> dict[str, Any]:
    """The contenders of an operation, onepass first, by the name of their column.

    `small`: dtypes of 16 bits that take part too.
    """
    chosen = {"onepass": Onepass, "copy limit": CopyLimit, "NumPy": NumPy}
    if torch:
        chosen["torch"] = Torch
    # The same for all: where in memory an array happens to lie may double what a call takes.
    arrays = batch.arrays()
    rivals = {name: rival(operation, arrays) for name, rival in chosen.items()}
    for dtype in small:
        narrow, name = in_16_bits(arrays, dtype), np.dtype(dtype).name
        rivals[name] = Onepass(operation, narrow)
        if torch:
            rivals[f"torch {name}"] = Torch(operation, narrow)
    return rivals
