"""A small network in NumPy whose parameters lie in one flat vector, and its gradient likewise."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from onepass._memory import aligned_zeros
from onepass._typing import Array

Labels = npt.NDArray[np.intp]


class Network:
    """Linear layers with ReLU between them, then softmax cross-entropy.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, the units of each hidden layer, classes.
    rng : numpy.random.Generator
        Draws the weights: normal, with variance 2 / inputs of the layer (He et al., 2015).
    dtype : float32 or float64

    Attributes
    ----------
    params : ndarray
        All weights and biases, in one aligned vector: an optimizer's step is one step on it.
    grads : ndarray
        Their gradients, in the same order; `loss_and_grad` overwrites them.
    """

    def __init__(
        self, sizes: Sequence[int], rng: np.random.Generator, dtype: npt.DTypeLike = np.float32
    ) -> None:
        count = count_parameters(sizes)
        self.params = aligned_zeros(count, dtype)
        self.grads = aligned_zeros(count, dtype)
        self._layers = list(_views(self.params, sizes))
        self._layer_grads = list(_views(self.grads, sizes))
        for weight, _ in self._layers:
            weight[...] = rng.standard_normal(weight.shape) * np.sqrt(2 / len(weight))

    def loss(self, images: Array, labels: Labels) -> float:
        """Return the mean cross-entropy."""
        *_, logits = self._forward(images)
        return _mean_loss(_log_softmax(logits), labels)

    def accuracy(self, images: Array, labels: Labels) -> float:
        """Return the share of images whose likeliest class is the label."""
        *_, logits = self._forward(images)
        return float(np.mean(logits.argmax(axis=1) == labels))

    def loss_and_grad(self, images: Array, labels: Labels) -> tuple[float, Array]:
        """Return the mean cross-entropy, and `grads` filled with its gradient."""
        *inputs, logits = self._forward(images)
        log_probabilities = _log_softmax(logits)
        upstream = np.exp(log_probabilities)  # will be the loss's gradient at a layer's output
        upstream[np.arange(len(labels)), labels] -= 1
        upstream /= len(labels)
        for i in reversed(range(len(self._layers))):
            weight_grad, bias_grad = self._layer_grads[i]
            np.matmul(inputs[i].T, upstream, out=weight_grad)
            upstream.sum(axis=0, out=bias_grad)
            if i > 0:
                upstream = upstream @ self._layers[i][0].T
                upstream *= inputs[i] > 0  # the ReLU before this layer
        return _mean_loss(log_probabilities, labels), self.grads

    def _forward(self, images: Array) -> list[Array]:
        """Return what goes into each layer, and the logits."""
        values = [images]
        for weight, bias in self._layers:
            inputs = values[-1]
            if len(values) > 1:
                np.maximum(inputs, 0, out=inputs)
            values.append(inputs @ weight + bias)
        return values


def count_parameters(sizes: Sequence[int]) -> int:
    """Return the number of weights and biases of a network with these layers."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


def _views(flat: Array, sizes: Sequence[int]) -> Iterator[tuple[Array, Array]]:
    """Yield each layer's weight and bias, cut from the flat vector."""
    start = 0
    for inputs, outputs in pairwise(sizes):
        middle = start + inputs * outputs
        yield flat[start:middle].reshape(inputs, outputs), flat[middle : middle + outputs]
        start = middle + outputs


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_probabilities: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _mean_loss(log_probabilities: Array, labels: Labels) -> float:
    return -float(log_probabilities[np.arange(len(labels)), labels].mean())
