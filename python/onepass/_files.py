"""Files that are at any time the old one or the whole new one; nothing is left of a failed call."""

import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

Place: TypeAlias = str | os.PathLike[str] | BinaryIO
"""Where something is written or read: a path, or a file that is open in binary mode."""

_Result = TypeVar("_Result")


def write_atomically(
    path: Place, write: Callable[[BinaryIO], object], *, durable: bool = True
) -> None:
    """Let `write` fill a file that then takes the place of `path`.

    A durable file survives a power cut once this returns, if the system lets its folder be synced;
    any file survives the end of the process. If `path` is a symbolic link, the file that it points
    to is replaced. A device is written to, and so is a file that is open already.
    """
    if not isinstance(path, str | os.PathLike):
        write(_binary(path))
        return
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        _with_file(path, "wb", write)
        return

    def fill(file: BinaryIO) -> None:
        write(file)
        file.flush()
        if durable:
            os.fsync(file.fileno())

    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    # The file has its name before it is made, so that it can be removed whatever happens.
    temporary = target.with_name(f".{target.name[:40]}.{os.urandom(8).hex()}")
    try:
        _with_file(temporary, "xb", fill)
        if mode is not None:
            temporary.chmod(mode & 0o777)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = os.fspath(path)  # which its message names
        raise
    if durable and os.name == "posix":
        _sync_directory(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    # A command's arguments may hold bytes that are no text.
    encoded = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(encoded), durable=False)


def read_from(path: Place, read: Callable[[BinaryIO], _Result]) -> _Result:
    """Return what `read` makes of a file; one that is open already stays so."""
    if isinstance(path, str | os.PathLike):
        return _with_file(path, "rb", read)
    return read(_binary(path))


def _binary(file: BinaryIO) -> BinaryIO:
    """Return an open file, or raise TypeError if it is not one of bytes."""
    if isinstance(file, TextIOBase) or not (hasattr(file, "write") or hasattr(file, "read")):
        raise TypeError(f"path: expected a path or a file open in binary mode, got {file!r}")
    return file


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Return the mode of a file, None if there is none yet; a FIFO or a socket is an error."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    if kind := kinds.get(stat.S_IFMT(mode)):
        expected = "a file or a device (what else there is, open yourself and pass as a file)"
        raise ValueError(f"path: expected {expected}, got the {kind} {os.fspath(path)!r}")
    return mode


def _with_file(path: Place, mode: str, use: Callable[[BinaryIO], _Result]) -> _Result:
    """Return what `use` returns for the file, which is closed in any case.

    A `with` statement has gaps, before its block and behind it, in which an interrupt would leave
    the file open.
    """
    files: list[BinaryIO] = []
    try:
        files.extend(map(open, [path], [mode]))  # type: ignore[arg-type]  # one native call
        result = use(files[0])
        files[0].close()
    except BaseException:
        for file in files:
            with suppress(OSError):  # of flushing; the first error counts
                file.close()
        raise
    return result


def _sync_directory(directory: Path) -> None:
    """Make a new name in a folder survive a power cut, if the system lets the folder be synced.

    The file is in its place by now, so this raises no error.
    """
    descriptors: list[int] = []
    try:
        with suppress(OSError):
            descriptors.extend(map(os.open, [directory], [os.O_RDONLY]))  # one native call
            os.fsync(descriptors[0])
        _close(descriptors)
    except BaseException:
        _close(descriptors)
        raise


def _close(descriptors: list[int]) -> None:
    """Close and forget descriptors in one native call, so that no interrupt closes one twice."""
    with suppress(OSError):
        deque(map(os.close, map(descriptors.pop, [-1] * len(descriptors))), maxlen=0)
