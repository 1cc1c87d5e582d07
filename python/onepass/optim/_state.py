"""An optimizer's state as a dictionary in PyTorch's layout, and back, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from onepass._hyperparameters import check_setting
from onepass._memory import state_like
from onepass._typing import Array
from onepass.optim._rules import ROWS, options_of, states_of

if TYPE_CHECKING:
    from onepass.optim._base import Optimizer

_TORCH_ONLY = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "param_names"}


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    steps = optimizer._counters.tolist()
    completed = steps.pop()
    names = ROWS[optimizer.rule]["states"]
    state = {}
    groups = []
    optimizer._check_group_count()
    for number, (group, members) in enumerate(
        zip(optimizer.param_groups, optimizer._members, strict=True)
    ):
        optimizer._check_group(number)
        optimizer._allocate(number, group)
        settings = {
            name: None if callable(group[name]) else check(name, group[name])
            for name, check in optimizer.checks.items()
        }
        keys = [optimizer._keys[index] for index in members]
        groups.append({**settings, "step": completed, "params": keys})
        for index in members:
            if steps[index]:
                arrays = {
                    name: array.copy(order="K")
                    for name, array in zip(names, optimizer._state[index], strict=True)
                    if array is not None
                }
                state[optimizer._keys[index]] = {"step": steps[index], **arrays}
    return {"state": state, "param_groups": groups}


def load_state_dict(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """See `Optimizer.load_state_dict`."""
    if not isinstance(saved, Mapping) or saved.keys() != {"state", "param_groups"}:
        got = list(saved) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(f"state_dict: expected the keys 'state' and 'param_groups', got {got}")
    _check_kinds(saved)
    saved_groups = saved["param_groups"]
    if len(saved_groups) != len(optimizer.param_groups):
        expected = f"{len(optimizer.param_groups)} groups"
        raise ValueError(f"param_groups: expected {expected}, got {len(saved_groups)}")

    cls = type(optimizer)
    groups: list[dict[str, Any]] = []
    counters = np.zeros_like(optimizer._counters)
    arrays: list[tuple[Array | None, ...]] = [()] * len(optimizer._params)
    options = []
    known = set()
    for number, (saved_group, live) in enumerate(
        zip(saved_groups, optimizer.param_groups, strict=True)
    ):
        label = f"param_groups[{number}]"
        members = optimizer._members[number]
        groups.append(_settings(cls, saved_group, live, label))
        options.append(options_of(cls, groups[-1], groups[-1]))
        keys = _matching_keys(saved_group, [optimizer._keys[i] for i in members], label)
        known.update(keys)
        for key, index in zip(keys, members, strict=True):
            entry = saved["state"].get(key)
            counters[index], arrays[index] = _entry(
                cls, groups[-1], options[-1], optimizer._params[index], entry, f"state[{key!r}]"
            )
    unknown = [key for key in saved["state"] if key not in known]
    if unknown:
        raise ValueError(f"state: expected the keys of the groups, got also {unknown}")
    steps = [group.get("step") for group in saved_groups]
    counters[-1] = (
        counters.max()  # PyTorch's groups do not count
        if None in steps
        else max(_count(step, "param_groups: step") for step in steps)
    )
    # One call, so that not even an interrupt sees a part of it.
    optimizer.__dict__.update(
        param_groups=groups,
        _counters=counters,
        _state=arrays,
        _options=options,
        _resolved=[{} for _ in groups],
    )


def _check_kinds(saved: Mapping[str, Any]) -> None:
    """Raise if a part of a state dictionary is not of its kind at all."""
    groups, state = saved["param_groups"], saved["state"]
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        for group in groups
    ):
        raise ValueError("param_groups: expected mappings with the keys of their parameters")
    if not isinstance(state, Mapping) or not all(
        isinstance(entry, Mapping) for entry in state.values()
    ):
        raise ValueError("state: expected a mapping of each parameter's key to its state")


def _settings(
    cls: type[Optimizer], saved: Mapping[str, Any], live: Mapping[str, Any], label: str
) -> dict[str, Any]:
    settings = dict(live)
    for name, value in saved.items():
        if name in {"params", "step"} or name in _TORCH_ONLY:
            continue
        if name == "decoupled_weight_decay":  # how PyTorch tells its AdamW from its Adam
            if bool(value) != cls.decoupled:
                expected = "AdamW's decoupled" if cls.decoupled else "a coupled"
                raise ValueError(f"{label}: expected {expected} weight decay, got {name}={value}")
            continue
        if name not in cls.checks:
            known = ", ".join(cls.checks)
            raise ValueError(f"{label}: expected the hyperparameters {known}, got {name!r}")
        if callable(live[name]):
            continue
        if value is None:
            raise ValueError(f"{label}: expected a schedule for {name!r}, as in the saved run")
        plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
        settings[name] = check_setting(cls.checks, name, plain)
    cls.check_together(settings)
    return settings


def _matching_keys(saved_group: Mapping[str, Any], own: list[Any], label: str) -> list[Any]:
    """Return the saved keys in the order of the group's parameters: by name, else by position."""
    keys = list(saved_group["params"])
    if set(keys) == set(own):
        return own
    alike = len(keys) == len(own) == len(set(keys))
    if not alike or not all(isinstance(key, int) for key in keys):
        raise ValueError(f"{label}: expected the parameters {own}, got {keys}")
    return keys


def _entry(
    cls: type[Optimizer],
    settings: Mapping[str, Any],
    options: int,
    param: Array,
    entry: Any,
    label: str,
) -> tuple[int, tuple[Array | None, ...]]:
    """Return the step and the state of one parameter."""
    names = ROWS[cls.rule]["states"]
    used = [name for name in states_of(cls, options) if name]
    given = {} if entry is None else {k: v for k, v in entry.items() if v is not None}
    if not given:  # not stepped yet
        value = cls.initial_state(settings)
        return 0, tuple(state_like(param, value) if name in used else None for name in names)
    step = _count(given.pop("step", cls.step_if_missing), f"{label}['step']")
    # An option that was switched off may have left its array behind.
    if not set(used) <= set(given) <= set(names):
        raise ValueError(f"{label}: expected the arrays {used}, got {list(given)}")
    return step, tuple(
        _state_array(given[name], param, f"{label}[{name!r}]") if name in given else None
        for name in names
    )


def _state_array(saved: Any, param: Array, label: str) -> Array:
    source = np.asarray(saved)
    if source.dtype != param.dtype:
        raise TypeError(f"{label}: expected dtype {param.dtype}, got {source.dtype}")
    if source.shape != param.shape:
        raise ValueError(f"{label}: expected shape {param.shape}, got {source.shape}")
    array = state_like(param)
    array[...] = source
    return array


def _count(value: Any, label: str) -> int:
    """Return a number of steps; PyTorch keeps it as a float in a 0-d tensor."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    count = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
    if not 0 <= count < 2**53 or not count.is_integer():
        raise ValueError(f"{label}: expected a number of steps, got {value!r}")
    return int(count)
