"""The rules as free functions on raw arrays, in place, for embedding in other code.

There is one function for each optimizer, under its name in lower case: `sgd`, `adamw`, `lion` and
so on. It takes the parameter, the gradient and the rule's state as positional arrays, or lists of
arrays, and as keywords the hyperparameters of the class of that name and what else belongs to a
step: clipping, skipping, averaging. The caller keeps the state and counts the steps.
"""

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from onepass import _core
from onepass._hyperparameters import Choice, Fixed, Maybe, Number, Whole, check_setting
from onepass._typing import Array
from onepass.optim import Optimizer, StepInfo, _foreign, registry
from onepass.optim._settings import CHECKS, GRAD_SCALE, GROUP_CHECKS, GROUP_DEFAULTS

__all__ = list(registry)

_OPTIONS = {
    "step": Maybe(Whole(low=1, below=2**53)),
    "averaged": Maybe(Whole(low=1, below=2**53)),
    "grad_scale": GRAD_SCALE,
    "grad_norm": Maybe(Number(infinite=True)),
    "rounding": Choice(("stochastic", "nearest")),
    **CHECKS,
}
"""What a call takes besides settings of a group, arrays and threads."""

_STAGES = (
    "max_grad_norm_each",
    "max_grad_value",
    "ema_decay",
    "ema_warmup",
    "swa_start",
    "average_every",
    "average_dtype",
    "lookahead_every",
    "lookahead_weight",
    "cautious_weight_decay",
)
"""The settings of a group that every rule has. The arrays say what the others would."""

_KEYWORDS = {
    "rows": None,
    "grad_scale": 1.0,
    "max_grad_norm": None,
    "grad_norm": None,
    "skip_grad_norm": None,
    **{name: GROUP_DEFAULTS[name] for name in _STAGES},
    "average": None,
    "averaged": None,
    "slow": None,
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
        _foreign.check_names(cls, [name], ("step", *_KEYWORDS))

    kernel.__name__ = kernel.__qualname__ = cls.rule
    row, starts = cls.row, ", ".join(map(str, cls.row.memory_start))
    kernel.__doc__ = _DOC.format(
        cls=cls.__name__,
        states=", ".join(row.states),
        shape="" if row.factored else "shape, ",
        shapes=_SHAPES if row.factored else "",
        rule=cls.rule,
        memory=_MEMORY.format(names=", ".join(row.memory), starts=starts) if row.memory else "",
    )
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
    row = cls.row
    by_all = map(all, zip(*row.uses_state, strict=True))  # options or shapes leave out the others
    always = [True, True, *by_all, *[True] * len(row.memory)]
    arrays = [
        kinds(name, kinds.POSITIONAL_ONLY, default=kinds.empty if used else None)
        for name, used in zip(["param", "grad", *row.states, *row.memory], always, strict=True)
    ]
    own = {n: v for n, v in cls.defaults.items() if not isinstance(cls.checks[n], Fixed)}
    keywords = {"step": None, **own, **_KEYWORDS}
    named = [kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in keywords.items()]
    return inspect.Signature([*arrays, *named])


_SHAPES = """ The class's `state_names` says which arrays a parameter of some shape has, and
    its `state_shapes` what their shapes are; one that is not like `param` is kept in no other
    format."""

_MEMORY = """{names} : ndarray of one float64, or list of them
    What the rule remembers of each parameter besides arrays, from {starts}; updated in place.
"""

_DOC = """One step of `onepass.{cls}` on arrays of the caller's, in place.

A call takes one parameter or several. For several, each argument that is an array for one is a list
(or tuple) of arrays, in the order of the parameters. The keywords are the settings of
`onepass.{cls}` and the stages of a step, which happen as there, in the same order and to the same
bits (see `onepass.Optimizer`). Everything is checked before the first element is written.

Parameters
----------
param : ndarray of float32, float64, float16 or bfloat16, or list of them
    Updated in place: writable, aligned, without gaps.
grad : ndarray, or list of them
    Of the parameter's shape, and of float64, float32, float16 or ``ml_dtypes.bfloat16``, widened
    or rounded to the dtype that the rule computes in; with any strides; only read, unless
    `clear_grads`. Where it is only read, another library's array, or a number beside shape (), will
    do, as in `onepass.Optimizer.step`. None in a list leaves that parameter and its state alone.
{states} : ndarray, or list of them
    The state, where the options use it (else absent or None): like `param` in {shape}dtype (float32
    beside 16 bits) and order, starting from zeros, or from `initial_accumulator_value` where the
    class has it, updated in place. But for float64 also bfloat16, or uint8 of
    shape (257 * ceil(size / 256),), see `onepass.formats.q8_encode`; all state of one parameter in
    one format.{shapes}
{memory}step : int >= 1, optional
    The number of this step. It may be left out where the rule with these options does not depend
    on it, no array has fewer bits than float32 and there is no average. In every 64th step
    subnormal state becomes zero, see `onepass.Optimizer`; where it is left out, in none.
rows : ndarray of integers, or list of them, optional
    Move these rows of `param` and of the state alone (of the first axis): a 1-D array of numbers in
    [0, rows), in any order. `grad` has their gradients, in the shape ``(len(rows),
    *param.shape[1:])``; for a row that is named twice these are summed. None in a list moves that
    parameter as a whole. See `onepass.Optimizer.step_rows`; `param` must lie in C order.
**hyperparameters
    Those of `onepass.{cls}`, with its defaults, `weight_decay` and `maximize` among them; plain
    values, no schedules. Another value in each call costs nothing extra.
grad_scale : float in [2**-126, 2**128)
    What the gradients are divided by: the loss scale, or how many batches they are summed over.
max_grad_norm : float > 0, optional
    The Euclidean norm that all gradients of the call together may have; ``math.inf`` measures it
    and clips nothing.
grad_norm : float >= 0, optional
    The norm of all gradients together, over `grad_scale`, where this call has a part of them only:
    what `max_grad_norm` and `skip_grad_norm` go by then. It is measured where it is left out.
max_grad_norm_each : float > 0, optional
    The norm that each parameter's gradient may have by itself.
max_grad_value : float > 0, optional
    What the absolute value of a gradient's element may be.
ema_decay : float in [0, 1], optional
    The decay of an exponential moving average of the weights, kept in `average`.
ema_warmup : bool
    Let that decay begin small: at most (1 + t) / (10 + t) in the t-th step of the average.
swa_start : int >= 1, optional
    Keep in `average` the plain mean of the weights after this step and all later ones instead;
    before it, the weights themselves.
average_every : int >= 1
    Let only so-many-th steps enter the average; see `onepass.Optimizer`.
average_dtype : {{"float64", "float32"}}
    The dtype of `average` beside a parameter that is not of float64.
lookahead_every, lookahead_weight : int >= 1, optional; float in [2**-126, 1]
    In every so-many-th `step`, go that part of the way from the weights with which the round began
    to the new ones; see `onepass.Optimizer`.
cautious_weight_decay : bool
    Let only those weights decay that the step brings nearer to 0; see `onepass.Optimizer`.
average : ndarray of `average_dtype`, or list of them, optional
    The average of the weights, needed with `ema_decay` or `swa_start`: like `param` in shape and
    order, updated in place. Its first step writes it, so it may start from anything.
slow : ndarray, or list of them, optional
    The weights with which the round of Lookahead began, needed with `lookahead_every`: like `param`
    in shape and order, in float32 beside 16 bits, updated in place. The first step of a round
    writes it, so it may start from anything where the first `step` is 1.
averaged : int >= 1, optional
    How many steps the average has had, this one included; the default is `step`.
skip_grad_norm : float > 0, optional
    The Euclidean norm of all gradients of the call above which the step is left out, as one that is
    not finite is; see `onepass.Optimizer`.
nonfinite : {{"propagate", "skip", "raise"}}
    What an infinity or a NaN in any gradient does: spread, as in NumPy (or leave the step out, with
    `skip_grad_norm`); leave parameters, state and average as they are, which the result says; or
    raise ValueError, with nothing changed.
clear_grads : bool
    Put zeros into the gradients once they are used, also where the step is skipped. They must be
    writable arrays of NumPy's then, and lie in memory as their parameters do.
rounding : {{"stochastic", "nearest"}}
    How a parameter of 16 bits is rounded. State in fewer bits is rounded stochastically.
seed : int in [0, 2**53)
    The seed of stochastic rounding: together with the number of the step, the array's place in the
    call and the element's place it decides about the random bits. Parameters that have a call each
    need a seed each.
num_threads : int, optional
    The default is `onepass.get_num_threads()`. The result is the same bits for any number.

Returns
-------
onepass.StepInfo
    Its `step` is the one given, or the one before where the step was skipped (1 and 0 where none
    was given); then `lr`, the gradients' norm where clipping, `skip_grad_norm` or `nonfinite` asks
    for it, whether they were clipped or the step skipped, and why. After a skipped step, pass the
    same `step` again.

Raises
------
TypeError, ValueError
    ``<argument>: expected ..., got ...`` if an array or a value is not as it must be, if lists
    differ in length, or if two arrays overlap of which one is written. Then nothing has changed.

Notes
-----
Differs from

* `onepass.{cls}`: the caller keeps the state and counts the steps; there are no groups, schedules
  or masters in float32 (so `rounding` is "stochastic" where the class has "master"), and the
  format of the state is that of its arrays. Call it once for each set of parameters that share
  settings; `max_grad_norm`, `skip_grad_norm` and `nonfinite` then see that call's gradients only.
* PyTorch: ``torch.optim.adam.adam`` and its like take lists too, with a tensor for each step
  count; clipping, unscaling and averaging are calls of their own there.

See Also
--------
onepass.{cls} : the equations, the options and their sources.
"""

globals().update({rule: _make_kernel(cls) for rule, cls in registry.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> Kernel: ...
