"""What every optimizer shares: parameters, groups, state, the step, the checkpoint."""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from onepass import _core, runtime
from onepass._hyperparameters import (
    SCHEDULED,
    Checks,
    Flag,
    check_setting,
    resolve,
    same_settings,
)
from onepass._memory import state_like
from onepass._typing import Array, Grads, Params
from onepass.optim import _checkpoint, _state
from onepass.optim._rules import ROWS, job, options_of, states_of
from onepass.optim._tree import Leaves, Node, flatten, is_sequence, mirror

registry: dict[str, "type[Optimizer]"] = {}
"""Every optimizer class, by the name of its rule."""


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes
    ----------
    step : int
        How many steps the optimizer has completed, this one included.
    lr : float
        The learning rate it used (of the first group).
    """

    step: int
    lr: float


class Optimizer:
    """Base of the optimizers: gradient in, parameters updated in place.

    A subclass states its rule's name (`class Adam(Optimizer, rule="adam")`), the range of each
    hyperparameter, the numbers of a step (`scalars`) and the rule in NumPy (`reference`).

    Not safe for concurrent use of one instance; different instances may step from different
    threads.
    """

    rule: ClassVar[str]
    decoupled: ClassVar[bool] = False
    """Whether the rule itself applies the weight decay, instead of adding it to the gradient."""
    checks: ClassVar[Checks]
    """What values each hyperparameter may take."""
    defaults: ClassVar[Mapping[str, Any]]
    """Each hyperparameter's default, read off the constructor."""
    cases: ClassVar[Sequence[Mapping[str, Any]]]
    """Settings that together reach every branch of the rule; tests and benchmarks run them all."""
    step_if_missing: ClassVar[int | None] = None
    """The step of a loaded state that has arrays but no step (PyTorch's SGD keeps none)."""

    param_groups: list[dict[str, Any]]

    def __init_subclass__(cls, *, rule: str | None = None) -> None:
        if rule is None:  # somebody's subclass of a rule's class
            return
        cls.rule = rule
        cls.checks = {**cls.checks, "weight_decay": SCHEDULED, "maximize": Flag()}
        signature = inspect.signature(cls.__init__).parameters
        cls.defaults = {name: signature[name].default for name in cls.checks}
        registry[rule] = cls

    def __init__(self, params: Params, **settings: Any) -> None:
        leaves = Leaves()
        self._shape: Node
        self._members: list[list[int]] = []  # per group, the indices of its parameters
        self.param_groups = []
        self._grouped = _is_groups(params)
        if self._grouped:
            self._shape = [
                self._add_group({**settings, **group}, leaves, f"[{number}]['params']")
                for number, group in enumerate(params)
            ]
        else:
            self._shape = self._add_group({**settings, "params": params}, leaves, "")
        if not leaves.arrays:
            raise ValueError("params: expected at least one array, got none")
        _core.check_params(leaves.labels, leaves.arrays)
        self._params: list[Array] = leaves.arrays
        self._labels = leaves.labels
        self._keys = list(leaves.keys)
        # Per parameter its completed steps, then the optimizer's own. The native step moves them.
        self._counters = np.zeros(len(self._params) + 1, np.int64)
        # Per parameter the rule's arrays in order, None where no option has asked for one.
        self._state: list[tuple[Array | None, ...]] = [
            (None,) * len(ROWS[self.rule]["states"]) for _ in self._params
        ]
        self._resolved: list[dict[str, Any]] = [{} for _ in self._members]
        self._options = [-1] * len(self._members)
        for number, group in enumerate(self.param_groups):
            self._allocate(number, group)

    def _add_group(self, group: Mapping[str, Any], leaves: Leaves, label: str) -> Node:
        settings = {k: v for k, v in group.items() if k != "params"}
        settings = {k: check_setting(self.checks, k, v) for k, v in settings.items()}
        self.check_together(settings)
        first = len(leaves.arrays)
        shape = flatten(group["params"], leaves, label)
        self._members.append(list(range(first, len(leaves.arrays))))
        self.param_groups.append({"params": tuple(leaves.arrays[first:]), **settings})
        return shape

    # What a subclass defines

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError where hyperparameters that are valid alone do not go together."""

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of step `step` (from 1), in double, under the kernel's names.

        `values` are the hyperparameters of that step. Both the kernel and `reference` use the
        result, rounded to the parameter's dtype.
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
    def initial_state(settings: Mapping[str, Any]) -> float:  # noqa: ARG004
        """Return the value that state arrays start from."""
        return 0.0

    # One step

    def step(self, grads: Grads, *, num_threads: int | None = None) -> StepInfo:
        """Update the parameters in place.

        Parameters
        ----------
        grads : like the parameters
            The gradients, in the structure of the parameters, each of its parameter's shape and
            dtype, with any strides. None leaves that parameter, its state and its step alone.
        num_threads : int, optional
            Threads for this step; the default is `onepass.get_num_threads()`. The result is the
            same for any number.

        Returns
        -------
        StepInfo

        Raises
        ------
        TypeError, ValueError
            If an array or a hyperparameter is not as it must be. Then nothing has changed.
        """
        threads = runtime.resolve_num_threads(num_threads)
        leaves = self._mirror(grads)
        steps = self._counters.tolist()
        completed = steps.pop()
        jobs: list[_core.Job] = []
        self._check_group_count()
        for number, members in enumerate(self._members):
            values, options = self._resolve(number, completed)
            for done, alike in _by_step(members, steps):
                jobs.append((*job(type(self), options, values, done + 1), alike))
        lr = self._resolved[0]["lr"]
        # Checks every array, then moves parameters, state and counters in one call.
        _core.run(self._labels, self._params, leaves, self._state, jobs, self._counters, threads)
        return StepInfo(completed + 1, lr)

    def _resolve(self, number: int, completed: int) -> tuple[dict[str, Any], int]:
        """Return a group's checked values for the coming step, and its options, state allocated."""
        group, values = self.param_groups[number], self._resolved[number]
        if not same_settings(group, values):  # a new setting, or a schedule
            self._check_group(number)
            values = {"params": group["params"], **resolve(self.checks, group, completed)}
            schedules = {name: value for name, value in group.items() if callable(value)}
            self.check_together({**values, **schedules})
            self._resolved[number] = values
        return values, self._allocate(number, values)

    def _check_group_count(self) -> None:
        if len(self.param_groups) != len(self._members):
            got = len(self.param_groups)
            raise ValueError(f"param_groups: expected {len(self._members)} groups, got {got}")

    def _check_group(self, number: int) -> None:
        """Raise if the keys of a group or its parameters are not those it was made with."""
        group, members = self.param_groups[number], self._members[number]
        unknown = group.keys() - self.checks.keys() - {"params"}
        missing = self.checks.keys() - group.keys()
        if unknown or missing:
            got = f"unknown {sorted(unknown)}" if unknown else f"no {sorted(missing)}"
            raise ValueError(f"param_groups[{number}]: expected the hyperparameters, got {got}")
        own = [self._params[index] for index in members]
        given = group.get("params", ())
        if len(given) != len(own) or any(a is not b for a, b in zip(given, own, strict=True)):
            raise ValueError(f"param_groups[{number}]: expected the parameters it was made with")

    def _mirror(self, grads: Grads) -> list[Any]:
        leaves: list[Any] = []
        tree: Any = grads
        if self._grouped and _is_groups(tree):  # the gradients of groups may stand in groups too
            tree = [group["params"] for group in tree]
        mirror(self._shape, tree, leaves)
        return leaves

    def _allocate(self, number: int, values: Mapping[str, Any]) -> int:
        """Return a group's options, its parameters given the state they use and lack."""
        group = self.param_groups[number]
        options = options_of(type(self), group, values)
        if options == self._options[number]:
            return options
        value = self.initial_state(group)
        names = states_of(type(self), options)
        for index in self._members[number]:
            self._state[index] = tuple(
                state_like(self._params[index], value) if array is None and name else array
                for name, array in zip(names, self._state[index], strict=True)
            )
        self._options[number] = options
        return options

    @classmethod
    def state_names(cls, **settings: Any) -> list[str | None]:
        """Return the names of the state arrays that `onepass.kernels` takes, in its order.

        None stands where these settings (else the defaults) leave an array out.

        Examples
        --------
        >>> import onepass as op
        >>> op.RMSprop.state_names(centered=True)
        ['square_avg', None, 'grad_avg']
        """
        values = {**cls.defaults, **settings}
        return states_of(cls, options_of(cls, values, values))

    @classmethod
    def reference_step(
        cls, param: Array, grad: Array, *state: Array | None, step: int = 1, **settings: Any
    ) -> tuple[Any, ...]:
        """Return what one step makes of these arrays, computed by NumPy, out of place.

        The oracle: for the same dtype the kernels' results equal it bit for bit. With float64
        arrays it is the yardstick for the float32 kernels' accuracy.

        Parameters
        ----------
        param, grad, *state : ndarray
            As for `onepass.kernels`; None for state that the options do not use.
        step : int
            Counted from 1.
        **settings
            The class's hyperparameters.

        Returns
        -------
        tuple
            The new parameter and the new state, None where there is none.
        """
        checked = {name: check_setting(cls.checks, name, v) for name, v in settings.items()}
        values = resolve(cls.checks, {**cls.defaults, **checked}, step - 1)
        cls.check_together(values)
        if values["maximize"]:
            grad = -grad
        if values["weight_decay"] and not cls.decoupled:
            grad = grad + values["weight_decay"] * param
        row = ROWS[cls.rule]
        padded = (*state, *[None] * (len(row["states"]) - len(state)))
        for name, used, array in zip(
            row["states"], cls.state_names(**checked), padded, strict=True
        ):
            if (used is None) != (array is None):
                expected = "None (these options do not use it)" if used is None else "an array"
                raise ValueError(f"{name}: expected {expected}, got {type(array).__name__}")
        flags = {name: values[name] for name in row["options"] if isinstance(values[name], bool)}
        return cls.reference(param, grad, *padded, **cls.scalars(step, values), **flags)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything a run needs to continue, apart from the parameters.

        Returns
        -------
        dict
            ``{"state": {key: {"step": t, name: array, ...}}, "param_groups": [...]}``, PyTorch's
            layout and names. A key is the parameter's name in a mapping (dotted where nested),
            else its index. A group holds its hyperparameters, the keys of its parameters and
            ``"step"``, the steps completed; a schedule is code and stands there as None.
        """
        return _state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` was taken from.

        Takes PyTorch's own dictionaries too (its CPU tensors as NumPy arrays). Hyperparameters
        are taken over; where this optimizer has a schedule, the schedule stays.

        Raises
        ------
        TypeError, ValueError
            If anything in it does not fit this optimizer. Then nothing has changed.
        """
        _state.load_state_dict(self, state_dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict()` to a file, atomically: the path holds the old file or the new one.

        The file is NumPy's ``.npz``, with no pickle in it. The parameters are not part of it.
        """
        _checkpoint.write(path, self.rule, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file that `save` wrote; bit for bit the run that wrote it.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, no checkpoint, or not of such an optimizer. Then nothing has
            changed.
        """
        self.load_state_dict(_checkpoint.read(path, self.rule))

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            settings = [f"{k}={_show(v)}" for k, v in group.items() if k != "params"]
            size = sum(param.size for param in group["params"])
            params = f"params={len(group['params'])} arrays of {size:,} elements"
            groups.append(", ".join([params, *settings]))
        if len(groups) == 1:
            return f"{type(self).__name__}({groups[0]})"
        return f"{type(self).__name__}(\n" + "".join(f"    {{{g}}},\n" for g in groups) + ")"


def _by_step(members: list[int], steps: list[int]) -> Iterable[tuple[int, list[int]]]:
    """Group parameters by the steps they have completed: mostly all the same."""
    done = steps[members[0]] if members else 0
    if all(steps[index] == done for index in members):
        return [(done, members)]
    groups: dict[int, list[int]] = {}
    for index in members:
        groups.setdefault(steps[index], []).append(index)
    return groups.items()


def _is_groups(params: Any) -> bool:
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _show(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
