"""The data: 1,797 images of handwritten digits, and the split into training and validation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array

VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Images as rows of pixels, with the digits they show."""

    train_images: Array
    train_labels: npt.NDArray[np.intp]
    validation_images: Array
    validation_labels: npt.NDArray[np.intp]


def digits(rng: np.random.Generator) -> Split:
    """Return scikit-learn's digits (8x8 pixels; they ship with it), split and standardised."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, labels = load_digits(return_X_y=True)
    return split(images, labels, rng)


def split(images: Array, labels: npt.NDArray[Any], rng: np.random.Generator) -> Split:
    """Split at random, and standardise with what the training images alone tell."""
    order = rng.permutation(len(images))
    validation, train = np.split(order, [round(VALIDATION_SHARE * len(images))])
    mean = images[train].mean(axis=0)
    deviation = images[train].std(axis=0)
    deviation[deviation == 0] = 1  # a pixel that never changes becomes 0
    standard = ((images - mean) / deviation).astype(np.float32)
    return Split(standard[train], labels[train], standard[validation], labels[validation])
