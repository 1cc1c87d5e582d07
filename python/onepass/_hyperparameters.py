"""What values a hyperparameter may take, said once and checked everywhere."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt


class Check(Protocol):
    """Returns a value in its plain type, or raises an error that begins with its name."""

    @property
    def schedulable(self) -> bool: ...

    def __call__(self, name: str, value: Any) -> Any: ...


Checks: TypeAlias = Mapping[str, Check]


@dataclass(frozen=True)
class Number:
    """A number between bounds, `above` and `below` not included; infinite only where it may be."""

    low: float = 0.0
    above: float = -math.inf
    high: float = math.inf
    below: float = math.inf
    infinite: bool = False
    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> float:
        number = value if type(value) is float else as_real(value)
        if number is None:
            raise TypeError(f"{name}: expected {self}, got {value!r}")
        in_range = self.low <= number <= self.high and self.above < number
        in_range = in_range and (number < self.below or self.below == math.inf)
        if not in_range or (math.isinf(number) and not self.infinite):
            raise ValueError(f"{name}: expected {self}, got {value!r}")
        return number

    def __str__(self) -> str:
        if math.inf not in (self.below, -self.above):
            return f"a number in ({self.above:g}, {self.below:g})"
        if self.below < math.inf:
            return f"a number in [{self.low:g}, {self.below:g})"
        if math.inf not in (self.high, -self.above):
            return f"a number in ({self.above:g}, {self.high:g}]"
        if math.inf not in (self.high, -self.low):
            return f"a number in [{self.low:g}, {self.high:g}]"
        finite = "" if self.infinite else "finite "
        if self.above > -math.inf:
            bound = f" > {self.above:g}"
        elif self.high < math.inf:
            bound = f" <= {self.high:g}"
        else:
            bound = f" >= {self.low:g}" if self.low > -math.inf else ""
        return f"a {finite}number{bound}"


@dataclass(frozen=True)
class Whole:
    """An integer from `low` on, below `below`."""

    low: int = 0
    below: float = math.inf
    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> int:
        whole = _held(value)
        if isinstance(whole, bool) or not isinstance(whole, int | np.integer):
            raise TypeError(f"{name}: expected {self}, got {value!r}")
        if not self.low <= whole < self.below:
            raise ValueError(f"{name}: expected {self}, got {value!r}")
        return int(whole)

    def __str__(self) -> str:
        if self.below < math.inf:
            return f"an integer in [{self.low}, {self.below:.0f})"
        return f"an integer >= {self.low}"


@dataclass(frozen=True)
class Several:
    """Two or three numbers, each of its kind, or None where it may be that.

    A schedule may stand for each number whose kind has schedules, and one for all of them together
    where all kinds have.
    """

    kinds: tuple["Number | Maybe", ...]

    @property
    def schedulable(self) -> bool:
        return all(kind.schedulable for kind in self.kinds)

    def __call__(self, name: str, value: Any) -> tuple[Any, ...]:
        return tuple(kind(name, each) for kind, each in self.paired(name, value))

    def paired(self, name: str, value: Any) -> Iterator[tuple["Number | Maybe", Any]]:
        """Return each number's kind, and what is given for it."""
        is_list = isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1
        if not is_list or len(value) != len(self.kinds):
            raise TypeError(f"{name}: expected {self}, got {value!r}")
        return zip(self.kinds, value, strict=True)

    def __str__(self) -> str:
        if len(set(self.kinds)) == 1:
            count = ("two", "three")[len(self.kinds) - 2]
            return f"{count} {str(self.kinds[0]).removeprefix('a ').replace('number', 'numbers')}"
        return " and ".join(map(str, self.kinds))


@dataclass(frozen=True)
class Flag:
    """True or False."""

    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> bool:
        if type(value) is bool:
            return value
        if not isinstance(value, np.bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
        return bool(value)


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]
    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            choices = ", ".join(map(repr, self.names))
            raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
        return str(value)


@dataclass(frozen=True)
class Maybe:
    """A value of one kind, or None."""

    kind: Check

    @property
    def schedulable(self) -> bool:
        return self.kind.schedulable

    def __call__(self, name: str, value: Any) -> Any:
        return None if value is None else self.kind(name, value)

    def __str__(self) -> str:
        return f"None or {self.kind}"


@dataclass(frozen=True)
class Fixed:
    """The only value of one kind that a class allows, because it makes the class what it is."""

    kind: Check
    value: Any
    schedulable: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        if self.kind(name, value) != self.value:
            raise ValueError(f"{name}: expected {self.value} in this class, got {value!r}")
        return self.value


NON_NEGATIVE = Number()
FLAG = Flag()
SCHEDULED = Number(schedulable=True)
DECAY_RATE = Number(below=1.0, schedulable=True)
BETAS = Several((DECAY_RATE, DECAY_RATE))


def as_real(value: Any) -> float | None:
    """Return a real number as a float, also one in a 0-d array, and None for anything else."""
    held = _held(value)
    if isinstance(held, bool) or not isinstance(held, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _held(value: Any) -> Any:
    """Return what a 0-d array holds, of whichever library it is; anything else as it is."""
    if getattr(value, "shape", None) != () or not hasattr(value, "__float__"):
        return value
    return (value if hasattr(value, "item") else np.asarray(value)).item()


def schedules_in(value: Any) -> list[Callable[[int], Any]]:
    """Return the schedules that a setting is, or has among its numbers."""
    return [each for each in (value if isinstance(value, tuple) else (value,)) if callable(each)]


def check_setting(checks: Checks, name: str, value: Any, label: str | None = None) -> Any:
    """Check what a user sets: a value, or a schedule where one may stand.

    `label` is what a message calls it, where that is not its name.
    """
    label = name if label is None else label
    if name not in checks:
        from onepass.optim._foreign import unknown  # which imports this module

        raise TypeError(unknown(label, name, "hyperparameters", checks))
    return checked(checks[name], label, value)


def checked(check: Check, name: str, value: Any) -> Any:
    """Return what a user sets, in its plain type; of several numbers, each may be a schedule."""
    if callable(value):
        if check.schedulable:
            return value
        which = "no schedule here"
        if isinstance(check, Several) and any(kind.schedulable for kind in check.kinds):
            which = "a schedule for some of its numbers alone"
        raise TypeError(f"{name}: expected a value ({which}), got {value!r}")
    if isinstance(check, Several):
        return tuple(checked(kind, name, each) for kind, each in check.paired(name, value))
    return check(name, value)


def resolve(checks: Checks, settings: Mapping[str, Any], completed: int) -> dict[str, Any]:
    """Return the values of one step, schedules evaluated after `completed` steps, checked."""
    values = {}
    for name, check in checks.items():
        value = settings[name]
        if callable(value):
            value = value(completed)
        elif schedules_in(value):
            value = tuple(each(completed) if callable(each) else each for each in value)
        values[name] = check(name, value)
    return values


def as_numbers(checks: Checks, values: Mapping[str, Any]) -> dict[str, float]:
    """Return checked values as the rules in C++ take them: numbers by name.

    Numbers called `betas` become `beta1`, `beta2` and so on, those called `eps` `eps1` and `eps2`,
    True and False 1 and 0, one of several names the number of its place among them, and None a NaN.
    """
    numbers: dict[str, float] = {}
    for name, check in checks.items():
        kind = check.kind if isinstance(check, Maybe) else check
        value = values[name]
        if value is None:
            numbers[name] = math.nan
        elif isinstance(kind, Several):
            one = name if name == "eps" else name[:-1]
            for i, number in enumerate(value, 1):
                numbers[f"{one}{i}"] = math.nan if number is None else number
        elif isinstance(kind, Choice):
            numbers[name] = float(kind.names.index(value))
        else:
            numbers[name] = float(value)
    return numbers


def check_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the dtype, or raise where the kernels do not compute in it."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    return found
