"""Chunks of a file through a few buffers: read ahead, changed, written behind."""

import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

BUFFERS = 4
"""One is changed while others are read and written."""
_THREADS = 16
_REQUEST = 1 << 20
"""Bytes that a request moves: many small ones keep a disk busy."""

Change = Callable[[int, npt.NDArray[np.uint8]], None]


@dataclass
class _Buffer:
    data: npt.NDArray[np.uint8]
    chunk: int = -1
    left: int = 0
    """Requests that are not done."""
    errors: list[BaseException] = field(default_factory=list)


class Pipe:
    """Reads, changes and writes chunks of a file, several at a time."""

    def __init__(self, path: Path, nbytes: int, direct: bool) -> None:
        self._file, self.direct = _open(path, direct)
        # Maps begin on a page, as the disk asks for beside the page cache.
        self._buffers = [
            _Buffer(np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)) for _ in range(BUFFERS)
        ]
        self._pool = ThreadPoolExecutor(_THREADS, "onepass-stream")
        self._lock = Lock()
        self._events: SimpleQueue[tuple[_Buffer, bool]] = SimpleQueue()

    def close(self) -> None:
        """End the threads, and close the file."""
        self._pool.shutdown()
        self._file.close()

    def run(
        self,
        chunks: Iterable[int],
        place: Callable[[int], tuple[int, int]],
        change: Change,
        *,
        read: bool = True,
        write: bool = True,
    ) -> tuple[set[int], BaseException | None, bool]:
        """Change chunks, in any order.

        `place` says where a chunk begins, and its length. Returns the chunks that were written, the
        first error, and whether a chunk may be half written. After an error no more chunks are
        begun, and those that were changed are written.
        """
        coming, done = iter(chunks), set[int]()
        first: BaseException | None = None
        is_torn = False
        busy = 0

        def begin(buffer: _Buffer) -> int:
            chunk = next(coming, None)
            if chunk is None:
                return 0
            buffer.chunk = chunk
            if read:
                self._start(buffer, place(chunk), is_write=False)
            else:
                self._events.put((buffer, False))
            return 1

        for buffer in self._buffers:
            busy += begin(buffer)
        while busy:
            buffer, is_write = self._events.get()
            busy -= 1
            if buffer.errors:
                first = first or buffer.errors[0]
                is_torn = is_torn or is_write
            elif is_write:
                done.add(buffer.chunk)
            elif first is None:
                begins, nbytes = place(buffer.chunk)
                try:
                    change(buffer.chunk, buffer.data[:nbytes])
                except BaseException as error:
                    first = error
                else:
                    if write:
                        self._start(buffer, (begins, nbytes), is_write=True)
                        busy += 1
                        continue
                    done.add(buffer.chunk)
            if first is None:
                busy += begin(buffer)
        return done, first, is_torn

    def _start(self, buffer: _Buffer, place: tuple[int, int], *, is_write: bool) -> None:
        begin, nbytes = place
        starts = range(0, nbytes, _REQUEST)
        buffer.left, buffer.errors = len(starts), []
        view = buffer.data.data
        for start in starts:
            part = view[start : min(start + _REQUEST, nbytes)]
            self._pool.submit(self._request, buffer, part, begin + start, is_write)

    def _request(self, buffer: _Buffer, part: memoryview, begin: int, is_write: bool) -> None:
        try:
            _move(self._file.fileno(), part, begin, is_write)
        except BaseException as error:
            buffer.errors.append(error)
        with self._lock:
            buffer.left -= 1
            is_last = not buffer.left
        if is_last:
            self._events.put((buffer, is_write))


def _move(descriptor: int, part: memoryview, begin: int, is_write: bool) -> None:
    """Read or write all of it, in as many calls as the system needs."""
    while part:
        moved = (os.pwritev if is_write else os.preadv)(descriptor, [part], begin)
        if not moved:
            raise OSError(f"expected {len(part)} more bytes at {begin}, got the end of the file")
        part, begin = part[moved:], begin + moved


def _open(path: Path, direct: bool) -> tuple[FileIO, bool]:
    """Open a file for its chunks; past the page cache where that is asked for and can be had."""
    flag: Any = getattr(os, "O_DIRECT", 0)
    if direct and flag:
        with suppress(OSError):  # as tmpfs has it
            return FileIO(path, "r+", opener=lambda path, mode: os.open(path, mode | flag)), True
    return FileIO(path, "r+"), False
