"""The rules as free functions on raw arrays, in place, for embedding in other code.

There is one function a rule: `sgd`, `adagrad`, `rmsprop`, `adam`, `adamw`. Each takes the
parameter, the gradient and the rule's state as positional arrays, or lists of arrays, and the
hyperparameters of the class of that name as keywords. The caller keeps the state and counts the
steps.
"""

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from onepass import _core
from onepass._hyperparameters import Choice, Fixed, Maybe, Whole, check_setting
from onepass._typing import Array
from onepass.optim import Optimizer, StepInfo, _foreign, registry
from onepass.optim._settings import CHECKS, GRAD_SCALE, GROUP_CHECKS, GROUP_DEFAULTS

__all__ = list(registry)

_OPTIONS = {
    "step": Maybe(Whole(low=1, below=2**53)),
    "averaged": Maybe(Whole(low=1, below=2**53)),
    "grad_scale": GRAD_SCALE,
    "rounding": Choice(("stochastic", "nearest")),
    **CHECKS,
}
"""What a call takes besides settings of a group, arrays and threads."""

_STAGES = ("max_grad_value", "ema_decay", "ema_warmup", "swa_start")
"""The settings of a group that every rule has. The arrays say what the others would."""

_KEYWORDS = {
    "grad_scale": 1.0,
    "max_grad_norm": None,
    **{name: GROUP_DEFAULTS[name] for name in _STAGES},
    "average": None,
    "averaged": None,
    "nonfinite": "propagate",
    "clear_grads": False,
    "rounding": "stochastic",
    "seed": 0,
    "num_threads": None,
}

_Arrays = Array | list[Array] | tuple[Array, ...]


class Kernel(Protocol):
    """One step of a rule on one parameter, or on several, in place."""

    def __call__(
        self, param: _Arrays, grad: Any, /, *state: _Arrays | None, **keywords: Any
    ) -> StepInfo: ...


def _make_kernel(cls: type[Optimizer]) -> Kernel:
    def kernel(param: _Arrays, grad: Any, /, *state: _Arrays | None, **keywords: Any) -> StepInfo:
        raise NotImplementedError

    def fail(name: str) -> None:
        _foreign.check_names(cls, [name], _KEYWORDS)

    kernel.__name__ = kernel.__qualname__ = cls.rule
    kernel.__doc__ = _DOC.format(cls=cls.__name__, states=", ".join(cls.row.states), rule=cls.rule)
    kernel.__signature__ = _signature(cls)  # type: ignore[attr-defined]
    checks = {**cls.checks, **{name: GROUP_CHECKS[name] for name in _STAGES}}
    return _core.make_kernel(
        declaration=kernel,
        fields=_core.Fields(cls.row.name, checks, check_setting, cls._check_together),
        defaults={**cls.defaults, **{name: GROUP_DEFAULTS[name] for name in _STAGES}},
        options=_OPTIONS,
        check_setting=check_setting,
        fail=fail,
    )


def _signature(cls: type[Optimizer]) -> inspect.Signature:
    kinds = inspect.Parameter
    always = cls.row.uses_state[0]
    arrays = [
        kinds(name, kinds.POSITIONAL_ONLY, default=kinds.empty if used else None)
        for name, used in zip(
            ["param", "grad", *cls.row.states], [True, True, *always], strict=True
        )
    ]
    own = {n: v for n, v in cls.defaults.items() if not isinstance(cls.checks[n], Fixed)}
    keywords = {"step": None, **own, **_KEYWORDS}
    named = [kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in keywords.items()]
    return inspect.Signature([*arrays, *named])


_DOC = """One step of `onepass.{cls}` on one parameter, in place.

Parameters
----------
param : ndarray of float32, float64, float16 or bfloat16
    Updated in place: writable, aligned, C- or F-contiguous.
grad : ndarray
    Of the parameter's shape and dtype, or, but for float64, any of float32, float16 and
    ``ml_dtypes.bfloat16``; with any strides; only read.
{states} : ndarray
    The state, where the options use it (else absent or None): like `param` in shape, dtype (float32
    beside 16 bits) and order, starting from zeros (`sum` from Adagrad's
    `initial_accumulator_value`), updated in place. But for float64 also bfloat16, or uint8 of
    shape (257 * ceil(size / 256),), see `onepass.formats.q8_encode`.
step : int
    The number of this step, from 1. May be left out where the options do not depend on it and no
    array has fewer bits than float32. In every 64th step subnormal state becomes zero, see
    `onepass.Optimizer`; where it is left out, in none.
rounding : {{"stochastic", "nearest"}}
    Of a parameter of 16 bits. State in fewer bits is rounded stochastically.
seed : int in [0, 2**53)
    Of the random bits; with the number of the step it says which they are. Give each parameter one
    of its own.
num_threads : int, optional
    The default is `onepass.get_num_threads()`.
**hyperparameters
    Those of `onepass.{cls}`, with its defaults; plain values, no schedules.

Raises
------
TypeError, ValueError
    If an array or a value is not as it must be. Then nothing has changed.

See Also
--------
onepass.{cls} : the equations, the options and their sources.
"""

globals().update({rule: _make_kernel(cls) for rule, cls in registry.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> Kernel: ...
