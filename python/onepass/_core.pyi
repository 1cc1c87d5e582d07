"""Types of the extension module; cpp/bindings/module.cpp is the source."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, overload

import numpy.typing as npt

_Declared = TypeVar("_Declared")

class RuleRow(TypedDict):
    states: list[str]
    scalars: list[str]
    options: list[str]
    hyper: list[str]
    defaults: list[float]
    has_sign: list[bool]
    start: list[str | None]
    in_full: list[bool]
    uses_state: list[tuple[bool, ...]]
    memory: list[str]
    memory_start: list[float]
    keeps_weights: bool
    full_weights: bool
    sums_over_all: bool
    n_sums: list[int]
    directed: list[bool]

isa: str
isas: dict[str, bool]
version: str
compiler: str
flags: str
max_threads: int

class Settings(dict[str, Any]):
    """Settings, checked when they are assigned."""

class Fields:
    @overload
    def __init__(
        self,
        rule: str,
        checks: dict[str, Any],
        check_setting: Callable[[Any, str, Any], Any],
        check_together: Callable[[Any], None],
    ) -> None: ...
    @overload
    def __init__(
        self, checks: dict[str, Any], check_setting: Callable[[Any, str, Any], Any]
    ) -> None: ...
    def settings(self, values: dict[str, Any]) -> Settings: ...

class Engine:
    shown: tuple[Shown, list[int]] | None
    def __init__(self, contents: dict[str, Any]) -> None: ...
    def contents(self) -> dict[str, Any]: ...
    def bind(self, grads: Any) -> None: ...
    def check_outside(self, name: str) -> None: ...
    def accumulate_with_others(
        self, grads: Any, exchange: Callable[[bool], bool], num_threads: int | None
    ) -> bool: ...
    def discard_accumulated(self) -> None: ...
    def values_of_coming_step(self) -> list[dict[str, Any]]: ...
    @property
    def groups(self) -> list[Settings]: ...
    @property
    def own(self) -> Settings: ...
    @property
    def left_out(self) -> int: ...

class Base:
    _engine: Engine

def set_callbacks(
    *,
    step_info: type,
    mirror: Callable[..., list[Any]],
    arrange: Callable[..., tuple[Any, ...]],
    new_sum: Callable[..., Any],
    direct: Callable[..., None],
    stats: Callable[..., tuple[Any, Any]],
    grad_scale: Any,
    stats_flag: Any,
    schedule_call: Callable[..., float],
) -> None: ...
def make_kernel(
    *,
    declaration: _Declared,
    fields: Fields,
    defaults: dict[str, Any],
    options: dict[str, Any],
    check_setting: Callable[[Any, str, Any], Any],
    fail: Callable[[str], None],
) -> _Declared: ...
def grad_norm(
    grad: npt.NDArray[Any], like: npt.NDArray[Any], num_threads: int | None = None
) -> tuple[float, bool]: ...
def fold(
    sums: npt.NDArray[Any], parts: list[npt.NDArray[Any]], num_threads: int | None = None
) -> None: ...

class CopyLimit:
    def __init__(
        self,
        params: list[Any],
        grads: list[Any],
        states: list[list[Any]],
        reads: list[list[list[Any]]],
    ) -> None: ...
    def run(self, num_threads: int | None) -> None: ...

def count_step(steps: Any, begun: Any) -> None: ...

class Looks:
    def __init__(self, exchange: Any) -> None: ...
    def remember(self, tensors: list[Any]) -> None: ...
    def same(self, tensors: list[Any]) -> bool: ...
    def read(self, tensors: list[Any], addresses: Any) -> bool: ...

Updates = Sequence[tuple[dict[str, Any], dict[str, Any]] | tuple[Base, Engine]]

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
def readable(name: str, grad: object, param: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
def rules() -> dict[str, RuleRow]: ...
def at(rule: str, step: float, hyper: list[float], memory: list[float] = ...) -> list[float]: ...
def in_forked_child() -> bool: ...
def check_num_threads(num_threads: object) -> int: ...
def use_threads(num_threads: int) -> None: ...
def native(declaration: _Declared) -> _Declared: ...
def check_params(
    names: list[str] | None, params: list[Any], copies: list[Any] | None = None
) -> None: ...
def check_batch_norm(checks: Mapping[str, Callable[[str, Any], Any]]) -> None: ...
