"""How the commands' tables look."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill
from typing import Any, Literal, TypeAlias

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
    *,
    keys: int = 1,
) -> None:
    """Print a table below these lines and above a caption.

    A table that is wider than the terminal becomes several, one below the other. The first `keys`
    columns, which say what a row is, stand in each. So no number is ever cut.
    """
    from rich.console import Console

    console = Console()
    columns, rows = list(columns), [list(section) for section in sections]
    tables = [
        _table(
            [columns[i] for i in shown], [[[row[i] for i in shown] for row in s] for s in sections]
        )
        for shown in _parts(console.width, columns, rows, keys)
    ]
    widths = [_width(console, table) for table in tables]
    width = min(console.width, max(*widths, NARROWEST_TEXT))
    for line in lines:
        print(_paragraph(line, width))
    for table, whole in zip(tables, widths, strict=True):
        print()
        wide = Console(width=max(console.width, whole))
        with wide.capture() as printed:
            wide.print(table)
        print("\n".join(line.rstrip() for line in printed.get().splitlines()))
    print(f"\n{_paragraph(caption, width)}")


def _parts(
    room: int, columns: Sequence[Column], sections: Sequence[Sequence[Sequence[str]]], keys: int
) -> Iterator[list[int]]:
    """Yield the columns of each table, as many as there is room for, and one at least."""
    rows = [row for section in sections for row in section]
    widths = [
        max(len(as_shown(line)) for text in (heading, *cells) for line in text.split("\n"))
        for (heading, _), *cells in zip(columns, *rows, strict=True)
    ]
    labels = list(range(keys))
    part: list[int] = []
    for number in range(keys, len(columns)):
        needed = sum(widths[i] + GAP for i in (*labels, *part, number)) - GAP
        if part and needed > room:
            yield [*labels, *part]
            part = []
        part.append(number)
    yield [*labels, *part]


GAP = 2
"""Between two columns."""


def _table(columns: Sequence[Column], sections: Sequence[Sequence[Sequence[str]]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for heading, justify in columns:
        table.add_column(as_shown(heading), justify=justify, no_wrap=True)
    for section in sections:
        for row in section:
            table.add_row(*map(as_shown, row))
        table.add_section()
    return table


def _width(console: Any, table: Any) -> int:
    """Return the width of a table that nothing is cut from."""
    width: int = console.measure(table, options=console.options.update_width(1 << 16)).maximum
    return width


def _paragraph(text: str, width: int) -> str:
    return fill(as_shown(text), max(width, 1), break_long_words=False, break_on_hyphens=False)
