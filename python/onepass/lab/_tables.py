"""How the commands' tables look."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Literal, TypeAlias

from onepass.lab._terminal import as_shown

Column: TypeAlias = tuple[str, Literal["left", "right"]]
"""A heading, and how what stands below it is justified."""

NARROWEST_TEXT = 72
"""The width that a text beside a table takes even if the table is narrower."""


def print_table(
    lines: Iterable[str],
    columns: Iterable[Column],
    sections: Iterable[Iterable[Sequence[str]]],
    caption: str,
) -> None:
    """Print a table below these lines and above a caption.

    A table that is wider than the terminal loses nothing: the terminal breaks its lines.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for heading, justify in columns:
        table.add_column(as_shown(heading), justify=justify, no_wrap=True)
    for section in sections:
        for row in section:
            table.add_row(*map(as_shown, row))
        table.add_section()
    whole = console.measure(table, options=console.options.update_width(1 << 16)).maximum
    width = min(console.width, max(whole, NARROWEST_TEXT))
    for line in lines:
        print(_paragraph(line, width))
    print()
    Console(width=max(console.width, whole)).print(table)
    print(f"\n{_paragraph(caption, width)}")


def _paragraph(text: str, width: int) -> str:
    return fill(as_shown(text), max(width, 1), break_long_words=False, break_on_hyphens=False)
