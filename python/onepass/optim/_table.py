"""The kernels' table of rules, as the classes need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onepass import _core
from onepass._hyperparameters import as_numbers

if TYPE_CHECKING:
    from onepass.optim._rule import Rule

COMPLETED, SKIPPED = -2, -1
"""Where among the counters, after those of the parameters, the optimizer's own stand."""

ROWS = _core.rules()
INDEX = {rule: index for index, rule in enumerate(ROWS)}
_OPTION_BITS = {
    rule: [(1 << bit, name) for bit, name in enumerate(row["options"])]
    for rule, row in ROWS.items()
}
_STATES = {
    rule: [
        [name if used else None for name, used in zip(row["states"], uses, strict=True)]
        for uses in row["uses_state"]
    ]
    for rule, row in ROWS.items()
}


def options_of(cls: type[Rule], settings: Mapping[str, Any]) -> int:
    """Return which of the rule's options are on, as the kernels number them.

    An option is on where its hyperparameter is a schedule: the state must not come and go.
    """
    return sum(bit for bit, name in _OPTION_BITS[cls.row] if settings[name])


def states_of(cls: type[Rule], options: int) -> list[str | None]:
    """Return the names of the state arrays in order, None where the options leave one out."""
    return _STATES[cls.row][options]


def hyper_of(cls: type[Rule], values: Mapping[str, Any]) -> list[float]:
    """Return the hyperparameters of the rule's header, in its order."""
    numbers = as_numbers(cls.checks, values)
    return [numbers[name] for name in ROWS[cls.row]["hyper"]]


def scalars_of(
    cls: type[Rule],
    values: Mapping[str, Any],
    constants: tuple[float, ...],
    average_weight: float,
    seed: int,
    step: int,
) -> tuple[float, ...]:
    """Return the numbers of a step, in the kernels' order: those of the stages, the rule's."""
    return (*constants, average_weight, seed, step, *cls.scalars(step, values).values())
