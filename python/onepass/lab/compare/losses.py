"""The losses that networks are trained with, and the scores that tell how good they are."""

from typing import Protocol

import numpy as np

from onepass._typing import Array
from onepass.lab.compare.data import Data, Targets


class Loss(Protocol):
    """A loss and a score, both of the network's outputs and the targets."""

    name: str
    score_name: str

    def value(self, outputs: Array, targets: Targets) -> float:
        """Return the mean over the rows."""
        ...

    def value_and_grad(self, outputs: Array, targets: Targets) -> tuple[float, Array]:
        """Return the value, and its gradient with respect to the outputs."""
        ...

    def score(self, outputs: Array, targets: Targets) -> float:
        """Return how good the outputs are; 1 is perfect."""
        ...


class CrossEntropy:
    """Softmax and cross-entropy; the score is the share of rows whose likeliest class is right."""

    name = "cross-entropy"
    score_name = "accuracy"

    def value(self, outputs: Array, targets: Targets) -> float:
        """Return the mean of the negative log-likelihoods."""
        return _negative_log_likelihood(_log_softmax(outputs), targets)

    def value_and_grad(self, outputs: Array, targets: Targets) -> tuple[float, Array]:
        """Return the value, and its gradient: (probabilities - one-hot targets) / rows."""
        log_probabilities = _log_softmax(outputs)
        grad: Array = np.exp(log_probabilities)
        grad[np.arange(len(targets)), targets] -= 1
        grad /= len(targets)
        return _negative_log_likelihood(log_probabilities, targets), grad

    def score(self, outputs: Array, targets: Targets) -> float:
        """Return the accuracy."""
        return float(np.mean(outputs.argmax(axis=1) == targets))


class SquaredError:
    """Half the squared error; the score is R², the share of the targets' variance explained."""

    name = "half squared error"
    score_name = "R²"

    def value(self, outputs: Array, targets: Targets) -> float:
        """Return half the mean of the squares."""
        return float(np.mean(np.square(outputs - targets))) / 2

    def value_and_grad(self, outputs: Array, targets: Targets) -> tuple[float, Array]:
        """Return the value, and its gradient: the errors, divided by their number."""
        return self.value(outputs, targets), (outputs - targets) / outputs.size

    def score(self, outputs: Array, targets: Targets) -> float:
        """Return R²; below 0 the targets' mean would have done better."""
        return 1 - float(np.mean(np.square(outputs - targets)) / targets.var())


def loss_of(data: Data) -> Loss:
    """Return the loss that a data set is trained with."""
    return SquaredError() if data.classes is None else CrossEntropy()


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_probabilities: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _negative_log_likelihood(log_probabilities: Array, labels: Targets) -> float:
    # 0 - x, because -x would turn a perfect network's 0 into -0.
    return 0.0 - float(log_probabilities[np.arange(len(labels)), labels].mean())
