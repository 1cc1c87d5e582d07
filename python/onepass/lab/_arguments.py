"""Types of the command line's arguments, and options that several commands have.

argparse puts the argument's name before the message: ``argument --lr: expected ..., got ...``.
"""

import math
from argparse import Action, ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

ALL = "all"

SEED = 5
"""The default of all commands: seeds 1 to 4 chose the learning rates of `compare`."""


def add_names(
    parser: ArgumentParser,
    option: str,
    names: Collection[str],
    which: str,
    kind: Callable[[Collection[str]], Callable[[str], str]] | None = None,
    default: Collection[str] = (ALL,),
) -> None:
    """Give a parser an option that takes some of these names, read by `kind`."""
    complete(
        parser.add_argument(
            option,
            nargs="+",
            action="extend",
            type=(kind or one_of)((*names, ALL)),
            metavar="NAME",
            help=f"{which}; {ALL}, or some of {', '.join(names)} (default: {' '.join(default)})",
        ),
        (*names, ALL),
    )


def complete(action: Action, names: Iterable[str]) -> None:
    """Let a shell complete an option's value from these names, if it asks argcomplete."""
    action.completer = lambda **_: list(names)  # type: ignore[attr-defined]


def chosen(given: Collection[str] | None, names: Iterable[str]) -> list[str]:
    """Return which names an option of `add_names` was given, each once."""
    return list(dict.fromkeys(names if not given or ALL in given else given))


def add_out(parser: ArgumentParser, default: str, what: str) -> None:
    """Give a parser the option of the folder it writes to."""
    parser.add_argument(
        "-o",
        "--out",
        type=_folder,
        default=Path(default),
        metavar="FOLDER",
        help=f"where {what} go (default: %(default)s)",
    )


def add_seed(parser: ArgumentParser, what: str) -> None:
    """Give a parser the option of the seed."""
    parser.add_argument(
        "--seed",
        type=integer(0, 2**64 - 1),
        default=SEED,
        help=f"{what} (default: %(default)s)",
    )


def add_range(
    parser: ArgumentParser,
    option: str,
    kind: Callable[[str], float],
    default: tuple[float, float],
    what: str,
) -> None:
    """Give a parser an option that takes a range of numbers, or one number alone."""
    low, high = default
    parser.add_argument(
        option,
        nargs="+",
        action=_Range,
        type=kind,
        default=default,
        metavar="X",
        help=f"{what}: from the first to the second number, or one alone "
        f"(default: {low:g} {high:g})",
    )


class _Range(Action):
    """Stores the lowest and the highest number of a range, which are one where it has one."""

    def __call__(
        self,
        parser: ArgumentParser,  # noqa: ARG002
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        assert isinstance(values, Sequence)
        low, high = values[0], values[-1]
        if len(values) > 2 or low > high:
            got = " ".join(map(str, values))
            raise ArgumentError(self, f"expected one number, or two in order, got {got}")
        setattr(namespace, self.dest, (low, high))


def integer(low: int, high: int = 10**9) -> Callable[[str], int]:
    """Return the type of integers in a range, whose bounds keep absurd numbers out of the code."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise ArgumentTypeError(f"expected an integer >= {low}, got {text!r}")
        if number > high:
            raise ArgumentTypeError(f"expected an integer <= {high}, got {text!r}")
        return number

    return convert


def finite(text: str) -> float:
    """Return a number that is neither infinite nor NaN."""
    number = _number(text)
    if not math.isfinite(number):
        raise ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


def fraction(text: str) -> float:
    """Return a number from 0 on, below 1."""
    number = _number(text)
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"expected a number in [0, 1), got {text!r}")
    return number


def positive(text: str) -> float:
    """Return a finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"expected a finite number > 0, got {text!r}")
    return number


def non_negative(text: str) -> float:
    """Return a finite number from 0 on."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise ArgumentTypeError(f"expected a finite number >= 0, got {text!r}")
    return number


def positive_or_inf(text: str) -> float:
    """Return a number above 0, perhaps infinite."""
    number = _number(text)
    if not number > 0:
        raise ArgumentTypeError(f"expected a number > 0 or inf, got {text!r}")
    return number


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return the type of these names, in whatever case they are written."""
    known = {name.lower(): name for name in names}

    def convert(text: str) -> str:
        if text.lower() not in known:
            raise ArgumentTypeError(f"expected one of {', '.join(known.values())}, got {text!r}")
        return known[text.lower()]

    return convert


def batch_size(text: str) -> int | None:
    """Return a number of rows, None for all of them."""
    if text.lower() == ALL:
        return None
    try:
        return integer(1)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(str(error).replace(", got", f" or {ALL}, got")) from None


def _folder(text: str) -> Path:
    if not text:  # a shell variable that is not set; it would be the current folder
        raise ArgumentTypeError(f"expected a folder, got {text!r}")
    return Path(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
