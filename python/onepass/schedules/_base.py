"""What the schedules share: checked arguments, the call, interpolation, and who has a memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from onepass._hyperparameters import Check, Checks, Whole, as_real
from onepass._typing import Schedule
from onepass.schedules._foreign import unknown_argument

_STEP = Whole()


class BaseSchedule:
    """A subclass is a dataclass; it says what its arguments may be, and the value at a step."""

    checks: ClassVar[Checks]
    """What values each argument may take."""

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Raise TypeError where a keyword is none of the arguments."""
        for name in given:
            if name not in cls.checks:
                raise TypeError(unknown_argument(name, cls.checks))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, check in self.checks.items():
            checked = check(name, getattr(self, name))
            object.__setattr__(self, name, checked)  # most are frozen

    def __call__(self, step: int) -> float:
        """Return the value after `step` completed steps, an integer >= 0."""
        if type(step) is not int or step < 0:
            step = _STEP("step", step)
        return self._value(step)

    def _value(self, step: int) -> float:
        raise NotImplementedError

    @property
    def parts(self) -> Sequence[Schedule]:
        """The schedules that this one is made of."""
        return ()


@runtime_checkable
class Remembering(Protocol):
    """A schedule with a memory."""

    def __call__(self, step: int, /) -> float: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None: ...


def remembering(schedule: object) -> list[Remembering]:
    """Return those that have a memory, of a schedule and its parts; of all else none."""
    if isinstance(schedule, Remembering):
        return [schedule]
    parts = schedule.parts if isinstance(schedule, BaseSchedule) else ()
    return [found for part in parts for found in remembering(part)]


def whole(schedule: Schedule) -> list[Schedule]:
    """Return a schedule and all that it is made of."""
    parts = schedule.parts if isinstance(schedule, BaseSchedule) else ()
    return [schedule, *(found for part in parts for found in whole(part))]


def value_of(schedule: Schedule, step: int) -> float:
    """Return a part's value: as a float, if it is a real number or a 0-d array of one."""
    value: Any = schedule(step)
    number = as_real(value)
    return value if number is None else number  # the setting's check refuses anything else


def between(start: float, end: float, progress: float) -> float:
    """Return the value on the line from `start` to `end`, exact at both of them."""
    return (1 - progress) * start + progress * end


def progress(step: int, steps: int) -> float:
    """Return how much of a way of so many steps is behind; nothing where there is no way."""
    return step / steps if step < steps else float(steps > 0)


@dataclass(frozen=True)
class AnySchedule:
    """A schedule."""

    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> Schedule:
        if not callable(value):
            raise TypeError(f"{name}: expected a schedule, got {value!r}")
        schedule: Schedule = value
        return schedule


@dataclass(frozen=True)
class Several:
    """A sequence of values of one kind."""

    kind: Check
    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name}: expected a sequence, got {value!r}")
        return tuple(self.kind(f"{name}[{i}]", each) for i, each in enumerate(value))


@dataclass(frozen=True)
class Boundaries:
    """The steps at which a part ends and the next one begins."""

    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> tuple[int, ...]:
        steps = Several(Whole())(name, value)
        if any(a > b for a, b in pairwise(steps)):
            raise ValueError(f"{name}: expected steps in increasing order, got {value!r}")
        return steps


def check_length(name: str, value: Sequence[Any], length: int) -> None:
    """Raise if a sequence does not go with the boundaries."""
    if len(value) != length:
        raise ValueError(f"{name}: expected {length} for these boundaries, got {len(value)}")
