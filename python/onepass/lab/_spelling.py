"""An optimizer as a command takes it: its name, or with settings, ``SGD(lr=0.1, momentum=0.9)``."""

import ast
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from onepass.lab._arguments import one_of
from onepass.optim._foreign import unknown


class Spelt(NamedTuple):
    """A name, and the settings that stand behind it."""

    name: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        """Return it as `spelt` reads it."""
        inner = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{self.name}({inner})" if inner else self.name


def optimizer(names: Collection[str]) -> Callable[[str], str]:
    """Return the type of these names, in whatever case, each with settings or without."""
    known = one_of(names)

    def convert(text: str) -> str:
        name, bracket, _ = text.partition("(")
        name = known(name.strip())
        return str(Spelt(name, spelt(name + text[text.index("(") :]).settings)) if bracket else name

    return convert


def spelt(text: str) -> Spelt:
    """Return the name and the settings of a text, or raise ArgumentTypeError."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return Spelt(tree.id, {})
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            settings = {str(each.arg): ast.literal_eval(each.value) for each in tree.keywords}
            if "None" not in settings:  # which is what `**` stands for
                return Spelt(tree.func.id, settings)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ArgumentTypeError(
        f"expected a name, or a name with settings as in 'SGD(lr=0.1, momentum=0.9)', got {text!r}"
    )


def check_names(spelt: Spelt, known: Collection[str]) -> None:
    """Raise ValueError where a setting is none of an optimizer's hyperparameters."""
    for name in spelt.settings:
        if name not in known:
            raise ValueError(unknown(name, name, "hyperparameters", known))
