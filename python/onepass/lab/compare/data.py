"""The data: real tables that ship with scikit-learn, split into training and validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array

VALIDATION_SHARE = 0.2

Targets = npt.NDArray[Any]
"""Class numbers, or for a regression a column of numbers."""


@dataclass(frozen=True)
class Split:
    """Rows of inputs, standardised, with their targets, for training and for validation."""

    train_inputs: Array
    train_targets: Targets
    validation_inputs: Array
    validation_targets: Targets


@dataclass(frozen=True)
class Data:
    """A data set."""

    name: str
    """The name of the data set: scikit-learn's ``load_<name>`` returns it."""
    rows: str
    """What its rows are."""
    classes: int | None
    """The number of classes, None for a regression."""
    goal: float
    """A validation score worth reaching; the report says when it was."""

    def load(self, seed: int) -> Split:
        """Return the split of this seed."""
        rng = np.random.default_rng(seed)
        return split(*_table(self.name), rng, regression=self.classes is None)


DATA: Mapping[str, Data] = {
    data.name: data
    for data in (
        Data("digits", "images", classes=10, goal=0.95),
        Data("breast_cancer", "tumours", classes=2, goal=0.95),
        Data("wine", "wines", classes=3, goal=0.95),
        Data("diabetes", "patients", classes=None, goal=0.4),
    )
}


@cache  # reading the file takes longer than some trainings
def _table(name: str) -> tuple[Array, Targets]:
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return inputs, targets


def split(
    inputs: Array, targets: Targets, rng: np.random.Generator, *, regression: bool = False
) -> Split:
    """Split at random, and standardise by the mean and deviation of the training rows alone."""
    order = rng.permutation(len(inputs))
    validation, train = np.split(order, [round(VALIDATION_SHARE * len(inputs))])
    inputs = _standardised(inputs, train)
    if regression:
        targets = _standardised(targets[:, None], train)
    return Split(inputs[train], targets[train], inputs[validation], targets[validation])


def _standardised(values: Array, train: npt.NDArray[np.intp]) -> Array:
    mean = values[train].mean(axis=0)
    deviation = values[train].std(axis=0)
    deviation[deviation == 0] = 1  # a column that never changes becomes 0
    standard: Array = ((values - mean) / deviation).astype(np.float32)
    return standard
