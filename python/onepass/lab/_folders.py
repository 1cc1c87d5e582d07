"""The one rule for a folder that holds what an earlier command wrote: `--resume`, or `--force`."""

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
ARGUMENTS = "arguments"
"""What that file keeps the words of the command by."""


def add_force(parser: Any) -> None:
    """Give a parser the option that lets it begin anew in a folder that holds an earlier run."""
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace what an earlier run has written to the folder; else that is refused",
    )


def add_resume(parser: ArgumentParser, more: str = "") -> None:
    """Give a parser that option, and the one that goes on with what the folder holds."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--resume",
        action="store_true",
        help=f"go on with what the folder holds, by the options that stand there{more}",
    )
    add_force(group)
    parser.set_defaults(parser=parser)


def refuse_what_is_there(args: Namespace, paths: Iterable[Path]) -> None:
    """End the command where a file that it would write is there, but for `--force`."""
    if not args.force and (there := [path.name for path in paths if path.exists()]):
        args.refuse(f"argument {occupied(args.out, there[0])}")


def occupied(folder: Path, found: str, *, resume: bool = False) -> str:
    """Return the complaint about a folder that holds an earlier run."""
    way_out = "--resume goes on with it, --force" if resume else "--force"
    return f"--out: expected a folder without {found}, got {folder} ({way_out} begins anew)"


def resumed(args: Namespace) -> Namespace:
    """Return the arguments of the command that the folder holds, and of what is given beside them.

    An option that is given takes the place of the one that stood there.
    """
    saved = _saved(args.out / SETTINGS)
    if saved is None:
        return args
    parser: ArgumentParser = args.parser
    words = [*_without(saved, parser, _replaced(parser, args.words)), *args.words]
    merged = parser.parse_args([*words, "--resume"])
    merged.words = words
    return merged


def command_line(name: str, args: Namespace) -> list[str]:
    """Return the words that run the command once more, from the start."""
    return ["onepass", name, *args.words]


def to_go_on(name: str, folder: Path) -> str:
    """Return what to tell somebody who has interrupted the command."""
    return f"to go on: {shlex.join(['onepass', name, '--out', str(folder), '--resume'])}"


def _saved(path: Path) -> list[str] | None:
    """Return the words that a file keeps, None where it keeps none."""
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))[ARGUMENTS]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(word) for word in kept]


def _replaced(parser: ArgumentParser, words: Sequence[str]) -> set[str]:
    """Return the options that these words name, and those that exclude them."""
    named = set(map(_option, words))
    actions = [each for each in parser._actions if not named.isdisjoint(each.option_strings)]
    for group in parser._mutually_exclusive_groups:
        if not set(actions).isdisjoint(group._group_actions):
            actions += group._group_actions
    return {option for action in actions for option in action.option_strings}


def _option(word: str) -> str:
    """Return the option that a word names, with its value in the same word or not."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]


def _without(
    words: Sequence[str], parser: ArgumentParser, options: Collection[str]
) -> Iterator[str]:
    """Yield the words but these options and their values."""
    dropped = False
    for word in words:
        if _option(word) in parser._option_string_actions:
            dropped = _option(word) in options
        if not dropped:
            yield word
