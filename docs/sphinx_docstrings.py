"""What our docstrings mean to Sphinx beyond numpydoc."""

import re
from typing import Any

from sphinx.application import Sphinx

from sphinx_pages import STATED

BEFORE_NAPOLEON = 400


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", _edit, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _edit(
    _app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]
) -> None:
    """Stress "Differs from", and make a list of the sources, which stand one below the other."""
    in_references = begins = False
    for i, line in enumerate(lines):
        if line == "Differs from":
            lines[i] = "**Differs from**"
        elif line.startswith("---"):
            in_references = begins = lines[i - 1] == "References"
        elif in_references and i + 1 < len(lines) and lines[i + 1].startswith("---"):
            in_references = False
        elif in_references and line:
            lines[i] = f"* {line}" if begins else f"  {line}"
            begins = line.endswith(".") and not re.search(r"\b[A-Z]\.$", line)


def _skip(
    _app: Sphinx, _what: str, name: str, thing: Any, skip: bool, _options: Any
) -> bool | None:
    """Leave out a NamedTuple's fields, which the class lists, and what only subclasses state."""
    is_field = type(thing).__name__ == "_tuplegetter"
    return True if is_field or name in STATED else skip or None
