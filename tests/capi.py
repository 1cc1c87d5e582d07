"""The C interface through ctypes, as a program that loads `onepass.get_library()` has it."""

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

import ml_dtypes
import numpy as np

import onepass as op
from onepass._capi import Call, Group, Result, Tensor
from onepass._hyperparameters import as_numbers

OK = 0
CODES = {
    "NO_RULE": 1,
    "NO_OPTION": 2,
    "NO_ARRAY": 3,
    "MISALIGNED": 4,
    "BAD_FORMAT": 5,
    "OVERLAP": 6,
    "BAD_SIZE": 7,
    "BAD_ROW": 8,
    "NO_ROWS": 9,
    "BAD_NUMBER": 10,
    "NO_DIRECTION": 11,
    "NONFINITE": 12,
    "NO_MEMORY": 13,
    "NO_ISA": 14,
    "NO_SETTING": 15,
    "DISAGREE": 16,
}
STATES, SETTINGS, OPTIONS, MEMORY, SCALARS = range(5)
MEASURES, DIRECTED, SHAPED, TOGETHER, ROWS = (1 << k for k in range(5))
FORMATS = {
    np.dtype(np.float32): 1,
    np.dtype(np.float64): 2,
    np.dtype(ml_dtypes.bfloat16): 3,
    np.dtype(np.float16): 4,
    np.dtype(np.uint8): 5,
}
NONFINITE = ("propagate", "skip", "raise")
ARRAYS = {"param": 1, "grad": 2, "average": 3, "copy": 4, "slow": 5, "rows": 6, "memory": 7}


class BatchNorm(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("outer", c_size_t),
        ("channels", c_size_t),
        ("inner", c_size_t),
        *((name, c_void_p) for name in ("x", "residual", "dy", "out", "dresidual")),
        *((name, c_void_p) for name in ("weight", "bias", "mean", "var")),
        *((name, c_void_p) for name in ("batch_mean", "batch_invstd")),
        *((name, c_void_p) for name in ("running_mean", "running_var", "batches")),
        *((name, c_void_p) for name in ("weight_grad", "bias_grad")),
        ("eps", c_double),
        ("momentum", c_double),
        ("format", c_int32),
        ("channel_format", c_int32),
        ("relu", c_int32),
        ("biased_running_var", c_int32),
        ("skip_nonfinite", c_int32),
        ("threads", c_int32),
        ("unchecked", c_int32),
        ("reserved", c_int32),
    )

    def __init__(self, *first: Any, **members: Any) -> None:
        super().__init__(ctypes.sizeof(BatchNorm), *first, **members)


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "abi": (c_int32, []),
    "version": (c_char_p, []),
    "isa": (c_char_p, []),
    "message": (c_char_p, [c_int32]),
    "threads": (c_int32, []),
    "set_threads": (None, [c_int32]),
    "rules": (c_int32, []),
    "rule_name": (c_char_p, [c_int32]),
    "rule": (c_int32, [c_char_p]),
    "count": (c_int32, [c_int32] * 2),
    "name": (c_char_p, [c_int32] * 3),
    "index": (c_int32, [c_int32, c_int32, c_char_p]),
    "traits": (c_int32, [c_int32] * 2),
    "uses_state": (c_int32, [c_int32] * 4),
    "state_size": (c_size_t, [c_int32, c_int32, c_int32, c_void_p, c_int32]),
    "state_start": (c_int32, [c_int32] * 2),
    "defaults": (c_int32, [c_int32, c_void_p]),
    "memory_start": (c_int32, [c_int32, c_void_p]),
    "set": (c_int32, [c_int32, c_void_p, c_char_p, c_double]),
    "bytes": (c_size_t, [c_int32, c_size_t]),
    "scalars": (c_int32, [c_int32, c_int64, *[c_void_p] * 3]),
    "update": (c_int32, [*[c_int32] * 3, c_size_t, *[c_void_p] * 8, c_int32]),
    "update_rows": (
        c_int32,
        [*[c_int32] * 3, *[c_size_t] * 2, c_void_p, c_size_t, *[c_void_p] * 8, c_int32],
    ),
    "step": (c_int32, [c_void_p, c_size_t, c_void_p, c_size_t, POINTER(Call), c_void_p]),
    "direct": (
        c_int32,
        [c_void_p, c_size_t, c_void_p, c_size_t, POINTER(Call), c_void_p, c_void_p],
    ),
    "batch_norm_train": (c_int32, [POINTER(BatchNorm)]),
    "batch_norm_infer": (c_int32, [POINTER(BatchNorm)]),
    "batch_norm_backward": (c_int32, [POINTER(BatchNorm)]),
}
FUNCTIONS = tuple(f"onepass_{name}" for name in _FUNCTIONS)


class Library:
    """The functions, without their common prefix."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"onepass_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


C = Library(op.get_library())


def address(array: Any) -> int | None:
    """Where an array begins; None is NULL."""
    return None if array is None else array.ctypes.data


def rule_of(cls: type[op.Optimizer]) -> int:
    """The number of a class's rule in C."""
    return C.rule(cls.row.name.encode())


def options_of(cls: type[op.Optimizer], settings: Mapping[str, Any]) -> int:
    """The bits of the options that these settings turn on."""
    variant = cls.row.variant({**cls.defaults, **settings})
    return variant & ((1 << len(cls.row.options)) - 1)


def settings_of(cls: type[op.Optimizer], settings: Mapping[str, Any], step: int = 1) -> Any:
    """The settings as C takes them: every number by the name that C has for it."""
    rule = rule_of(cls)
    numbers = np.empty(C.count(rule, SETTINGS))
    assert C.defaults(rule, address(numbers)) == OK
    given = as_numbers(cls.group_checks, cls._values_of_step(settings, step))
    for i in range(numbers.size):
        name = C.name(rule, SETTINGS, i).decode()
        numbers[i] = given.get(name, numbers[i])
    return numbers


def scalars_of(
    cls: type[op.Optimizer], settings: Mapping[str, Any], step: int, memory: Any = None
) -> Any:
    """The numbers of a step."""
    rule = rule_of(cls)
    scalars = np.full(C.count(rule, SCALARS), np.nan)
    numbers = settings_of(cls, settings, step)
    assert C.scalars(rule, step, address(numbers), address(memory), address(scalars)) == OK
    return scalars


class Step:
    """Arguments of onepass_step over arrays, which it keeps alive.

    `kept` has for each parameter what `reference_step` takes behind the gradient: states, numbers
    that the rule remembers, Lookahead's weights, the average.
    """

    def __init__(
        self,
        cls: type[op.Optimizer],
        settings: Mapping[str, Any],
        params: Sequence[Any],
        grads: Sequence[Any],
        kept: Sequence[Sequence[Any]],
        step: int = 1,
        **call: Any,
    ) -> None:
        self.numbers = settings_of(cls, settings, step)
        self.group = Group(rule_of(cls), options_of(cls, settings), address(self.numbers))
        self.call = Call(**call)
        self.result = Result()
        self.memories: list[Any] = []
        self.shapes = [np.array(param.shape, np.int64) for param in params]
        self.tensors = (Tensor * len(params))()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            tensor = self.tensors[i]
            tensor.size, tensor.param, tensor.grad = param.size, address(param), address(grad)
            tensor.format = FORMATS[param.dtype]
            tensor.grad_format = FORMATS[grad.dtype] if grad is not None else 0
            tensor.shape, tensor.ndim = address(self.shapes[i]), param.ndim
            tensor.f_order = not param.flags.c_contiguous
            tensor.steps, tensor.nearest = step - 1, settings.get("rounding") == "nearest"
            self._add_kept(cls, settings, tensor, list(kept[i]))

    def _add_kept(
        self, cls: type[op.Optimizer], settings: Mapping[str, Any], tensor: Tensor, kept: list[Any]
    ) -> None:
        if settings.get("ema_decay") is not None or settings.get("swa_start") is not None:
            tensor.average = address(kept.pop())
        if settings.get("lookahead_every") is not None:
            tensor.slow = address(kept.pop())
        n = len(cls.row.states)
        for k, array in enumerate(kept[:n]):
            tensor.state[k] = address(array)
            if array is not None and array.dtype.itemsize < 4:
                tensor.state_format = FORMATS[array.dtype]
        if len(kept) > n:
            self.memories.append((np.array([float(number) for number in kept[n:]]), kept[n:]))
            tensor.memory = address(self.memories[-1][0])

    def run(self) -> int:
        """Take the step; return the code."""
        arguments = (ctypes.byref(self.group), 1, self.tensors, len(self.tensors))
        code = C.step(*arguments, self.call, ctypes.byref(self.result))
        for numbers, arrays in self.memories:
            for number, array in zip(numbers, arrays, strict=True):
                array[...] = number
        return code
