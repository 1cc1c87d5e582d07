"""How the commands' tables look."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def new_table(lines: Iterable[str], caption: str, **options: Any) -> "Table":
    """Return an empty table below these lines and above a caption."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        box=SIMPLE_HEAD,
        title="".join(f"{line}\n" for line in lines) or None,
        title_justify="left",
        caption=f"\n{caption}",
        caption_justify="left",
        pad_edge=False,
        show_edge=False,
        **options,
    )
