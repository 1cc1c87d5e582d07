"""Thinc's optimizers, and so spaCy's, with the arithmetic in one pass of onepass.

A config needs one line changed, ``@optimizers = "onepass.Adam.v1"``: Thinc finds the classes by
their entry points. `Adam`, `AdamW` and `SGD` are Thinc's own rules, in subclasses of Thinc's own
class that do the arithmetic alone. The other classes have rules that Thinc lacks: `Lion`, `LAMB`
and so on.
"""

import inspect
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from onepass import kernels, optim
from onepass._extras import require
from onepass._typing import Array

require("thinc", thinc="thinc")
from thinc import optimizers as theirs  # noqa: E402

_RULES = [
    "ADOPT",
    "LAMB",
    "LARS",
    "SM3",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adamax",
    "Adan",
    "Lion",
    "NAdam",
    "NovoGrad",
    "RMSprop",
    "Yogi",
]
"""Rules that Thinc lacks, and that can be called for each array by itself, as Thinc does."""

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
__all__.extend(_RULES)

if TYPE_CHECKING:
    _Value: TypeAlias = Any
else:  # a number, or what is a schedule in this version of Thinc: configs are checked by it
    _Value = theirs.Adam.__annotations__.get("learn_rate")

_MOST_DECAY = 0.9999
"""What Thinc's average keeps of itself in late steps."""


class _Base(theirs.Optimizer):
    """What the rules share: reading schedules, and Thinc's average of the weights."""

    __slots__ = ()

    def _value(self, name: str, key: Hashable) -> float:
        """Return the value of a setting in this step."""
        value = getattr(self, name)
        if callable(value):  # in Thinc 9 it is a schedule; in Thinc 8 `step_schedules` assigns it
            value = value(self.step, key=key, last_score=self.last_score)
        return float(value)

    def _move_average(self, key: Hashable, weights: Array, t: int) -> None:
        """Let the weights enter their average: average -= (1 - decay) * (average - weights).

        That is a step of gradient descent, upwards along the weights, with a coupled decay of 1.
        """
        if self.averages is None:
            return
        if key not in self.averages:
            self.averages[key] = np.zeros_like(weights)
        rate = 1.0 - min((1.0 + t) / (10.0 + t), _MOST_DECAY)
        kernels.sgd(self.averages[key], weights, lr=rate, weight_decay=1.0, maximize=True)


class Optimizer(_Base):
    r"""Thinc's class `thinc.api.Optimizer`, with the steps of Adam and SGD done by onepass.

    `Adam`, `AdamW` and `SGD` are this class with their own defaults. Constructor, schedules,
    attributes, state and pickles are Thinc's; the call alone is overridden.

    For each array, clipped to the norm :math:`c` by itself, with the rate
    :math:`\eta` = ``learn_rate * lr_scale`` and :math:`t` the calls for that array:

    .. math::

        g &\leftarrow g \min(1, c / \lVert g \rVert) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
            \frac{m}{\sqrt{v} + \epsilon} \\
        w &\leftarrow w - \eta \lambda w \\
        a &\leftarrow a - \left(1 - \min\left(\tfrac{1 + t}{10 + t}, 0.9999\right)\right) (a - w)

    with :math:`\lambda` = `L2`, and :math:`a`, the average of the weights, starting from zeros. If
    ``beta2`` is 0, the step is :math:`w \leftarrow w - \eta g`. With
    ``L2_is_weight_decay=False`` the gradient becomes :math:`g + \lambda w` before it is clipped,
    and the weights do not decay after the step. It happens in place: a pass over the gradient for
    its norm, one over the gradient, the state and the weights, and one over the average.

    Parameters
    ----------
    learn_rate : float, or schedule
    L2 : float, or schedule
    beta1, beta2 : float, or schedule
    eps : float, or schedule
    grad_clip : float, or schedule
        The norm that the gradient of each array may have; 0 clips nothing.
    use_averages : bool
        Keep an average of the weights in ``averages``, for ``Model.use_params``.
    use_radam : bool
        Leave the step to Thinc's rule RAdam.
    L2_is_weight_decay : bool

    Raises
    ------
    ValueError
        Thinc's own errors.

    Notes
    -----
    State per array: Thinc's, ``mom1`` and ``mom2``, and ``averages`` where they are on. Threads are
    those of `onepass.set_num_threads`; the bits do not depend on their number.

    Thinc's own step is taken where ours does not fit: RAdam; `L2` that is no weight decay together
    with `grad_clip`; arrays that are not float32, in C order and writable, such as CuPy's; betas
    not below 1, and negative or infinite settings.

    Differs from

    * Thinc: in rounding. In clipping: :math:`10^{-6}` is added to the norm, whose squares are
      summed in double and do not overflow; and a NaN in a gradient makes all of that array NaN
      unless `grad_clip` is 0. The arrays returned are always the ones given.
    * `onepass.Adam`: epsilon is not corrected (``eps_hat=True`` there); the weights decay after the
      step and not before it; and the average starts from zeros.

    References
    ----------
    M. Honnibal and others, Thinc, ``thinc/optimizers.py``, versions 8.3 and 9.1.

    Examples
    --------
    >>> from thinc.api import Config, registry
    >>> config = Config().from_str('''
    ... [optimizer]
    ... @optimizers = "onepass.Adam.v1"
    ... learn_rate = 0.01
    ... ''')
    >>> registry.resolve(config)["optimizer"]  # doctest: +ELLIPSIS
    <onepass.thinc.Adam object at ...>
    """

    __slots__ = ()

    def __call__(
        self, key: Hashable, weights: Array, gradient: Array, *, lr_scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Update an array in place by its gradient, which becomes zero; return both.

        Parameters
        ----------
        key : hashable
            What the state of this array is kept under; in Thinc a model's id and a name.
        weights, gradient : ndarray of float32
        lr_scale : float
        """
        if len(gradient) < 1:
            return weights, gradient
        t = self.nr_update[key] + 1
        if not self._move(key, weights, gradient, lr_scale, t):
            moved: tuple[Array, Array] = super().__call__(key, weights, gradient, lr_scale=lr_scale)
            return moved
        self.nr_update[key] = t
        self._move_average(key, weights, t)
        return weights, gradient

    def _move(
        self, key: Hashable, weights: Array, gradient: Array, lr_scale: float, t: int
    ) -> bool:
        """Move the weights, and return True; or return False where the step is left to Thinc."""
        names = ("learn_rate", "L2", "grad_clip", "b1", "b2", "eps")
        rate, decay, clip, beta1, beta2, eps = (self._value(name, key) for name in names)
        rate *= lr_scale
        shrink = 1.0 - rate * decay if self.L2_is_weight_decay else 1.0
        is_adam = beta1 > 0.0 and beta2 > 0.0
        in_range = all(0.0 <= value < math.inf for value in (rate, decay, clip, eps))
        in_range = in_range and shrink > 0.0 and beta1 < 1.0 and beta2 < 1.0
        has_form = not self.use_radam and (is_adam or beta2 <= 0.0)
        # Thinc takes the norm of the gradient with the coupled decay, and the kernels without it.
        has_form = has_form and (self.L2_is_weight_decay or not (decay and clip))
        average = (self.averages or {}).get(key, weights)
        if not (in_range and has_form and _fit(weights, gradient, average)):
            return False
        stages = {"max_grad_norm_each": clip or None, "clear_grads": True}
        if not is_adam:
            # Thinc decays last: (w - rate g) shrink = w - rate shrink (g + decay / shrink w).
            kernels.sgd(weights, gradient, lr=rate * shrink, weight_decay=decay / shrink, **stages)
            return True
        rate *= (1.0 - beta2**t) ** 0.5 / (1.0 - beta1**t) * shrink
        if self.L2_is_weight_decay:  # the kernels shrink first, to 1 - lr weight_decay
            decay = (1.0 - shrink) / rate if rate else 0.0
        for moments in (self.mom1, self.mom2):
            if key not in moments:
                moments[key] = np.zeros(weights.size, np.float32)
        kernels.adam(
            weights.reshape(-1),
            gradient.reshape(-1),
            self.mom1[key],
            self.mom2[key],
            step=t,
            lr=rate,
            betas=(float(np.float32(beta1)), float(np.float32(beta2))),  # as in Thinc's loop
            eps=eps,
            weight_decay=decay,
            decoupled_weight_decay=self.L2_is_weight_decay,
            bias_correction=False,  # the rate has it
            **stages,
        )
        return True


def _fit(weights: Array, *others: Array) -> bool:
    """Return whether arrays are as Thinc makes them: alike, float32, in C order, writable."""
    return all(
        isinstance(array, np.ndarray)
        and array.dtype == np.float32
        and array.flags.carray
        and array.shape == weights.shape
        for array in (weights, *others)
    )


class Adam(Optimizer):
    """Thinc's ``Adam.v1``, as ``onepass.Adam.v1``: all about it is said of `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> from onepass.thinc import Adam
    >>> optimizer = Adam(0.1)
    >>> weights, gradient = np.ones(2, np.float32), np.array([0.5, -2.0], np.float32)
    >>> weights, gradient = optimizer((1, "W"), weights, gradient)
    >>> weights.round(3), gradient
    (array([0.9, 1.1], dtype=float32), array([0., 0.], dtype=float32))
    """

    __slots__ = ()

    def __init__(
        self,
        learn_rate: _Value = 0.001,
        *,
        L2: _Value = 0.0,  # noqa: N803
        beta1: _Value = 0.9,
        beta2: _Value = 0.999,
        eps: _Value = 1e-8,
        grad_clip: _Value = 1.0,
        L2_is_weight_decay: bool = True,  # noqa: N803
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )


class AdamW(Adam):
    """`Adam` with a weight decay of 0.01, as ``onepass.AdamW.v1``.

    Thinc has no such name: its Adam, too, lets the weights decay by themselves unless it is told
    otherwise. So `L2_is_weight_decay` may be given here, as in spaCy's configs, and must be True.

    Raises
    ------
    ValueError
        If it is False.

    Examples
    --------
    >>> from onepass.thinc import AdamW
    >>> AdamW(0.1, L2_is_weight_decay=False)
    Traceback (most recent call last):
    ValueError: L2_is_weight_decay: expected True in this class, got False
    """

    __slots__ = ()

    def __init__(
        self,
        learn_rate: _Value = 0.001,
        *,
        L2: _Value = 0.01,  # noqa: N803
        beta1: _Value = 0.9,
        beta2: _Value = 0.999,
        eps: _Value = 1e-8,
        grad_clip: _Value = 1.0,
        L2_is_weight_decay: bool = True,  # noqa: N803
        use_averages: bool = True,
    ) -> None:
        if not L2_is_weight_decay:
            expected = "expected True in this class"
            raise ValueError(f"L2_is_weight_decay: {expected}, got {L2_is_weight_decay!r}")
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            use_averages=use_averages,
        )


class SGD(Optimizer):
    """Thinc's ``SGD.v1``, as ``onepass.SGD.v1``: all about it is said of `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> from onepass.thinc import SGD
    >>> optimizer = SGD(0.1, grad_clip=0.0)
    >>> weights, gradient = np.ones(2, np.float32), np.array([0.5, -2.0], np.float32)
    >>> optimizer((1, "W"), weights, gradient)[0]
    array([0.95, 1.2 ], dtype=float32)
    """

    __slots__ = ()

    def __init__(
        self,
        learn_rate: _Value,
        *,
        L2: _Value = 0.0,  # noqa: N803
        grad_clip: _Value = 1.0,
        L2_is_weight_decay: bool = True,  # noqa: N803
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=0.0,
            beta2=0.0,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )


class _Rule(_Base):
    """One of our rules, for each array by itself."""

    __slots__ = ("settings", "states")

    rule: ClassVar[type[optim.Optimizer]]

    def __init__(
        self,
        learn_rate: _Value = None,
        *,
        L2: _Value = None,  # noqa: N803
        grad_clip: _Value = 1.0,
        use_averages: bool = True,
        **settings: Any,
    ) -> None:
        defaults = self.rule.defaults
        super().__init__(
            defaults["lr"] if learn_rate is None else learn_rate,
            L2=defaults["weight_decay"] if L2 is None else L2,
            grad_clip=grad_clip,
            use_averages=use_averages,
        )
        self.rule(np.zeros(1, np.float32), **settings)  # raises where they are wrong
        self.settings = settings
        self.states: dict[Hashable, list[Array | None]] = {}

    def __call__(
        self, key: Hashable, weights: Array, gradient: Array, *, lr_scale: float = 1.0
    ) -> tuple[Array, Array]:
        """Update an array in place by its gradient, which becomes zero; return both."""
        if len(gradient) < 1:
            return weights, gradient
        t = self.nr_update[key] + 1
        if key not in self.states:
            self.states[key] = self._start(weights)
        getattr(kernels, self.rule.rule)(
            weights,
            gradient,
            *self.states[key],
            step=t,
            lr=lr_scale * self._value("learn_rate", key),
            weight_decay=self._value("L2", key),
            max_grad_norm_each=self._value("grad_clip", key) or None,
            clear_grads=True,
            **self.settings,
        )
        self.nr_update[key] = t
        self._move_average(key, weights, t)
        return weights, gradient

    def _start(self, weights: Array) -> list[Array | None]:
        """Return what the rule keeps of an array, as before the first step."""
        values = {**self.rule.defaults, **self.settings}
        start = values.get("initial_accumulator_value", 0.0)
        shapes = self.rule.state_shapes(weights.shape, **self.settings)
        arrays = [s if s is None else np.full(s, start, weights.dtype) for s in shapes]
        return [*arrays, *map(np.array, self.rule.memory_start().values())]


_DOC = """The rule of `onepass.{name}` for Thinc, as ``onepass.{name}.v1``.

Parameters
----------
learn_rate : float, or schedule
    `lr` of `onepass.{name}`.
L2 : float, or schedule
    `weight_decay` of `onepass.{name}`: coupled or not, as it is there.
grad_clip : float, or schedule
    The norm that the gradient of each array may have; 0 clips nothing.
use_averages : bool
    Keep Thinc's average of the weights in ``averages``.
**settings
    All others of `onepass.{name}`; plain values, no schedules.

Raises
------
TypeError, ValueError
    ``<argument>: expected ..., got ...`` if a setting is out of range, or if an array cannot be
    updated in place. Then nothing has changed.

Notes
-----
Differs from

* Thinc: it has no such rule. Arrays are NumPy's.
* `onepass.{name}`: each array goes by itself, with its own norm to clip by and its own count of
  steps.
"""


def _make_rule(name: str) -> type[_Rule]:
    rule: type[optim.Optimizer] = getattr(optim, name)
    kinds = inspect.Parameter
    own = {n: v for n, v in rule.defaults.items() if n not in ("lr", "weight_decay")}
    named = {"L2": rule.defaults["weight_decay"], "grad_clip": 1.0, "use_averages": True, **own}
    signature = inspect.Signature(
        [
            kinds("learn_rate", kinds.POSITIONAL_OR_KEYWORD, default=rule.defaults["lr"]),
            *[kinds(n, kinds.KEYWORD_ONLY, default=value) for n, value in named.items()],
        ]
    )
    return type(
        name,
        (_Rule,),
        {
            "__slots__": (),
            "__doc__": _DOC.format(name=name),
            "__module__": __name__,
            "__signature__": signature,
            "rule": rule,
        },
    )


globals().update({name: _make_rule(name) for name in _RULES})

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[_Rule]: ...
