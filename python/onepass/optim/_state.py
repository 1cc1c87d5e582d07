"""An optimizer's state as a dictionary in PyTorch's layout, and back, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import compress
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from onepass import _core, formats
from onepass._hyperparameters import (
    Check,
    Checks,
    Maybe,
    Several,
    check_setting,
    checked,
    schedules_in,
)
from onepass._memory import Order, compute_dtype, order_of
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import _storage
from onepass.optim._arrays import Kept
from onepass.optim._factored import shape_of
from onepass.optim._maker import AVERAGE, GATHERED, MASTER, SLOW, Allocator, Maker, Refilling
from onepass.optim._row import Row
from onepass.optim._rule import Rule
from onepass.optim._settings import CHECKS, OWN_FIELDS
from onepass.optim._tree import keys_before_paths
from onepass.schedules._base import Remembering, remembering

AVERAGED, ENTERED = "averaged", "entered"
"""The keys of the steps that the average of the weights has had, and how often these entered it."""

GATHERINGS = "gathered", "left_out"
"""How many calls of `accumulate` since the last step were added, and how many were left out."""

UNSETTLED = "unsettled"
"""The key of the arrays as they are, where settings were changed since the last step so that the
next one replaces them. The change may still be taken back."""

ROUND = "round"
"""The key of a group's part in a round of `step_one` that is open: the keys of the parameters that
had their turn, under "params", and the values of the schedules."""

SHAPE, ORDER = "shape", "order"
"""The keys of the parameter's shape and order beside 8-bit codes, which do not tell them."""

_SCHEDULE = "schedule"

Update = tuple[dict[str, Any], dict[str, Any]]
"""The attributes of an object, and what becomes of some of them."""

Writes = list[tuple[Array, Array]]
"""Arrays in use, and what is to be written into them once a checkpoint is in force."""

_RENAMED = {"zero_grad": "clear_grads"}
"""Step options whose name is another one in older files."""

_TORCH_ONLY = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "param_names"}


def state_dict(
    cls: type[Rule], engine: _core.Engine, params: Sequence[Array], coming: Sequence[Kept]
) -> dict[str, Any]:
    """See `Optimizer.state_dict`.

    `params` are the weights of the run, and `coming` the arrays that the coming step will keep.
    """
    now = engine.contents()
    progress, keys = now["progress"], now["keys"]
    state, unsettled = {}, {}
    groups = []
    for group, places in zip(engine.groups, places_of(now), strict=True):
        settings = {
            name: _saved(check, name, group[name]) for name, check in cls.group_checks.items()
        }
        own_keys = [keys[index] for index in places]
        groups.append({**settings, "step": progress["completed"], "params": own_keys})
        if cls.row.sums_over_all:
            groups[-1] |= zip(cls.row.memory, progress["memory"][0], strict=True)
        if any(progress["had_turn"]):
            turns = [progress["had_turn"][index] for index in places]
            groups[-1][ROUND] = {
                **dict(*(progress["values_of_round"] or ())[len(groups) - 1 : len(groups)]),
                "params": list(compress(own_keys, turns)),
            }
        for index, key in zip(places, own_keys, strict=True):
            there, kept = (
                _Entry(cls.row, params[index], progress, index, arrays)
                for arrays in (progress["kept"][index], coming[index])
            )
            entry = kept.saved()
            if progress["accumulated"][index]:
                entry[GATHERED] = progress["sums"][index].copy(order="K")
            memory = zip(cls.row.own_memory, progress["memory"][index], strict=False)
            count = {"step": there.steps, **dict(memory if there.steps else ())}
            if there.steps or entry:
                state[key] = {**count, **_saved_scalars(cls, group, there.steps), **entry}
            if not there.same(kept):
                unsettled[key] = {**count, **there.saved()}
    own = engine.own
    options = {name: _saved(check, name, own[name]) for name, check in CHECKS.items()}
    counts = {name: progress[name] for name in GATHERINGS if progress[name]}
    saved = {
        "state": state,
        "param_groups": groups,
        "step_options": {**options, "skipped_steps": progress["skipped"], **counts},
    }
    return {**saved, UNSETTLED: unsettled} if unsettled else saved


def places_of(contents: Mapping[str, Any]) -> list[list[int]]:
    """Return the places of each group's parameters among all."""
    places: list[list[int]] = [[] for _ in contents["groups"]]
    for index, number in enumerate(contents["group_of"]):
        places[number].append(index)
    return places


def _saved_scalars(cls: type[Rule], group: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Return them; none where a schedule decides about them, which only the step calls."""
    if not cls.saved_scalars or any(schedules_in(group[name]) for name in cls.checks):
        return {}
    scalars = cls.scalars(steps + 1, group)
    return {name: scalars[name] for name in cls.saved_scalars}


class _Entry:
    """A parameter's arrays by name: none before its first step, and no empty average."""

    def __init__(
        self, row: Row, param: Array, progress: Mapping[str, Any], index: int, kept: Kept
    ) -> None:
        self.param, self.steps = param, progress["steps"][index]
        *state, average, master, slow = kept
        has_begun = progress["kept"][index][len(state)] is not None
        self.averaged = self.steps - progress["average_from"][index] if has_begun else 0
        self.entered = progress["entered"][index]
        if not self.averaged:
            average = None  # nothing is in it yet
        names = (*row.states, AVERAGE, MASTER, SLOW)
        named = zip(names, (*state, average, master, slow), strict=True)
        self.arrays = {name: a for name, a in named if a is not None} if self.steps else {}

    def same(self, other: _Entry) -> bool:
        """Return whether these are the very same arrays."""
        a, b = self.arrays, other.arrays
        return a.keys() == b.keys() and all(a[name] is b[name] for name in a)

    @quiet
    def saved(self) -> dict[str, Any]:
        """Return copies of the arrays, and what has to be known about them."""
        entry: dict[str, Any] = {name: a.copy(order="K") for name, a in self.arrays.items()}
        if MASTER in entry:
            entry[MASTER] = _storage.weights(self.param, entry[MASTER])
        if any(array.dtype == np.uint8 for array in entry.values()):
            entry |= {SHAPE: list(self.param.shape), ORDER: order_of(self.param)}
        if AVERAGE in entry:
            entry |= {AVERAGED: self.averaged, ENTERED: self.entered}
        return entry


def _saved(check: Check, name: str, value: Any) -> Any:
    """Return a setting as it is saved: of a schedule, which is code, only what it remembers.

    A schedule without a memory is saved as None, or as a word where None is a value. Of several
    numbers each is saved by itself, unless one schedule gives all.
    """
    if callable(value):
        if memories := [dict(schedule.state_dict()) for schedule in remembering(value)]:
            return memories
        return _SCHEDULE if isinstance(check, Maybe) else None
    if isinstance(check, Several):
        return tuple(_saved(kind, name, each) for kind, each in check.paired(name, value))
    return check(name, value)


@quiet
def loaded(
    cls: type[Rule], engine: _core.Engine, saved: Mapping[str, Any]
) -> tuple[_core.Engine, list[Update], Writes]:
    """Return the engine of the saved run, what becomes of the attributes of schedules, and writes.

    Raises where something does not fit, and changes nothing.
    """
    # PyTorch's dictionaries have no step options, nor had ours at first.
    required, optional = {"state", "param_groups"}, {"step_options", UNSETTLED}
    if not isinstance(saved, Mapping) or saved.keys() - optional != required:
        got = list(saved) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(f"state_dict: expected the keys 'state' and 'param_groups', got {got}")
    _check_kinds(saved)
    saved_groups = saved["param_groups"]
    if len(saved_groups) != len(engine.groups):
        expected = f"{len(engine.groups)} groups (settings by name make groups too)"
        raise ValueError(f"param_groups: expected {expected}, got {len(saved_groups)}")

    now = engine.contents()
    groups: list[_core.Settings] = []
    n = len(now["params"])
    progress: dict[str, Any] = {
        "steps": [0] * n,
        "average_from": [0] * n,
        "entered": [0] * n,
        "memory": [()] * n,
        "kept": [()] * n,
        "sums": [None] * n,
        "accumulated": [0] * n,
        "gathered": 0,
        "left_out": 0,
    }
    matched = []
    writes: Writes = []
    keys_before = keys_before_paths(now["shape"])
    own_file = "step_options" in saved
    pairs = zip(saved_groups, engine.groups, places_of(now), strict=True)
    for number, (saved_group, live, places) in enumerate(pairs):
        label = f"param_groups[{number}]"
        own, memory_of_all = _memory_of_all(cls.row, saved_group, label)
        settings = _settings(cls, own, live, label)
        groups.append(cls._fields.settings(settings))
        _storage.check_format(settings["state_format"], live["params"])
        own_keys = [[keys[index] for index in places] for keys in (now["keys"], keys_before)]
        keys = _matching_keys(saved_group, own_keys, places if own_file else None, label)
        matched.append(keys)
        for index, key in zip(places, keys, strict=True):
            param, label = now["params"][index], f"state[{key!r}]"
            entry = {k: v for k, v in saved["state"].get(key, {}).items() if v is not None}
            make = _maker(cls.row, now, index, writes)
            _load_sums(progress, index, entry, make, label)
            is_settled = key not in saved.get(UNSETTLED, {})
            found = _entry(
                cls,
                settings,
                make if is_settled else Maker(param, whole_size=make.whole_size),
                entry,
                label,
            )
            if not is_settled:
                entry = {k: v for k, v in saved[UNSETTLED][key].items() if v is not None}
                found = _entry(cls, None, make, entry, f"{UNSETTLED}[{key!r}]")
            names = ("steps", "average_from", "entered", "memory", "kept")
            for name, value in zip(names, found, strict=True):
                progress[name][index] = value
            if cls.row.sums_over_all:
                progress["memory"][index] = memory_of_all
    progress |= _round(cls, now, saved_groups, matched)
    _check_known(saved, {key for keys in matched for key in keys})
    steps = [group.get("step") for group in saved_groups]
    progress["completed"] = (
        max(progress["steps"])  # PyTorch's groups do not count
        if None in steps
        else max(_count(step, "param_groups: step") for step in steps)
    )
    own = _step_options(engine.own, saved.get("step_options", {}), progress)
    # The next step brings the arrays into the formats of the groups, as it would have without
    # saving and loading.
    options = OWN_FIELDS.settings({**now["own"], **own})
    new = _core.Engine({**now, "groups": groups, "own": options, "progress": progress})
    return new, _remembered(cls, engine, saved), writes


def _load_sums(
    progress: dict[str, Any], index: int, entry: dict[str, Any], make: Maker, label: str
) -> None:
    """Take the sum of gradients out of a saved entry, if there is one."""
    if GATHERED in entry:
        sums = _array(entry.pop(GATHERED), make, GATHERED, f"{label}[{GATHERED!r}]")
        progress["sums"][index] = sums
        progress["accumulated"][index] = progress["gathered"] = 1


def _maker(row: Row, now: Mapping[str, Any], index: int, writes: Writes) -> Maker:
    """Return what makes the arrays of a parameter, of those that it has where a user made them."""
    param = now["params"][index]
    size = now["parts"][index][1] if now["parts"] else None
    if now["state_alloc"] is None:
        return Maker(param, whole_size=size)
    allocator: Allocator = now["state_alloc"], now["keys"][index], now["labels"][index]
    names = (*row.states, AVERAGE, MASTER, SLOW, GATHERED)
    progress = now["progress"]
    arrays = (*progress["kept"][index], progress["sums"][index])
    there = {name: a for name, a in zip(names, arrays, strict=True) if a is not None}
    return Refilling(param, allocator, there, writes, size)


def _memory_of_all(
    row: Row, group: Mapping[str, Any], label: str
) -> tuple[Mapping[str, Any], list[float]]:
    """Return a saved group without the numbers that a rule remembers for all arrays, and these."""
    if not row.sums_over_all:
        return group, []
    rest = {name: value for name, value in group.items() if name not in row.memory}
    return rest, [_number(group.get(name), f"{label}[{name!r}]") for name in row.memory]


def _check_kinds(saved: Mapping[str, Any]) -> None:
    """Raise if a part of a state dictionary is not of its kind at all."""
    groups, states = saved["param_groups"], (saved["state"], saved.get(UNSETTLED, {}))
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        for group in groups
    ):
        raise ValueError("param_groups: expected mappings with the keys of their parameters")
    for name, state in zip(("state", UNSETTLED), states, strict=True):
        if not isinstance(state, Mapping) or not all(
            isinstance(entry, Mapping) for entry in state.values()
        ):
            raise ValueError(f"{name}: expected a mapping of each parameter's key to its state")


def _check_known(saved: Mapping[str, Any], known: set[Any]) -> None:
    """Raise where there is state of something else than the groups' parameters."""
    unknown = [key for key in (*saved["state"], *saved.get(UNSETTLED, ())) if key not in known]
    if unknown:
        raise ValueError(f"state: expected the keys of the groups, got also {unknown}")


def _settings(
    cls: type[Rule], saved: Mapping[str, Any], live: Mapping[str, Any], label: str
) -> dict[str, Any]:
    settings = dict(live)
    for name, value in saved.items():
        if name in {"params", "step", ROUND} or name in _TORCH_ONLY:
            continue
        settings[name] = _setting(cls.group_checks, name, value, live, label)
    cls._check_together(settings)
    return settings


def _step_options(own: _core.Settings, saved: Any, progress: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options; the counts among them go into `progress`."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"step_options: expected a mapping, got {type(saved).__name__}")
    options = {_RENAMED.get(str(name), str(name)): value for name, value in saved.items()}
    counted = {"skipped": "skipped_steps", "gathered": "gathered", "left_out": "left_out"}
    for name, saved_name in counted.items():  # older files have none of the last two
        count = options.pop(saved_name, progress.get(name, 0))
        progress[name] = _count(count, f"step_options: {saved_name}")
    if bool(progress["gathered"]) != any(progress["accumulated"]):
        expected = "a count beside what was accumulated, and nowhere else"
        raise ValueError(f"step_options: gathered: expected {expected}, got {progress['gathered']}")
    return {
        name: _setting(CHECKS, name, value, own, "step_options") for name, value in options.items()
    }


def _setting(checks: Checks, name: str, value: Any, live: Mapping[str, Any], label: str) -> Any:
    """Return a saved setting, checked; a schedule is code, and the live one stays."""
    if name not in checks:
        raise ValueError(f"{label}: expected the settings {', '.join(checks)}, got {name!r}")
    return _value(checks[name], name, value, live[name], label)


def _value(check: Check, name: str, value: Any, live: Any, label: str) -> Any:
    if callable(live):
        return live
    if isinstance(check, Several):
        each = _numbers(check, name, value, live)
        return tuple(_value(kind, name, old, now, label) for kind, old, now in each)
    is_memory = check.schedulable and isinstance(value, list)
    has_no_value = value is None and not isinstance(check, Maybe)
    if is_memory or has_no_value or value == _SCHEDULE:
        raise ValueError(f"{label}: expected a schedule for {name!r}, as in the saved run")
    plain = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return checked(check, name, plain)


def _numbers(
    check: Check | None, name: str, saved: Any, live: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """Return what is saved of a setting, and the live one: of several numbers, each by itself."""
    if not isinstance(check, Several):
        yield check, saved, live
        return
    gave_all = isinstance(saved, list) and any(isinstance(each, Mapping) for each in saved)
    if callable(live):
        yield check, saved if gave_all else None, live
        return
    if saved is None or gave_all:  # one schedule did, in the saved run
        saved = (_SCHEDULE,) * len(live)
    for (kind, old), now in zip(check.paired(name, saved), live, strict=True):
        yield kind, old, now


def _remembered(cls: type[Rule], engine: _core.Engine, saved: Mapping[str, Any]) -> list[Update]:
    """Return the attributes of each schedule that has a saved memory, and what they become."""
    loaded: dict[int, tuple[Remembering, Remembering, Any]] = {}
    places = [
        *zip(saved["param_groups"], engine.groups, strict=True),
        (saved.get("step_options", {}), engine.own),
    ]
    settings = [
        (name, *each)
        for settings, live in places
        for name, value in settings.items()
        for each in _numbers(cls.group_checks.get(name), name, value, live.get(name))
    ]
    for name, _, memories, live in settings:
        schedules = remembering(live) if isinstance(memories, list) else []
        if not schedules:  # of others, the saved memory is of no use
            continue
        if len(memories) != len(schedules):
            expected = f"the memory of {len(schedules)} schedules"
            raise ValueError(f"{name}: expected {expected}, got {len(memories)}")
        for schedule, memory in zip(schedules, memories, strict=True):
            fresh = schedule, deepcopy(schedule), memory
            _, twin, known = loaded.setdefault(id(schedule), fresh)
            if known != memory:
                expected = f"the memory {known}, as elsewhere for the same schedule"
                raise ValueError(f"{name}: expected {expected}, got {memory}")
            twin.load_state_dict(memory)  # checks it
    return [(vars(schedule), vars(twin)) for schedule, twin, _ in loaded.values()]


def _round(
    cls: type[Rule],
    now: Mapping[str, Any],
    saved: Sequence[Mapping[str, Any]],
    keys: Sequence[list[Any]],
) -> dict[str, Any]:
    """Return what the engine knows of a round that is open. `keys` are the saved ones."""
    all_turns = [False] * len(now["params"])
    all_values = []
    live = zip(saved, now["groups"], keys, places_of(now), strict=True)
    for number, (group, settings, own_keys, places) in enumerate(live):
        label, of_group = f"param_groups[{number}][{ROUND!r}]", group.get(ROUND, {"params": []})
        turns = of_group.get("params") if isinstance(of_group, Mapping) else None
        if not isinstance(turns, list | tuple):
            raise ValueError(f"{label}: expected a mapping with 'params', got {of_group!r}")
        if unknown := [key for key in turns if key not in own_keys]:
            raise ValueError(f"{label}['params']: expected keys of the group, got {unknown}")
        for index, key in zip(places, own_keys, strict=True):
            all_turns[index] = key in turns
        schedules = {name for name, value in settings.items() if schedules_in(value)}
        if unknown := of_group.keys() - {"params", *cls.group_checks}:
            raise ValueError(f"{label}: expected settings, got {sorted(unknown)}")
        values = {name: value for name, value in of_group.items() if name in schedules}
        all_values.append(
            {
                name: check_setting(
                    cls.group_checks, name, tuple(value) if isinstance(value, list) else value
                )
                for name, value in values.items()
            }
        )
    if all(all_turns):
        raise ValueError(f"param_groups: expected a {ROUND!r} that is open, got all parameters")
    return {"had_turn": all_turns, "values_of_round": all_values}


def _matching_keys(
    saved_group: Mapping[str, Any], names: list[list[Any]], places: list[int] | None, label: str
) -> list[Any]:
    """Return the saved keys in the order of the group's parameters: by name, else by position.

    `names` are their keys, and those that they had before names were paths. `places` are theirs
    among all parameters, where the saved numbers are such places; PyTorch's are not.
    """
    keys = list(saved_group["params"])
    alike = len(keys) == len(names[0]) == len(set(keys))
    for own in names:
        if alike and set(keys) == set(own):
            return own
    are_places = all(isinstance(key, int) for key in keys) and places in (None, keys)
    texts = list(map(str, keys))
    is_other_order = texts != names[0] and set(texts) == set(names[0])  # names that are integers
    if not alike or is_other_order or not are_places:
        expected = f"the parameters {names[0]} (groups as they were when it was saved)"
        raise ValueError(f"{label}: expected {expected}, got {keys}")
    return keys


def _entry(
    cls: type[Rule],
    settings: Mapping[str, Any] | None,
    make: Maker,
    entry: dict[str, Any],
    label: str,
) -> tuple[int, int, int | None, list[float], tuple[Array | None, ...]]:
    """Return a parameter's step, that at which its average began, its memory and its state.

    Between them: how often its weights have entered the average, None in older files.

    The settings, if given, say which arrays there must be.
    """
    names, signs, kinds = cls.row.states, cls.row.has_sign, cls.row.shape
    param = make.param
    used = (
        []
        if settings is None
        else [name for name in cls.row.used_states(settings, param.shape) if name]
    )
    average = entry.pop(AVERAGE, None)
    averaged, entered = entry.pop(AVERAGED, None), entry.pop(ENTERED, None)
    shape, order = entry.pop(SHAPE, list(param.shape)), entry.pop(ORDER, "C")
    if shape != list(param.shape):
        raise ValueError(f"{label}[{SHAPE!r}]: expected {list(param.shape)}, got {shape!r}")
    if order not in ("C", "F") and not _are_axes(order, param.ndim):
        expected = "'C' or 'F'" if param.ndim < 3 else "'C', 'F' or a list of the axes"
        raise ValueError(f"{label}[{ORDER!r}]: expected {expected}, got {order!r}")
    master = _master(entry.pop(MASTER, None), make, settings, f"{label}[{MASTER!r}]")
    slow = entry.pop(SLOW, None)
    if slow is not None:
        slow = _array(slow, make, SLOW, f"{label}[{SLOW!r}]")
    for name in cls.saved_scalars:
        entry.pop(name, None)
    remembered = {name: entry.pop(name, None) for name in cls.row.own_memory}
    step = _count(entry.pop("step", cls.step_if_missing if entry else 0), f"{label}['step']")
    memory = list(cls.row.memory_start)
    if step and remembered:
        memory = [_number(v, f"{label}[{name!r}]") for name, v in remembered.items()]
    # An option that was switched off may have left its array behind.
    if (step or entry) and not set(used) <= set(entry) <= set(names):
        raise ValueError(f"{label}: expected the arrays {used}, got {list(entry)}")
    state = tuple(
        _kept(
            _Saved(entry[name], name, f"{label}[{name!r}]", shape_of(kind, param.shape)),
            make,
            has_sign,
            order,
        )
        if name in entry
        else None
        for name, has_sign, kind in zip(names, signs, kinds, strict=True)
    )
    if average is None:
        return step, 0, 0, memory, (*state, None, master, slow)
    began = step - _count(averaged, f"{label}[{AVERAGED!r}]")
    if began < 0:
        raise ValueError(f"{label}[{AVERAGED!r}]: expected at most {step}, got {averaged}")
    if entered is not None and _count(entered, f"{label}[{ENTERED!r}]") > averaged:
        raise ValueError(f"{label}[{ENTERED!r}]: expected at most {averaged}, got {entered}")
    average = _average(average, make, settings, f"{label}[{AVERAGE!r}]")
    return step, began, entered, memory, (*state, average, master, slow)


def _average(saved: Any, make: Maker, settings: Mapping[str, Any] | None, label: str) -> Array:
    source, dtype = np.asarray(saved), np.dtype(np.float64)
    if source.dtype == compute_dtype(make.param):
        if settings is None or settings["average_dtype"] == "float32":
            dtype = source.dtype
        else:  # of an older file; nothing is lost
            source = source.astype(dtype)
    return _array(source, make, AVERAGE, label, dtype)


def _are_axes(order: Any, ndim: int) -> bool:
    """Return whether this is a list of all axes."""
    if not isinstance(order, list) or any(type(axis) is not int for axis in order):
        return False
    return sorted(order) == list(range(ndim))


def _array(
    saved: Any,
    make: Maker,
    name: str,
    label: str,
    dtype: np.dtype[Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Array:
    source, dtype = np.asarray(saved), dtype or compute_dtype(make.param)
    shape = make.param.shape if shape is None else shape
    if source.dtype != dtype:
        raise TypeError(f"{label}: expected dtype {dtype}, got {source.dtype}")
    _check_shape(source, shape, label)
    return make.loaded(name, source, dtype, shape)


class _Saved(NamedTuple):
    """An array of a rule's, as it is saved, its name, what messages call it, and its shape."""

    values: Any
    name: str
    label: str
    shape: tuple[int, ...]


def _kept(saved: _Saved, make: Maker, has_sign: bool, order: Order) -> Any:
    """Return saved state in the parameter's layout, in the format in which it was saved."""
    values, name, label, shape = saved
    source, param = np.asarray(values), make.param
    is_small = source.dtype.name in ("bfloat16", "float16", "uint8")
    if not is_small or compute_dtype(param) != np.float32:
        return _array(source, make, name, label, shape=shape)
    if shape != param.shape and source.dtype != np.uint8:  # kept in full
        return _array(source.astype(np.float32), make, name, label, shape=shape)
    if source.dtype != np.uint8:
        _check_shape(source, param.shape, label)
        dtype = np.float32 if source.dtype == np.float16 else source.dtype
        return make.loaded(name, source, dtype)
    _check_shape(source, (formats.q8_size(param.size),), label)
    try:
        formats.q8_check(source, signed=has_sign)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    codes = _storage.laid_out_again(source, param, has_sign, order)
    return make.loaded(name, codes, np.uint8, codes.shape)


def _master(
    saved: Any, make: Maker, settings: Mapping[str, Any] | None, label: str
) -> Array | None:
    if saved is None:
        return None
    param = make.param
    if not _storage.needs_master(param, "master" if settings is None else settings["rounding"]):
        expected = "none beside this parameter and its rounding"
        raise ValueError(f"{label}: expected {expected}, got an array")
    master = _array(saved, make, MASTER, label)
    if not _storage.same_bits(formats.narrow(np.asarray(saved), param.dtype), param).all():
        expected = "weights that are the parameter's once rounded (load those first)"
        raise ValueError(f"{label}: expected {expected}, got others")
    return master


def _check_shape(array: Any, shape: tuple[int, ...], label: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{label}: expected shape {shape}, got {array.shape}")


def _number(value: Any, label: str, expected: str = "a number") -> float:
    """Return a saved number; PyTorch keeps it in a 0-d tensor."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # of an integer
            return float(value)
    raise ValueError(f"{label}: expected {expected}, got {value!r}")


def _count(value: Any, label: str) -> int:
    expected = "a number of steps"
    count = _number(value, label, expected)
    if not 0 <= count < 2**53 or not count.is_integer():
        raise ValueError(f"{label}: expected {expected}, got {count!r}")
    return int(count)
