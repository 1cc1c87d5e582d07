"""A small network in NumPy whose parameters lie in one flat vector, and its gradient likewise."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onepass import init
from onepass._memory import aligned_zeros
from onepass._typing import Array
from onepass.batchnorm import BatchNorm
from onepass.lab.compare.data import Targets
from onepass.lab.compare.losses import Loss


class Network:
    """Linear layers with BatchNorm, ReLU and dropout between them, then a loss.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, the units of each hidden layer, outputs.
    rng : numpy.random.Generator
        Draws the weights by He's rule.
    loss : Loss
    dtype : float32 or float64
    batch_norm : bool
        Whether there is BatchNorm. A linear layer before BatchNorm has no bias, which would be
        subtracted again with the mean.
    dropout : float in [0, 1)
        The share of each hidden layer's outputs that training sets to 0; the others are divided by
        what is left of 1, so that evaluation uses all of them as they are.

    Attributes
    ----------
    params : ndarray
        All weights and biases, BatchNorm's too, in one aligned vector: an optimizer's step is one
        step on it.
    grads : ndarray
        Their gradients, in the same order; `loss_and_grad` overwrites them.
    arrays, grad_arrays : list of ndarray
        The parts of the vectors that belong to one layer each, for rules that take a layer as a
        whole.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rng: np.random.Generator,
        loss: Loss,
        dtype: npt.DTypeLike = np.float32,
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        self.loss = loss
        self._dropout = dropout
        count = count_parameters(sizes, batch_norm)
        self.params = aligned_zeros(count, dtype)
        self.grads = aligned_zeros(count, dtype)
        shapes = list(_shapes(sizes, batch_norm))
        self.arrays = list(_views(self.params, shapes))
        self.grad_arrays = list(_views(self.grads, shapes))
        self._layers = list(_layers(iter(self.arrays), iter(self.grad_arrays), sizes, batch_norm))
        for weight, *_ in self._layers:
            weight[...] = init.he_normal(weight.shape, rng, dtype=weight.dtype)

    def evaluate(self, inputs: Array, targets: Targets) -> tuple[float, float]:
        """Return the loss and the score; BatchNorm uses its running statistics."""
        *_, outputs = self._forward(inputs, training=False, dropped=())
        return self.loss.value(outputs, targets), self.loss.score(outputs, targets)

    def loss_and_grad(
        self, inputs: Array, targets: Targets, rng: np.random.Generator | None = None
    ) -> tuple[float, Array]:
        """Return the loss, and `grads` filled with its gradient.

        BatchNorm uses the statistics of these rows, and updates the running ones. `rng` draws what
        dropout leaves out.
        """
        dropped = self._draw_dropout(len(inputs), rng)
        *values, outputs = self._forward(inputs, training=True, dropped=dropped)
        loss, upstream = self.loss.value_and_grad(outputs, targets)
        for i in reversed(range(len(self._layers))):
            weight, weight_grad, after = self._layers[i]
            if i < len(dropped):
                upstream *= dropped[i]
            upstream = after.backward(upstream)
            np.matmul(values[i].T, upstream, out=weight_grad)
            if i > 0:
                upstream = upstream @ weight.T
        return loss, self.grads

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the arrays that training continues from."""
        layers = enumerate(self._batch_norms())
        state = {
            f"{i}.{name}": array
            for i, layer in layers
            for name, array in layer.state_dict().items()
        }
        return {"params": self.params.copy(), **state}

    def load_state_dict(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the arrays of a `state_dict` of such a network."""
        self.params[...] = state["params"]
        for i, layer in enumerate(self._batch_norms()):
            layer.load_state_dict({name: state[f"{i}.{name}"] for name in layer.state_dict()})

    def _batch_norms(self) -> list[BatchNorm]:
        return [after for *_, after in self._layers if isinstance(after, BatchNorm)]

    def _draw_dropout(self, rows: int, rng: np.random.Generator | None) -> list[Array]:
        """Return what each hidden layer's outputs are multiplied with; nothing without dropout."""
        if not self._dropout:
            return []
        assert rng is not None
        kept, dtype = 1 - self._dropout, self.params.dtype
        return [
            (rng.random((rows, weight.shape[1])) < kept).astype(dtype) / dtype.type(kept)
            for weight, *_ in self._layers[:-1]
        ]

    def _forward(self, inputs: Array, training: bool, dropped: Sequence[Array]) -> list[Array]:
        """Return what goes into each layer, and the outputs."""
        values = [inputs]
        for i, (weight, _, after) in enumerate(self._layers):
            outputs = after.forward(values[-1] @ weight, training)
            # In a new array: the layer needs its outputs as they are for its backward pass.
            values.append(outputs * dropped[i] if i < len(dropped) else outputs)
        return values


def count_parameters(sizes: Sequence[int], batch_norm: bool) -> int:
    """Return the number of weights and biases of a network with these layers."""
    return sum(math.prod(shape) for shape in _shapes(sizes, batch_norm))


class _Bias:
    """The part of a layer without BatchNorm after its product: a bias, and ReLU if hidden."""

    def __init__(self, bias: Array, bias_grad: Array, relu: bool) -> None:
        self._bias, self._bias_grad, self._relu = bias, bias_grad, relu

    def forward(self, x: Array, _training: bool) -> Array:
        self._y = x + self._bias
        if self._relu:
            np.maximum(self._y, 0, out=self._y)
        return self._y

    def backward(self, dy: Array) -> Array:
        if self._relu:
            dy *= self._y > 0
        dy.sum(axis=0, out=self._bias_grad)
        return dy


class _Layer(NamedTuple):
    weight: Array
    weight_grad: Array
    after: BatchNorm | _Bias


def _layers(
    params: Iterator[Array], grads: Iterator[Array], sizes: Sequence[int], batch_norm: bool
) -> Iterator[_Layer]:
    """Yield the layers, of parameters and gradients in their order."""
    *hidden, _ = pairwise(sizes)
    for _ in hidden:
        weight, weight_grad = next(params), next(grads)
        if batch_norm:
            yield _Layer(weight, weight_grad, _batch_norm(params, grads))
        else:
            yield _Layer(weight, weight_grad, _Bias(next(params), next(grads), relu=True))
    yield _Layer(next(params), next(grads), _Bias(next(params), next(grads), relu=False))


def _batch_norm(params: Iterator[Array], grads: Iterator[Array]) -> BatchNorm:
    weight, bias = next(params), next(params)
    weight.fill(1)
    layer = BatchNorm(len(weight), relu=True, dtype=weight.dtype)
    layer.weight, layer.bias = weight, bias
    layer.weight_grad, layer.bias_grad = next(grads), next(grads)
    return layer


def _shapes(sizes: Sequence[int], batch_norm: bool) -> Iterator[tuple[int, ...]]:
    """Yield the shape of each parameter, in their order in the flat vector."""
    *hidden, (inputs, outputs) = pairwise(sizes)
    for shape in hidden:
        yield shape
        if batch_norm:
            yield shape[1:]  # BatchNorm's weight
        yield shape[1:]  # a bias: BatchNorm's, or the linear layer's
    yield inputs, outputs
    yield (outputs,)


def _views(flat: Array, shapes: Iterable[tuple[int, ...]]) -> Iterator[Array]:
    start = 0
    for shape in shapes:
        end = start + math.prod(shape)
        yield flat[start:end].reshape(shape)
        start = end
