"""The rules as free functions on raw arrays, in place, for embedding in other code.

There is one function a rule: `sgd`, `adagrad`, `rmsprop`, `adam`, `adamw`. Each takes the
parameter, the gradient and the rule's state as positional arrays, and the hyperparameters of the
class of that name as keywords. The caller keeps the state and counts the steps.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from onepass import _core
from onepass._hyperparameters import Fixed, Whole, check_setting
from onepass._typing import Array
from onepass.optim import Optimizer, _foreign, _stages, registry
from onepass.optim._table import INDEX, ROWS, options_of, scalars_of

__all__ = list(registry)

_OPTIONS = ("step", "rounding", "seed", "num_threads")
"""What every function takes besides the hyperparameters."""


class Kernel(Protocol):
    """One step of a rule on one parameter, in place."""

    def __call__(
        self,
        param: Array,
        grad: Array,
        *state: Array | None,
        step: int | None = None,
        rounding: str = "stochastic",
        seed: int = 0,
        num_threads: int | None = None,
        **hyperparameters: Any,
    ) -> None: ...


def _make_kernel(cls: type[Optimizer]) -> Kernel:
    states = ROWS[cls.row]["states"]
    n_states, rule = len(states), INDEX[cls.row]

    def kernel(
        param: Array,
        grad: Array,
        *state: Array | None,
        step: int | None = None,
        rounding: str = "stochastic",
        seed: int = 0,
        num_threads: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        try:
            found = checked(**hyperparameters)
        except TypeError:  # not hashable, or not valid: then the next line says how
            found = None
        values, constants, options = found or checked.__wrapped__(**hyperparameters)
        if len(state) > n_states:
            raise TypeError(f"state: expected at most {n_states} arrays, got {len(state)}")
        if type(step) is not int or step < 1:
            step = _check_step(cls, step, values, (param, *state))
        if type(seed) is not int or seed:
            seed = _stages.CHECKS["seed"]("seed", seed)
        scalars = scalars_of(cls, values, constants, 0.0, seed, step)
        jobs = [(rule, options, (0,), _is_stochastic(rounding))]
        given = (None, [param], [grad], [state], jobs, _core.Gradients.any, None, None)
        _core.run(given, [scalars], num_threads)

    # Mostly the same values come again, and checking them takes longer than a small step.
    @lru_cache(maxsize=64, typed=True)
    def checked(**given: Any) -> tuple[dict[str, Any], tuple[float, ...], int]:
        values = {**cls.defaults, **_stages.GROUP_DEFAULTS}
        _foreign.check_names(cls, given, _OPTIONS)
        for name, value in given.items():
            values[name] = check_setting(cls.checks, name, value)
            if callable(value):
                raise TypeError(f"{name}: expected a value (evaluate the schedule), got {value!r}")
        cls.check_together(values)
        return values, _stages.constants(values), options_of(cls, values)

    kernel.__name__ = kernel.__qualname__ = cls.rule
    kernel.__doc__ = _DOC.format(cls=cls.__name__, states=", ".join(states), rule=cls.rule)
    kernel.__signature__ = _signature(cls, states)  # type: ignore[attr-defined]
    return kernel


def _check_step(
    cls: type[Optimizer], step: int | None, values: Mapping[str, Any], arrays: tuple[Any, ...]
) -> int:
    if step is None:
        rounds = any(getattr(array, "itemsize", 4) < 4 for array in arrays)
        if rounds or cls.scalars(1, values) != cls.scalars(2, values):
            raise TypeError("step: expected the number of this step, from 1, got none")
        return 1
    return Whole(low=1)("step", step)


def _is_stochastic(rounding: str) -> bool:
    if rounding not in ("stochastic", "nearest"):
        expected = "'stochastic' or 'nearest' (a function keeps no master)"
        raise ValueError(f"rounding: expected {expected}, got {rounding!r}")
    return rounding == "stochastic"


def _signature(cls: type[Optimizer], states: list[str]) -> inspect.Signature:
    kinds = inspect.Parameter
    always = ROWS[cls.row]["uses_state"][0]
    arrays = [
        kinds(name, kinds.POSITIONAL_ONLY, default=kinds.empty if used else None)
        for name, used in zip(["param", "grad", *states], [True, True, *always], strict=True)
    ]
    rest = {"rounding": "stochastic", "seed": 0, "num_threads": None}
    own = {n: v for n, v in cls.defaults.items() if not isinstance(cls.checks[n], Fixed)}
    keywords = {"step": None, **own, **rest}
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
