"""What an optimizer class says about its rule, and the rule as NumPy computes it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from onepass import _core, formats
from onepass._hyperparameters import (
    SCHEDULED,
    Checks,
    Fixed,
    Flag,
    as_numbers,
    check_setting,
    resolve,
)
from onepass._memory import compute_dtype, in_order, order_of
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import _reference
from onepass.optim._row import ROWS, Row
from onepass.optim._settings import GROUP_CHECKS, GROUP_DEFAULTS, averages, check_together
from onepass.optim._storage import closed, opened

_OF_THE_RULE = {
    *("checks", "check_together", "scalars", "measure", "weigh"),
    *("direct", "finish_directions", "reference"),
}
"""What a class that is no rule of its own cannot define anew."""


registry: dict[str, type[Rule]] = {}
"""Every optimizer class, by the name of its rule; `Optimizer`'s are all there are."""


class Rule:
    """The part of an optimizer that needs no parameters: what a subclass states and defines."""

    rule: ClassVar[str]
    row: ClassVar[Row]
    """Its row in rules.def: the rule's own, else that of the class it derives from."""
    checks: ClassVar[Checks]
    """What values each hyperparameter may take."""
    defaults: ClassVar[Mapping[str, Any]]
    """Each hyperparameter's default, read off the constructor."""
    cases: ClassVar[Sequence[Mapping[str, Any]]]
    """Settings that together reach every branch of the rule; tests and benchmarks run them all."""
    step_if_missing: ClassVar[int | None] = None
    """The step of a loaded state that has arrays but no step (PyTorch's SGD keeps none)."""

    saved_scalars: ClassVar[Sequence[str]] = ()
    """Numbers of the coming step that stand in a saved state, because PyTorch's has them; they are
    computed anew from what is loaded."""
    own_average: ClassVar[Callable[..., Array] | None] = None
    """`own_average(param, settings, state)` returns the average of the weights that the rule itself
    keeps, for `averaged`, of the state by name; None where it keeps none."""

    group_checks: ClassVar[Checks]
    """The checks in `checks`, and those of what else may differ from group to group."""
    __signature__: ClassVar[inspect.Signature]
    _fields: ClassVar[_core.Fields]
    """The same for the engine."""

    def __init_subclass__(cls, *, rule: str | None = None) -> None:
        signature = inspect.signature(cls.__init__).parameters
        # What `help` shows: no types, which are unions that fill lines. The docstrings have words.
        _, *shown = [each.replace(annotation=each.empty) for each in signature.values()]
        cls.__signature__ = inspect.Signature(shown)
        if rule is None:  # somebody's subclass of a rule's class, or Optimizer
            known = registry.get(getattr(cls, "rule", ""), cls)
            for name in _OF_THE_RULE if known is not cls else ():
                if inspect.getattr_static(cls, name) is not inspect.getattr_static(known, name):
                    expected = f"that of {cls.rule}, since its kernels know no other"
                    raise TypeError(f"{name}: expected {expected}, got one of {cls.__name__}'s own")
            return
        cls.rule = rule
        cls.row = ROWS.get(rule) or cls.row
        decay = cls.checks.get("weight_decay", SCHEDULED)
        cls.checks = {**cls.checks, "weight_decay": decay, "maximize": Flag()}
        cls.group_checks = {**cls.checks, **GROUP_CHECKS}
        cls._fields = _core.Fields(
            cls.row.name, dict(cls.group_checks), check_setting, cls._check_together
        )
        cls.defaults = {
            name: check.value if isinstance(check, Fixed) else signature[name].default
            for name, check in cls.checks.items()
        }
        registry[rule] = cls

    # What a subclass defines

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError where hyperparameters that are valid alone do not go together."""

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of step `step` (from 1), in double, under the kernel's names.

        `values` are the hyperparameters of that step, and what the rule remembers, by name; what
        that becomes stands last in the result. `reference` uses the rest, rounded to the
        parameter's dtype. The kernels have theirs from the rule's header (`at`); a test holds that
        the two are the same.
        """
        raise NotImplementedError

    @staticmethod
    def reference(
        param: Array, grad: Array, *state: Array | None, **scalars: Any
    ) -> tuple[Any, ...]:
        """Return the new parameter and state: the rule in NumPy, in the kernel's order.

        Takes `scalars`, and the rule's options that are flags. State that the options leave out
        is None.
        """
        raise NotImplementedError

    @staticmethod
    def measure(
        param: Array, grad: Array, *state: Array | None, **scalars: Any
    ) -> tuple[Array, ...]:
        """Return the terms of each sum over a whole array that the rule takes before its step."""
        raise NotImplementedError

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:
        """Return the numbers of the step, and the memory after it, once the sums are known.

        `size` is the number of elements that they are taken over.
        """
        raise NotImplementedError

    @staticmethod
    def direct(grad: Array, *state: Array | None, **scalars: Any) -> Array:
        """Return what a directed rule makes its direction of: the pass before the step."""
        raise NotImplementedError

    @staticmethod
    def finish_directions(
        directions: Sequence[tuple[Array, float, Mapping[str, float]]],
    ) -> None:
        """Make the directions of a step, in place, of what `direct` has made.

        Each comes with its Euclidean norm and the hyperparameters, as numbers under the header's
        names. Whatever this raises, the step has changed nothing.
        """
        raise NotImplementedError

    @classmethod
    def _direction(
        cls, values: Mapping[str, Any], scalars: dict[str, Any], arrays: Sequence[Any]
    ) -> dict[str, Array]:
        """Return the direction of a step as `reference` takes it, where there is one."""
        if not cls.row.is_directed(values):
            return {}
        param, grad, *state = arrays
        if param.ndim < 2:
            raise ValueError(f"param: expected at least 2 dimensions, got shape {param.shape}")
        order = order_of(param)
        direction = in_order(cls.direct(grad, *state, **scalars), order)
        norm = math.sqrt(_reference.measured(_reference.squared(direction), order))
        if direction.size:
            cls.finish_directions([(direction, norm, as_numbers(cls.checks, values))])
        return {"direction": direction}

    @classmethod
    def _weighed(
        cls, scalars: dict[str, Any], arrays: Sequence[Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the numbers of a step once the rule has measured the arrays, where it does."""
        if not cls.row.measures(settings):
            return scalars
        numbers = {name: scalars[name] for name in cls.row.scalars}
        param, grad, *state = arrays
        seen = cls.measure(param, grad, *state, **numbers)
        sums = [_reference.measured(terms, order_of(param)) for terms in seen]
        return cls.weigh(scalars, sums, param.size)

    @classmethod
    def _check_together(cls, settings: Mapping[str, Any]) -> None:
        cls.check_together(settings)
        if "weight_decay" in cls.row.hyper and settings.get("cautious_weight_decay"):
            expected = f"False for {cls.__name__} (its decay is part of the rule)"
            raise ValueError(f"cautious_weight_decay: expected {expected}, got True")
        check_together(settings)
        if cls.row.full_weights and (got := settings.get("rounding", "master")) != "master":
            expected = f"'master' for {cls.__name__} (it keeps other weights too)"
            raise ValueError(f"rounding: expected {expected}, got {got!r}")

    @classmethod
    def state_names(cls, shape: tuple[int, ...] = (), **settings: Any) -> list[str | None]:
        """Return the names of the state arrays that `onepass.kernels` takes, in its order.

        None stands where these settings (else the defaults) leave an array out. `shape` is the
        parameter's: it matters to `Adafactor` alone. The numbers that a rule remembers besides
        arrays come behind them: see `memory_start`.

        Examples
        --------
        >>> import onepass as op
        >>> op.RMSprop.state_names(centered=True)
        ['square_avg', None, 'grad_avg']
        """
        values = {**cls.defaults, **settings}
        return cls.row.used_states(values, shape)

    @classmethod
    def state_shapes(cls, shape: tuple[int, ...], **settings: Any) -> list[tuple[int, ...] | None]:
        """Return the shapes of those arrays for a parameter of this shape.

        Examples
        --------
        >>> import onepass as op
        >>> op.Adam.state_shapes((3, 4))
        [(3, 4), (3, 4), None]
        >>> op.Adafactor.state_shapes((3, 4))
        [(3, 1), (1, 4), None, None]
        """
        values = {**cls.defaults, **settings}
        return cls.row.state_shapes(values, shape)

    @classmethod
    def memory_start(cls) -> dict[str, float]:
        """Return what the rule remembers of each parameter besides arrays, as it begins.

        `onepass.kernels` takes each number behind the state, as an array of one element.

        Examples
        --------
        >>> import onepass as op
        >>> op.NAdam.memory_start()
        {'mu_product': 1.0}
        """
        return dict(zip(cls.row.memory, cls.row.memory_start, strict=True))

    @classmethod
    def _values_of_step(cls, settings: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        """Return the settings of a step, checked, schedules evaluated, defaults included."""
        values = {**cls.defaults, **GROUP_DEFAULTS}
        for name, value in settings.items():
            values[name] = check_setting(cls.group_checks, name, value)
        values = resolve(cls.group_checks, values, step - 1)
        cls._check_together(values)
        return values

    @classmethod
    def _check_moves_rows(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError where a step of these settings cannot move rows alone."""
        row = cls.row
        for why, is_so in {
            "measures whole arrays": row.measures(settings),
            "takes whole matrices": row.is_directed(settings),
            "keeps numbers of rows and columns": row.factored,
            "averages all weights": row.keeps_weights,
        }.items():
            if is_so:
                raise ValueError(f"rows: expected None for {cls.__name__} (it {why}), got an index")
        for name in ("ema_decay", "swa_start", "lookahead_every"):
            if settings[name] is not None:
                expected = "None where rows move alone"
                raise ValueError(f"{name}: expected {expected}, got {settings[name]!r}")

    @classmethod
    def _reference_rows(
        cls, rows: Array, arrays: Sequence[Any], grad: Array, settings: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return a parameter and what is kept of it after a step of some rows."""
        param, *state = arrays
        named, sums = _reference.summed_rows(rows, grad, compute_dtype(param))
        n = len(cls.row.states)
        parts = [a if a is None or k >= n else a[named] for k, a in enumerate(state)]
        after = cls.reference_step(param[named], sums, *parts, **settings)
        moved = []
        for k, part in enumerate(after):
            whole = part  # a number that the rule remembers, or None
            if part is not None and k <= n:
                whole = arrays[k].copy()
                whole[named] = part
            moved.append(whole)
        return tuple(moved)

    @classmethod
    @quiet
    def reference_step(
        cls,
        param: Array,
        grad: Array,
        *state: Array | None,
        step: int = 1,
        grad_factor: float = 1.0,
        averaged: int | None = None,
        seed: int = 0,
        index: int = 0,
        rows: Array | None = None,
        **settings: Any,
    ) -> tuple[Any, ...]:
        """Return what one step makes of these arrays, computed by NumPy, out of place.

        The oracle: for the same dtype the kernels' results equal it bit for bit. With float64
        arrays it is the yardstick for the float32 kernels' accuracy.

        Parameters
        ----------
        param, grad, *state : ndarray
            As for `onepass.kernels`; None for state that the options do not use. Then each number
            that the rule remembers, as an array of one element. Then, where the settings keep
            them, Lookahead's slow weights, and last of all the average of the weights, in float64.
            A parameter with a master stands for itself: give the master.
        step : int
            Counted from 1.
        grad_factor : float
            What the gradient is multiplied by first: the clipping of the common norm over
            `grad_scale`.
        averaged : int, optional
            The steps since the average began, this one included; all by default.
        seed, index : int
            What the random bits come from by which arrays in fewer bits are rounded: the
            optimizer's seed, and the parameter's place in it.
        rows : ndarray of integers, optional
            Move these rows alone, by the gradient's rows, as `onepass.kernels` does.
        **settings
            The class's hyperparameters, and those of `onepass.Optimizer` that groups have.

        Returns
        -------
        tuple
            The new parameter and the new state, None where there is none, in the order given.
        """
        values = cls._values_of_step(settings, step)
        if rows is not None:
            cls._check_moves_rows(values)
            numbers = {"step": step, "grad_factor": grad_factor, **settings}
            return cls._reference_rows(rows, (param, *state), grad, numbers)
        row, n = cls.row, len(cls.row.states)
        given, memory, slow, average = cls._split(state, values, param.shape)
        remembered = {k: _number(k, array) for k, array in zip(row.memory, memory, strict=True)}
        stages = {**values, "weight_decay": 0.0} if "weight_decay" in row.hyper else values
        sign, decay, shrink, max_value = _reference.constants(stages)
        stored = param
        param = param if param.dtype.itemsize > 2 else param.astype(np.float32)
        grad = _in_its_order(param, grad.astype(param.dtype, copy=False))
        padded = tuple(
            array if array is None else opened(array, param, has_sign)
            for array, has_sign in zip(given, row.has_sign, strict=True)
        )
        grad = sign * (grad_factor * _reference.own_clipping(grad, grad_factor, values)) * grad
        if values["max_grad_value"] is not None:
            grad = np.clip(grad, -max_value, max_value)
        if decay:
            grad = grad + decay * param
        slow = _reference.slow_weights(slow, param, step, values)
        param = param * shrink
        flags: dict[str, Any] = {
            name: values[name] for name in row.options if isinstance(values[name], bool)
        }
        scalars = cls.scalars(step, {**values, **remembered})
        scalars = cls._weighed(scalars, (param, grad, *padded), values)
        after = [scalars.pop(name) for name in row.memory]
        computed = cls.reference(
            param,
            grad,
            *padded,
            **{**scalars, **flags, **cls._direction(values, scalars, (param, grad, *padded))},
        )
        weights, *kept = map(partial(_in_its_order, param), computed)
        weights = _reference.decayed_late(param, weights, stages)
        weights = _reference.looked_ahead(weights, slow, step, values)
        if average is not None:
            average = _reference.moved_average(average, weights, step, averaged, values)
        first = index * (n + 1)
        bits = [partial(formats.random_bits, seed, step, first + k) for k in range(n + 1)]
        if step % _reference.FLUSH_EVERY == 0:
            kept = [array if array is None else _reference.flushed(array) for array in kept]
        kept = [
            array if before is None else closed(array, before, bits[k], row.has_sign[k])
            for k, (array, before) in enumerate(zip(kept, given, strict=True))
        ]
        random = None if values["rounding"] == "nearest" else bits[n]
        moved = [array for array in (slow, average) if array is not None]
        return (closed(weights, stored, random), *kept, *map(np.full_like, memory, after), *moved)

    @classmethod
    def _split(
        cls, state: Sequence[Array | None], values: Mapping[str, Any], shape: tuple[int, ...]
    ) -> tuple[Sequence[Array | None], Sequence[Any], Array | None, Array | None]:
        """Return the rule's arrays, its memory, the slow weights, and the average of the weights.

        Each is there where the settings use it, or that is an error.
        """
        row, n = cls.row, len(cls.row.states)
        average: Array | None = None
        slow: Array | None = None
        if averages(values):
            *state, average = state
        if values["lookahead_every"] is not None:
            *state, slow = state
        most = n + len(row.memory)
        if len(state) > most:
            raise ValueError(f"state: expected at most {most} arrays, got {len(state)}")
        padded = (*state, *[None] * (most - len(state)))
        used = row.used_states(values, shape)
        for name, use, array in zip(row.states, used, padded[:n], strict=True):
            if (use is None) != (array is None):
                expected = "None (these options do not use it)" if use is None else "an array"
                raise ValueError(f"{name}: expected {expected}, got {type(array).__name__}")
        return padded[:n], padded[n:], slow, average


def _in_its_order(param: Array, array: Any) -> Any:
    """Return an array in the order of a parameter, that of sums and random bits.

    What NumPy computes of arrays in several orders has any of them.
    """
    if array is None or array.ndim < 2:
        return array
    return in_order(array, order_of(param) if array.ndim == param.ndim else "C")


def _number(name: str, array: Array | None) -> float:
    """Return what a rule remembers, from the array that has it."""
    if not isinstance(array, np.ndarray) or array.size != 1:
        got = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name}: expected an array of one element, got {got}")
    return float(array.item())
