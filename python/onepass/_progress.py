"""A progress bar on a terminal; nothing where the output goes elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeAlias

SECONDS_BETWEEN_FRAMES = 0.1

Show: TypeAlias = Callable[[float, str], object]
"""A function that is told how much of the bar's total is done, and what is going on."""


@contextmanager
def progress(total: float, unit: str) -> Iterator[Show]:
    """Show a bar while the block runs, and move it by calling the result."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    # The thread that works draws it: another one would take time from what is being timed.
    bar = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    drawn = 0.0

    def show(done: float, description: str) -> None:
        nonlocal drawn
        bar.update(task, completed=done, description=description)
        if perf_counter() - drawn > SECONDS_BETWEEN_FRAMES:
            bar.refresh()
            drawn = perf_counter()

    with bar:
        yield show
        show(total, "done")
