"""The types that the package shares.

A module with public functions imports annotations from ``__future__``: so ``help()`` shows the
names of these types, and not what they stand for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, Protocol, SupportsFloat, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Schedule: TypeAlias = Callable[[int], SupportsFloat]
"""Number of completed steps, from 0, to the value of a hyperparameter."""

StateAlloc: TypeAlias = Callable[[str, tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
"""An array's name, shape and dtype to such an array, which holds anything."""

Setting: TypeAlias = float | Schedule | Mapping[str, float | Schedule]
"""A hyperparameter: a number, a schedule, or one of these for each pattern of names."""

Exchange: TypeAlias = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""The sums of squares of this process' blocks to those of all processes, in order."""

Pair: TypeAlias = tuple[float | Schedule, float | Schedule] | Callable[[int], Sequence[float]]
"""Two numbers, for each of which a schedule may stand, or a schedule of both."""

Triple: TypeAlias = (
    tuple[float | Schedule, float | Schedule, float | Schedule] | Callable[[int], Sequence[float]]
)
"""Three numbers in the same way."""

Tree: TypeAlias = (
    Array
    | Sequence["Tree"]
    | ValuesView["Tree"]
    | Iterator["Tree"]
    | Mapping[str, "Tree"]
    | Mapping[int, "Tree"]
)
"""An array, or a mapping, a sequence, or something else in an order, of trees."""


class SupportsArray(Protocol):
    """What NumPy can read: a JAX array, a PyTorch tensor on the CPU, a NumPy scalar."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return it as an array."""


class SupportsDLPack(Protocol):
    """What NumPy can read through DLPack."""

    def __dlpack__(self) -> Any:
        """Return a capsule of DLPack."""


Readable: TypeAlias = SupportsArray | SupportsDLPack
"""An array that is only read: NumPy's, or another library's."""

Grads: TypeAlias = (
    Readable
    | float
    | Sequence["Grads"]
    | ValuesView["Grads"]
    | Iterator["Grads"]
    | Mapping[str, "Grads"]
    | Mapping[int, "Grads"]
    | None
)
"""A tree like the parameters', with None where a parameter is to be left alone, and perhaps numbers
beside parameters of shape ()."""

OwnArrays: TypeAlias = (
    Array
    | Sequence["OwnArrays"]
    | ValuesView["OwnArrays"]
    | Iterator["OwnArrays"]
    | Mapping[str, "OwnArrays"]
    | Mapping[int, "OwnArrays"]
    | None
)
"""The same of NumPy's own arrays, which are written or read again in later calls."""

Params: TypeAlias = Tree | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A tree, or groups: mappings with a tree under "params" and hyperparameters of their own.

A mapping may hold anything, as mypy infers no tree for one that holds both arrays and lists.
"""

_Override: TypeAlias = (
    Mapping[str, Mapping[str, Any]] | Callable[[str, Array], Mapping[str, Any] | None]
)
Overrides: TypeAlias = _Override | Sequence["Overrides"] | None
"""Settings by patterns of names, or by a function of name and array, or several of these."""

Rows: TypeAlias = tuple[Readable, Readable]
"""Numbers of rows, and a gradient for each."""

RowGrads: TypeAlias = (
    Rows | Mapping[str, "Rows | Readable | None"] | Mapping[int, "Rows | Readable | None"]
)
"""Gradients by their parameters' keys: of some rows, or whole; or the rows of the one parameter."""
