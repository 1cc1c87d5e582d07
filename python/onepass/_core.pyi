"""Types of the extension module; cpp/bindings/module.cpp is the source."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

_Declared = TypeVar("_Declared")

class RuleRow(TypedDict):
    states: list[str]
    scalars: list[str]
    options: list[str]
    has_sign: list[bool]
    uses_state: list[tuple[bool, ...]]

Job = tuple[int, int, Sequence[int], bool]

isa: str
isas: dict[str, bool]
compiler: str
flags: str
copy_limit: int
max_threads: int

Updates = Sequence[tuple[dict[str, Any], dict[str, Any]]]

class Shown:
    def __init__(
        self,
        names: list[str],
        params: list[Any],
        values: list[Any],
        restored: Updates | None = None,
    ) -> None: ...
    @property
    def active(self) -> bool: ...
    def saved(self, index: int) -> npt.NDArray[Any]: ...
    def outdate(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

def commit(
    updates: Updates,
    names: list[str] = ...,
    params: list[Any] = ...,
    copies: list[Any] | None = None,
) -> None: ...
def rules() -> dict[str, RuleRow]: ...
def in_forked_child() -> bool: ...
def check_num_threads(num_threads: object) -> int: ...
def use_threads(num_threads: int) -> None: ...
def native(declaration: _Declared) -> _Declared: ...
def check_params(
    names: list[str] | None, params: list[Any], copies: list[Any] | None = None
) -> None: ...

class Nonfinite(Enum):
    propagate = ...
    skip = ...
    raise_ = ...

class Gradients(Enum):
    any = ...
    bound = ...
    zeroed = ...

Given = tuple[
    list[str] | None,  # names
    list[Any],  # parameters
    list[Any],  # gradients
    list[tuple[Any, ...]],  # states
    Sequence[Job],
    Gradients,
    npt.NDArray[np.int64] | None,  # counters
    npt.NDArray[np.int64] | None,  # gathered
]

class Plan:
    def __init__(self, given: Given) -> None: ...
    def run(
        self,
        scalars: list[tuple[float, ...]],
        num_threads: int | None,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        nonfinite: Nonfinite = ...,
        commit: Updates | None = None,
    ) -> tuple[float | None, float, bool]: ...

def run(
    given: Given,
    scalars: list[tuple[float, ...]],
    num_threads: int | None,
    grad_scale: float = 1.0,
    max_norm: float | None = None,
    nonfinite: Nonfinite = ...,
    commit: Updates | None = None,
) -> tuple[float | None, float, bool]: ...
def check_batch_norm(checks: Mapping[str, Callable[[str, Any], Any]]) -> None: ...
