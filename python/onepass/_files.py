"""Files that are at any time the old one or the whole new one."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[BinaryIO], object], *, durable: bool = True
) -> None:
    """Let `write` fill a file that then takes the place of `path`.

    A durable one survives a power cut once this returns; any survives the end of the process.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    # A command's arguments may hold bytes that are no text.
    encoded = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(encoded), durable=False)


def _sync_directory(directory: Path) -> None:
    """Make the new name survive a power cut, where the system lets a directory be synced."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
