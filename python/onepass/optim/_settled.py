"""What the settings of an optimizer's groups come to: values, and the state that goes with them.

Nothing here changes an optimizer. `settle` returns what a step will work with; the step puts it in
force in the same native call that moves the parameters (`Optimizer.step`), so that a step that
raises, or is interrupted, leaves what was in force before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepass._hyperparameters import resolve_one
from onepass._memory import state_like
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import _stages, _storage
from onepass.optim._table import ROWS, options_of, states_of

if TYPE_CHECKING:
    from onepass.optim._base import Optimizer

AVERAGE_PLACE = -2
"""Where in a parameter's state the average of the weights stands; the master follows it."""


class Needs(NamedTuple):
    """What a group's settings say about the arrays of its parameters."""

    options: int
    """Which of the rule's options are on, as the kernels number them."""
    initial: float
    """What the rule's arrays start from."""
    averages: bool
    """Whether an average of the weights is kept."""
    state_format: str | None
    rounding: str


class Group(NamedTuple):
    """The parameters of one group, and its settings as they were last resolved."""

    members: list[int]
    """The indices of its parameters."""
    schedules: list[str]
    """Which of its settings are schedules."""
    values: Mapping[str, Any]
    """Those of the coming step, checked, schedules evaluated."""
    constants: tuple[float, ...]
    """What `_stages.constants` makes of them."""
    needs: Needs | None
    """The needs that its arrays meet; None where they are unknown, as after loading."""


class Settled(NamedTuple):
    """All that the settings decide, as one value that is replaced and never changed."""

    groups: list[Group]
    states: list[tuple[Any, ...]]
    """Per parameter the rule's arrays in order, the average of the weights, and their master in
    float32; None where no option has asked for one."""
    average_from: list[int]
    """For each parameter, how many steps it had done when its average began."""
    seen: list[dict[str, Any]] | None = None
    """The settings that this was made of; None: look at them again."""

    @property
    def has_schedules(self) -> bool:
        """Whether the values change from step to step."""
        return any(group.schedules for group in self.groups)


def unsettled(
    members: Iterable[list[int]], states: list[tuple[Any, ...]], average_from: list[int]
) -> Settled:
    """Return such a value whose groups have still to be looked at."""
    groups = [Group(own, [], {}, (), None) for own in members]
    return Settled(groups, states, average_from)


def settle(optimizer: Optimizer, completed: int) -> Settled:
    """Return what the coming step works with; the value in force where nothing has changed."""
    now = optimizer._settled
    try:
        is_seen = optimizer.param_groups == now.seen
    except ValueError:  # a setting is an array
        is_seen = False
    if is_seen and not now.has_schedules:
        return now
    if is_seen:
        names = [group.schedules for group in now.groups]
    else:
        check_groups(optimizer)
        names = [list(optimizer.group_checks)] * len(now.groups)
    groups = _resolved(optimizer, names, completed)
    groups, states, average_from, _ = _with_arrays(optimizer, groups)
    seen = now.seen if is_seen else list(map(_seen, optimizer.param_groups, groups))
    return Settled(groups, states, average_from, seen)


def _seen(settings: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """Return what the settings are compared with in the next step: checked values, schedules."""
    return {
        name: value if callable(value) else group.values[name] for name, value in settings.items()
    }


def allocated(optimizer: Optimizer) -> Settled:
    """Return the value in force, its arrays as the settings ask for; schedules are not called."""
    check_groups(optimizer)
    groups = [
        group._replace(needs=_needs(optimizer, settings, settings))
        for group, settings in zip(optimizer._settled.groups, optimizer.param_groups, strict=True)
    ]
    return _with_arrays(optimizer, groups)


def _with_arrays(optimizer: Optimizer, groups: list[Group]) -> Settled:
    """Return these groups with the arrays that they need.

    If no group's needs have changed, the result has the very list of states that is in force. A
    planned step compares that list by identity to know that it is still valid.
    """
    now = optimizer._settled
    changed = [new for new, old in zip(groups, now.groups, strict=True) if new.needs != old.needs]
    if not changed:
        return Settled(groups, now.states, now.average_from)
    states, average_from = list(now.states), list(now.average_from)
    for group in changed:
        _allocate(optimizer, group, states, average_from)
    return Settled(groups, states, average_from)


def check_groups(optimizer: Optimizer) -> None:
    """Raise if the groups are not those it was made with, or cannot be kept as they ask."""
    groups = optimizer._settled.groups
    if len(optimizer.param_groups) != len(groups):
        got = len(optimizer.param_groups)
        raise ValueError(f"param_groups: expected {len(groups)} groups, got {got}")
    for number, (group, known) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        own = [optimizer._params[index] for index in known.members]
        _check_group(optimizer.group_checks, f"param_groups[{number}]", group, own)


def _check_group(
    checks: Mapping[str, Any], label: str, group: Mapping[str, Any], own: Sequence[Array]
) -> None:
    unknown = group.keys() - checks.keys() - {"params"}
    missing = checks.keys() - group.keys()
    if unknown or missing:
        got = f"unknown {sorted(unknown)}" if unknown else f"no {sorted(missing)}"
        raise ValueError(f"{label}: expected the hyperparameters, got {got}")
    given = group.get("params", ())
    if len(given) != len(own) or any(a is not b for a, b in zip(given, own, strict=True)):
        raise ValueError(f"{label}: expected the parameters it was made with")
    _storage.check_format(group["state_format"], own)


def _resolved(optimizer: Optimizer, names: Iterable[Iterable[str]], completed: int) -> list[Group]:
    """Return the groups with the values that these settings have in the coming step."""
    checks = optimizer.group_checks
    groups = []
    given = zip(optimizer.param_groups, optimizer._settled.groups, names, strict=True)
    for settings, known, own in given:
        new = {name: resolve_one(checks, name, settings[name], completed) for name in own}
        values = {"params": settings["params"], **known.values, **new}
        schedules = {name: value for name, value in settings.items() if callable(value)}
        optimizer._check_together({**values, **schedules})
        constants = _stages.constants(values)
        needs = known.needs
        if needs is None or "rounding" in new:  # no schedule decides about arrays
            needs = _needs(optimizer, settings, values)
        groups.append(Group(known.members, list(schedules), values, constants, needs))
    return groups


def _needs(optimizer: Optimizer, settings: Mapping[str, Any], values: Mapping[str, Any]) -> Needs:
    return Needs(
        options_of(type(optimizer), settings),
        optimizer.initial_state(values),
        _stages.averages(settings),
        settings["state_format"],
        settings["rounding"],
    )


@quiet
def _allocate(
    optimizer: Optimizer,
    group: Group,
    states: list[tuple[Any, ...]],
    average_from: list[int],
) -> None:
    """Give a group's parameters the arrays that it needs, in new tuples.

    The new arrays depend only on the old ones, the settings and the steps done. So a run that was
    saved and loaded before this call gets the same arrays as one that was not.
    """
    needs = group.needs
    assert needs is not None
    for index in group.members:
        param, (*state, average, master) = optimizer._params[index], states[index]
        steps = optimizer._counters.item(index)
        if not steps:  # there is nothing to keep; the settings of its first step say how it begins
            state = [None] * len(state)
        if not needs.averages:
            average = None
        elif average is None:
            average = state_like(param, dtype=np.float64)  # the first step writes it
            average_from[index] = steps
        if not _storage.needs_master(param, needs.rounding):
            master = None
        elif master is None:
            master = _storage.master_of(optimizer._of_the_run(index))
        kept = tuple(_kept(type(optimizer), param, state, needs))
        new = (*kept, average, master)
        if any(a is not b for a, b in zip(new, states[index], strict=True)):
            states[index] = new


def _kept(cls: type[Optimizer], param: Array, state: Sequence[Any], needs: Needs) -> Iterator[Any]:
    """Yield the rule's arrays in the format that they need, new ones where some are missing."""
    names = states_of(cls, needs.options)
    for array, name, has_sign in zip(state, names, ROWS[cls.row]["has_sign"], strict=True):
        if array is not None and not _storage.is_kept_as(array, param, needs.state_format):
            now = _storage.opened(array, param, has_sign)
            yield _storage.keep(now, param, needs.state_format, has_sign)
        elif array is None and name:
            yield _storage.fresh(param, needs.initial, needs.state_format, has_sign)
        else:
            yield array
