"""The data: tables that ship with scikit-learn, or one of your own, split for validation."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.lab._arguments import one_of

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
    """The name of the data set: scikit-learn's ``load_<name>`` returns it, if no file does."""
    rows: str
    """What its rows are."""
    classes: int | None
    """The number of classes, None for a regression."""
    goal: float
    """A validation score worth reaching; the report says when it was."""
    path: str | None = None
    """The file that holds it, None for scikit-learn's."""

    def load(self, seed: int) -> Split:
        """Return the split of this seed."""
        table = _table(self.name) if self.path is None else _of_file(self.path)
        rng = np.random.default_rng(seed)
        return split(*table, rng, regression=self.classes is None)

    @property
    def digest(self) -> str | None:
        """What tells whether a file is as it was; None for scikit-learn's."""
        return self.path and sha256(Path(self.path).read_bytes()).hexdigest()


DATA: Mapping[str, Data] = {
    data.name: data
    for data in (
        Data("digits", "images", classes=10, goal=0.95),
        Data("breast_cancer", "tumours", classes=2, goal=0.95),
        Data("wine", "wines", classes=3, goal=0.95),
        Data("diabetes", "patients", classes=None, goal=0.4),
    )
}


SUFFIX = ".npz"
FILE = f"FILE{SUFFIX}"
GOAL = 0.9
"""The goal of a file's data, if it names none."""
FEWEST_ROWS = 10
OPTION = (
    f"{', '.join(DATA)}, or {FILE} of your own, which holds x, rows of numbers, and y: whole "
    "numbers or words are classes, other numbers are a regression"
)
"""What the commands take as data, for their help."""


def data(name: str) -> Data:
    """Return the data of a name, or of a file."""
    if name in DATA:
        return DATA[name]
    _, targets = _of_file(name)
    classes = None if targets.dtype.kind == "f" else int(targets.max()) + 1
    return Data(Path(name).stem, "rows", classes, _goal(name), name)


def known(*more: str) -> Callable[[str], str]:
    """Return the type of the data's names, of files, and of these words."""
    named = one_of((*DATA, *more))

    def convert(text: str) -> str:
        if not text.endswith(SUFFIX):
            try:
                return named(text)
            except ArgumentTypeError as error:
                raise ArgumentTypeError(str(error).replace(", got", f" or {FILE}, got")) from None
        path = str(Path(text).resolve())
        try:
            data(path)
        except (OSError, ValueError, BadZipFile) as error:
            raise ArgumentTypeError(f"{text}: {error}") from None
        return path

    return convert


def _goal(path: str) -> float:
    with np.load(path, allow_pickle=False) as file:
        return float(file["goal"]) if "goal" in file else GOAL


@cache
def _of_file(path: str) -> tuple[Array, Targets]:
    """Return inputs and targets, or raise ValueError where a file holds none."""
    with np.load(path, allow_pickle=False) as file:
        names = ", ".join(file)
        if not {"x", "y"} <= set(file):
            raise ValueError(f"expected arrays x and y, got {names or 'none'}")
        x, y = file["x"], file["y"]
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if x.ndim < 2 or x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ValueError(f"x: expected rows of finite numbers, got {x.dtype} of shape {x.shape}")
    if y.ndim != 1 or y.dtype.kind not in "biufUS" or len(y) != len(x):
        got = f"{y.dtype} of shape {y.shape}"
        raise ValueError(f"y: expected a number or a word for each of {len(x)} rows, got {got}")
    if len(x) < FEWEST_ROWS:
        raise ValueError(f"x: expected {FEWEST_ROWS} rows at least, got {len(x)}")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError("y: expected finite numbers, got others too")
        return x.reshape(len(x), -1).astype(float), y.astype(float)
    kinds, classes = np.unique(y, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"y: expected two classes at least, got {len(kinds)}")
    return x.reshape(len(x), -1).astype(float), classes


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
