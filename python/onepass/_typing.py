"""The types that the package shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Schedule: TypeAlias = Callable[[int], float]
"""Number of completed steps, from 0, to the value of a hyperparameter."""

Tree: TypeAlias = Array | Sequence["Tree"] | Mapping[str, "Tree"]
"""An array, or a sequence or mapping of trees."""

Grads: TypeAlias = Array | Sequence["Grads"] | Mapping[str, "Grads"] | None
"""A tree like the parameters', with None where a parameter is to be left alone."""

Params: TypeAlias = Tree | Sequence[Mapping[str, Any]]
"""A tree, or groups: mappings with a tree under "params" and hyperparameters of their own."""

Rows: TypeAlias = tuple[npt.NDArray[np.integer[Any]], Array]
"""Numbers of rows, and a gradient for each."""

RowGrads: TypeAlias = (
    Rows | Mapping[str, "Rows | Array | None"] | Mapping[int, "Rows | Array | None"]
)
"""Gradients by their parameters' keys: of some rows, or whole; or the rows of the one parameter."""
