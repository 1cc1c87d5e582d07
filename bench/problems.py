"""What there is to learn beside `onepass compare`'s data."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.lab.compare.data import Targets
from onepass.lab.compare.losses import CrossEntropy, Loss, SquaredError

Rows = tuple[Array, Targets]
"""Inputs and what is to be found from them."""


class Problem(Protocol):
    """Batches without end, and what a network is to make of them."""

    @property
    def sizes(self) -> Sequence[int]:
        """Of the network's layers."""
        ...

    @property
    def loss(self) -> Loss: ...

    @property
    def max_grad_norm(self) -> float | None: ...

    def batch(self, rng: np.random.Generator) -> Rows: ...

    def validation(self) -> Iterator[Rows]: ...


class Text:
    """Guess the next character of Python's own help (some 460,000) from the 16 before it.

    The inputs are one-hot: most rows of the first weight have a gradient of 0 in most steps.
    """

    loss = CrossEntropy()
    max_grad_norm = 1.0

    context = 16
    hidden = (512, 512)
    validation_share = 0.1

    def __init__(self, _: np.random.Generator) -> None:
        codes, characters = _text()
        windows = np.lib.stride_tricks.sliding_window_view(codes, self.context + 1)
        validation = round(self.validation_share * len(windows))  # the end of the text
        self._train, self._validation = windows[: -validation - self.context], windows[-validation:]
        self._one_hot = np.eye(characters, dtype=np.float32)
        self.sizes = (self.context * characters, *self.hidden, characters)

    def batch(self, rng: np.random.Generator) -> Rows:
        return self._rows(self._train[rng.integers(len(self._train), size=128)])

    def validation(self) -> Iterator[Rows]:
        for start in range(0, len(self._validation), 2048):  # all at once would be 300 MB
            yield self._rows(self._validation[start : start + 2048])

    def _rows(self, windows: npt.NDArray[np.intp]) -> Rows:
        inputs = self._one_hot[windows[:, :-1]]
        return inputs.reshape(len(windows), -1), windows[:, -1]


@cache
def _text() -> tuple[npt.NDArray[np.intp], int]:
    """Return the text as numbers, and how many characters there are."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    characters, codes = np.unique(list(text), return_inverse=True)
    return codes, len(characters)


class MixedUnits:
    """A linear map to 64 outputs, whose errors are squared in units from 0.1 to 1000.

    A weight's gradient goes with its output's unit squared, and each row has all of them: within a
    block they differ by 10^8. That is nothing to Adam and Adagrad, if they can hold the numbers.
    """

    sizes = (128, 64)
    max_grad_norm = None

    def __init__(self, rng: np.random.Generator) -> None:
        inputs, outputs = self.sizes
        self.loss = WeightedSquaredError(10.0 ** rng.permutation(np.linspace(-1, 3, outputs)))
        self._map = rng.normal(scale=inputs**-0.5, size=self.sizes)
        self._validation = self._rows(rng, 4096)

    def batch(self, rng: np.random.Generator) -> Rows:
        return self._rows(rng, 64)

    def validation(self) -> Iterator[Rows]:
        yield self._validation

    def _rows(self, rng: np.random.Generator, count: int) -> Rows:
        """Return rows whose outputs have a variance of 1, and noise of 1/4: R² is 0.8 at best."""
        inputs, outputs = self.sizes
        x = rng.standard_normal((count, inputs), np.float32)
        noise = rng.normal(scale=0.5, size=(count, outputs))
        return x, (x @ self._map + noise).astype(np.float32)


class WeightedSquaredError(SquaredError):
    """Half the squared error, each output in its unit; the score is the mean of the outputs' R²."""

    def __init__(self, units: Array) -> None:
        self._units = units.astype(np.float32)

    def value(self, outputs: Array, targets: Targets) -> float:
        return super().value(self._units * outputs, self._units * targets)

    def value_and_grad(self, outputs: Array, targets: Targets) -> tuple[float, Array]:
        errors = self._units * (outputs - targets)
        return self.value(outputs, targets), self._units * errors / errors.size

    def score(self, outputs: Array, targets: Targets) -> float:
        return float(np.mean(1 - np.square(outputs - targets).mean(axis=0) / targets.var(axis=0)))
