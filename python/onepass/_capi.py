"""The C interface's step over many tensors, for adapters whose arrays are another library's.

They have addresses, not ndarrays, and fill these in by the column (`cpp/include/onepass/capi.h`).
"""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_double, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._hyperparameters import as_numbers
from onepass.optim import Optimizer
from onepass.optim._settings import GROUP_DEFAULTS

F32, F64, BF16, F16, Q8 = range(1, 6)
MOST_STATES = 4
FIRST_STATE = 16
"""The number of a tensor's first state among its arrays, as a result names them."""

SKIP_REASONS: tuple[Literal["nonfinite", "grad_norm"] | None, ...]
SKIP_REASONS = (None, "nonfinite", "grad_norm")
"""Why a step was skipped, by the number in its result."""

_SETTINGS = 1
_OVERLAP, _NONFINITE, _DISAGREE = 6, 12, 16
_ARRAYS = ("", "param", "grad", "average", "copy", "slow", "rows", "memory", "direction", "shape")


class Group(ctypes.Structure):
    """`onepass_group`."""

    _fields_ = (("rule", c_int32), ("options", c_int32), ("settings", c_void_p))


class Tensor(ctypes.Structure):
    """`onepass_tensor`."""

    _fields_ = (
        ("size", c_size_t),
        ("param", c_void_p),
        ("grad", c_void_p),
        ("state", c_void_p * MOST_STATES),
        ("memory", c_void_p),
        ("average", c_void_p),
        ("slow", c_void_p),
        ("copy", c_void_p),
        ("direction", c_void_p),
        ("shape", c_void_p),
        ("rows", c_void_p),
        ("n_rows", c_size_t),
        ("width", c_size_t),
        ("steps", c_int64),
        ("average_from", c_int64),
        ("group", c_int32),
        ("ndim", c_int32),
        ("f_order", c_int32),
        ("format", c_int32),
        ("grad_format", c_int32),
        ("state_format", c_int32),
        ("copy_format", c_int32),
        ("is_master", c_int32),
        ("nearest", c_int32),
        ("reserved", c_int32),
    )


class Call(ctypes.Structure):
    """`onepass_call`, as `onepass_new_call` makes it."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("group_size", c_size_t),
        ("tensor_size", c_size_t),
        ("grad_scale", c_double),
        ("max_norm", c_double),
        ("seed", c_int64),
        ("threads", c_int32),
        ("nonfinite", c_int32),
        ("zero_grad", c_int32),
        ("unchecked", c_int32),
        ("parallel", c_void_p),
        ("skip_norm", c_double),
    )

    def __init__(self, **members: Any) -> None:
        sizes = ctypes.sizeof(Call), ctypes.sizeof(Group), ctypes.sizeof(Tensor)
        super().__init__(*sizes, **members)


class Result(ctypes.Structure):
    """`onepass_result`, as `onepass_new_result` makes it."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("norm", c_double),
        ("d", c_double),
        ("tensor", c_int64),
        ("other_tensor", c_int64),
        ("array", c_int32),
        ("other_array", c_int32),
        ("clipped", c_int32),
        ("skipped", c_int32),
    )

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(Result))


class Overlap(ValueError):  # noqa: N818
    """Two tensors share memory of which one is written."""


@_core.native
def take_step(
    groups: int, n_groups: int, tensors: int, n_tensors: int, call: int, result: int
) -> int:
    """Take a step by the addresses of its arguments, which must live, and return its code."""
    raise NotImplementedError


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(_core.__file__)
    library.onepass_name.restype = library.onepass_message.restype = ctypes.c_char_p
    step: list[Any] = [c_void_p, c_size_t, c_void_p, c_size_t, c_void_p]
    library.onepass_direct.argtypes = [*step, c_void_p, c_void_p]
    return library


@cache
def _settings_of(rule: int) -> dict[str, int]:
    """Return the place of each of a rule's settings."""
    library = _library()
    count = library.onepass_count(rule, _SETTINGS)
    return {library.onepass_name(rule, _SETTINGS, i).decode(): i for i in range(count)}


class Step:
    """The arguments of a step by the rule of a class: groups, and tensors to fill in."""

    def __init__(self, cls: type[Optimizer], n_groups: int, labels: Sequence[str]) -> None:
        library, n_tensors = _library(), len(labels)
        self.cls, self._labels = cls, labels
        rule = library.onepass_rule(cls.row.name.encode())
        self._columns = _settings_of(rule)
        self._settings = np.empty((n_groups, len(self._columns)))
        self._groups = np.zeros(n_groups, np.dtype(Group))
        self._groups["rule"] = rule
        for i, settings in enumerate(self._settings):
            library.onepass_defaults(rule, c_void_p(settings.ctypes.data))
            self._groups["settings"][i] = settings.ctypes.data
            self.set(i, {**GROUP_DEFAULTS, **cls.defaults})
        self.tensors = np.zeros(n_tensors, np.dtype(Tensor))
        self.call, self.result = Call(grad_scale=1.0), Result()
        self._arguments = (
            self._groups.ctypes.data,
            n_groups,
            self.tensors.ctypes.data,
            n_tensors,
            ctypes.addressof(self.call),
        )
        self._to = ctypes.addressof(self.result)

    def set(self, group: int, values: Mapping[str, Any]) -> None:
        """Change some of the settings of a group to values that are checked already."""
        checks = {name: self.cls.group_checks[name] for name in values}
        settings, columns = self._settings[group], self._columns
        for name, number in as_numbers(checks, values).items():
            if name in columns:
                settings[columns[name]] = number
        for bit, name in enumerate(self.cls.row.options):
            if name in values:
                options = int(self._groups["options"][group]) & ~(1 << bit)
                self._groups["options"][group] = options | bool(values[name]) << bit

    def run(self) -> None:
        """Take the step, or raise what is wrong, which has changed nothing."""
        if code := take_step(*self._arguments, self._to):
            self._fail(code)

    def direct(self) -> npt.NDArray[np.float64]:
        """Write what directions are made of, and return the norm of each."""
        norms = np.zeros(len(self.tensors))
        library = _library()
        if code := library.onepass_direct(*self._arguments, norms.ctypes.data, self._to):
            self._fail(code)
        return norms

    def _fail(self, code: int) -> None:
        result = self.result
        label = self._labels[result.tensor] if result.tensor >= 0 else self.cls.__name__
        if code == _OVERLAP:
            other = self._labels[result.other_tensor]
            raise Overlap(f"{label}: expected memory of its own, got the same memory as {other}")
        if code == _NONFINITE:
            raise ValueError(f"{label}: expected a gradient of finite values, got another")
        if code == _DISAGREE:
            expected = "the same settings in all groups, but for weight decay and rates of 0"
            raise ValueError(f"{label}: expected {expected}, got others")
        message = _library().onepass_message(code).decode()
        array = result.array - FIRST_STATE
        states = self.cls.row.states
        name = states[array] if array >= 0 else _ARRAYS[result.array]
        raise ValueError(f"{label}: expected {name} to be as C takes it, got: {message}")
