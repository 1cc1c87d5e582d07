"""What a stream is made of, checked."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import Whole, check_setting, schedules_in
from onepass._typing import Array
from onepass.optim import Optimizer, _foreign, _storage, registry
from onepass.optim._settings import CHECKS, DEFAULTS, GROUP_CHECKS, GROUP_DEFAULTS

Source = Array | Callable[[int, int], Array]
"""A flat array, or a function of begin and end that returns such a part of one."""

NOT_HERE = "max_grad_norm_each"
"""A stage that has no meaning where all parameters are one array."""
OPTIONS = tuple(name for name in (*CHECKS, *GROUP_CHECKS) if name != NOT_HERE)
_DEFAULTS = {**GROUP_DEFAULTS, **DEFAULTS, "rounding": "stochastic"}
del _DEFAULTS[NOT_HERE]


def rule_of(rule: str | type[Optimizer]) -> type[Optimizer]:
    name = getattr(rule, "rule", rule)
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"rule: expected a class or one of {', '.join(registry)}, got {rule!r}")
    return registry[name]


def described(
    params: Source, size: int | None, dtype: npt.DTypeLike | None
) -> tuple[np.dtype[Any], int]:
    """Return dtype and size of the parameters."""
    if callable(params):
        if size is None or dtype is None:
            raise TypeError(
                "size, dtype: expected both where a function has the parameters, got None"
            )
        found, count = np.dtype(dtype), Whole(low=1)("size", size)
    else:
        if not isinstance(params, np.ndarray):
            got = type(params).__name__
            raise TypeError(f"params: expected a flat NumPy array or a function, got {got}")
        if size is not None or dtype is not None:
            raise TypeError("size, dtype: expected None beside an array, got a value")
        if params.ndim != 1 or not params.size:
            raise ValueError(
                f"params: expected a flat array with elements, got shape {params.shape}"
            )
        found, count = params.dtype, params.size
    if found.name not in ("float32", "float64", "float16", "bfloat16") or not found.isnative:
        expected = "dtype float32, float64, float16 or bfloat16"
        raise TypeError(f"params: expected {expected}, got {found}")
    return found, count


def checked(
    cls: type[Optimizer], dtype: np.dtype[Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all settings, or raise where they are not what a stream can step with."""
    _foreign.check_names(cls, settings, OPTIONS)
    is_small = dtype.itemsize == 2
    values: dict[str, Any] = {**cls.defaults, **_DEFAULTS}
    for name, value in settings.items():
        checks = CHECKS if name in CHECKS else cls.group_checks
        values[name] = check_setting(checks, name, value)
        if schedules_in(values[name]):
            expected = "a value (give that of a schedule to step)"
            raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if values["rounding"] == "master":
        raise ValueError("rounding: expected 'stochastic' or 'nearest' in a stream, got 'master'")
    cls._check_together({**values, "rounding": values["rounding"] if is_small else "master"})
    if why := cls.row.why_whole(values):
        raise ValueError(f"rule: expected one that steps parts alone, got {cls.__name__} ({why})")
    _storage.check_format(values["state_format"], [np.empty(0, dtype)])
    return values
