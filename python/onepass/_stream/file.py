"""The file of a stream: its header, its chunks, and what tells that it is whole.

A page says what the stream is, and two pages, written in turn, how far it is. Then come the chunks,
each a page with its number and its step, and behind that its arrays, each on pages of its own.
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from struct import Struct, error
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from onepass._files import Place, write_atomically
from onepass.optim import Optimizer, _storage
from onepass.optim._arrays import arrange

PAGE = 4096
_PAGE_HEAD = Struct("<16sLL")
"""What the page is, the length of its text and its checksum."""
_STREAM, _PROGRESS = b"onepass stream 1", b"onepass progress"
_CHUNK_HEAD = Struct("<16sQQL")
"""What it is, the chunk's number, its step, and the checksum of these."""
_CHUNK = b"onepass chunk   "
_FIRST_CHUNK = 3 * PAGE
_COPIED_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Segment:
    """Where an array lies in a chunk."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    def of(self, chunk: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the array in the bytes of a chunk."""
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        return chunk[self.begin : self.begin + nbytes].view(self.dtype).reshape(self.shape)


class Layout:
    """The arrays of a chunk with so many parameters, by name, each on pages of its own."""

    def __init__(
        self, cls: type[Optimizer], values: Mapping[str, Any], dtype: np.dtype[Any], count: int
    ) -> None:
        self.count = count
        self.nbytes = PAGE
        self.segments: dict[str, Segment] = {}
        self._cls, self._values = cls, values
        self._add("param", (count,), dtype)
        self.arrange(np.empty(count, dtype), self._add)

    def arrange(self, param: npt.NDArray[Any], alloc: Any) -> None:
        """Let `alloc` make the arrays of a parameter, which then hold what state begins with."""
        nothing = (None,) * (len(self._cls.row.states) + 3)
        owner = alloc, "", ""
        arrange(self._cls.row.name, self._values, param, nothing, 0, owner)

    def _add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self.segments[name.removeprefix(".")] = Segment(dtype, shape, self.nbytes)
        self.nbytes += -(-math.prod(shape) * dtype.itemsize // PAGE) * PAGE
        return np.empty(shape, dtype)

    def arrays(self, chunk: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays in the bytes of a chunk, by name."""
        return {name: segment.of(chunk) for name, segment in self.segments.items()}


@dataclass
class Progress:
    """How far a stream is."""

    completed: int
    stepping: bool
    memory: list[float]
    """What the rule remembers, besides arrays."""
    skipped: int = 0
    written: int = 0
    """How often this was written."""


class DamagedError(ValueError):
    """A file that is no stream, or not a whole one."""


def page(kind: bytes, content: Mapping[str, Any]) -> bytes:
    """Return a page with this content."""
    text = json.dumps(content).encode()
    if len(text) > PAGE - _PAGE_HEAD.size:
        raise ValueError(f"settings: expected less than {PAGE} bytes of them, got {len(text)}")
    return (_PAGE_HEAD.pack(kind, len(text), crc32(text)) + text).ljust(PAGE, b"\0")


def _content(kind: bytes, found: bytes) -> dict[str, Any] | None:
    """Return what stands on a page of this kind, None where it is none or is damaged."""
    try:
        name, size, checksum = _PAGE_HEAD.unpack_from(found)
    except error:  # too short
        return None
    text = found[_PAGE_HEAD.size : _PAGE_HEAD.size + size]
    if name != kind or len(text) != size or crc32(text) != checksum:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


class StreamFile:
    """A file with the chunks of a stream."""

    def __init__(self, file: BinaryIO, full: Layout, last: Layout, n_chunks: int) -> None:
        self.file = file
        self.n_chunks = n_chunks
        self._full, self._last = full, last
        self.nbytes = self.place(n_chunks - 1) + last.nbytes

    def layout(self, chunk: int) -> Layout:
        """Return the layout of a chunk; the last one may be shorter."""
        return self._last if chunk == self.n_chunks - 1 else self._full

    def place(self, chunk: int) -> int:
        """Return where a chunk begins."""
        return _FIRST_CHUNK + chunk * self._full.nbytes

    def reserve(self) -> None:
        """Take the space of the whole file from the disk, or raise OSError where it has less."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, self.nbytes)
        else:
            os.truncate(self.file.fileno(), self.nbytes)

    def write_header(self, content: Mapping[str, Any]) -> None:
        """Say what the stream is; until then it is none."""
        self._write(page(_STREAM, content), 0)

    def write_progress(self, progress: Progress) -> Progress:
        """Say how far the stream is, once all that was written before is on the disk."""
        _sync(self.file.fileno())
        progress = replace(progress, written=progress.written + 1)
        content = page(_PROGRESS, vars(progress))
        self._write(content, PAGE * (1 + progress.written % 2))
        _sync(self.file.fileno())
        return progress

    def read_progress(self) -> Progress:
        """Return how far the stream is."""
        found = []
        for number in (1, 2):
            content = _content(_PROGRESS, os.pread(self.file.fileno(), PAGE, number * PAGE))
            if content is not None:
                found.append(Progress(**content))
        if not found:
            raise DamagedError("expected pages that say how far it is, got damaged ones")
        return max(found, key=lambda progress: progress.written)

    def check(self, completed: int) -> None:
        """Raise where the file is too short, or a chunk is not of this step."""
        size = os.fstat(self.file.fileno()).st_size
        if size < self.nbytes:
            raise DamagedError(f"expected {self.nbytes} bytes, got {size}")
        for chunk in range(self.n_chunks):
            self.check_chunk(
                os.pread(self.file.fileno(), PAGE, self.place(chunk)), chunk, completed
            )

    def check_chunk(self, head: Any, chunk: int, completed: int) -> None:
        """Raise where what a chunk begins with is not of this chunk and step."""
        if bytes(head[: _CHUNK_HEAD.size]) != _chunk_head(chunk, completed):
            raise DamagedError(
                f"expected chunk {chunk} of step {completed}, got another or a damaged one"
            )

    def write_chunk_head(self, data: npt.NDArray[np.uint8], chunk: int, completed: int) -> None:
        """Say in the bytes of a chunk which it is, and of which step."""
        head = _chunk_head(chunk, completed)
        data[: len(head)] = np.frombuffer(head, np.uint8)

    def copy_to(self, path: Place) -> None:
        """Write the whole file to another place, atomically; shares blocks where a disk can."""
        write_atomically(path, partial(_copy, self.file.fileno(), self.nbytes))

    def _write(self, content: bytes, begin: int) -> None:
        while content:
            written = os.pwrite(self.file.fileno(), content, begin)
            content, begin = content[written:], begin + written


def _chunk_head(chunk: int, completed: int) -> bytes:
    """Return what a chunk of this step begins with."""
    content = _CHUNK_HEAD.pack(_CHUNK, chunk, completed, 0)[:-4]
    return content + crc32(content).to_bytes(4, "little")


def read_header(file: BinaryIO) -> dict[str, Any]:
    """Return what says what a stream is."""
    content = _content(_STREAM, os.pread(file.fileno(), PAGE, 0))
    if content is None:
        raise DamagedError(
            "expected a stream that op.Stream.create made, got another or a damaged file"
        )
    return content


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a dtype by its name."""
    return _storage.bfloat16() if name == "bfloat16" else np.dtype(name)


def _sync(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _copy(source: int, nbytes: int, target: BinaryIO) -> None:
    done = 0
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # not for these two file systems
            while done < nbytes:
                size = min(nbytes - done, _COPIED_AT_ONCE)
                copied = os.copy_file_range(source, target.fileno(), size, done, done)
                if not copied:
                    break
                done += copied
    target.seek(done)
    while done < nbytes:
        content = os.pread(source, min(nbytes - done, _COPIED_AT_ONCE), done)
        if not content:
            raise DamagedError(f"expected {nbytes} bytes, got {done}")
        target.write(content)
        done += len(content)
