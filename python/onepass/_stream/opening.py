"""The file of a stream, made or opened."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._stream.arguments import Source, checked
from onepass._stream.file import (
    DamagedError,
    Layout,
    Progress,
    StreamFile,
    dtype_of,
    read_header,
)
from onepass._stream.pipe import Pipe
from onepass._stream.step import Opened
from onepass.optim import registry


def described_by(raw: Any, header: Mapping[str, Any]) -> Opened:
    """Return what a header says, before the first step."""
    cls, dtype = registry[header["rule"]], dtype_of(header["dtype"])
    values = checked(cls, dtype, header["settings"])
    size, chunk = header["size"], header["chunk"]
    n_chunks = -(-size // chunk)
    full = Layout(cls, values, dtype, min(size, chunk))
    rest = size - (n_chunks - 1) * chunk
    last = full if rest == full.count else Layout(cls, values, dtype, rest)
    start = Progress(0, stepping=False, memory=list(cls.row.memory_start))
    return Opened(cls, values, dtype, size, chunk, StreamFile(raw, full, last, n_chunks), start)


def opened(raw: Any) -> Opened:
    """Return what a file says, or raise where it is no whole stream."""
    _lock(raw)
    now = described_by(raw, read_header(raw))
    now.progress = now.file.read_progress()
    if now.progress.stepping:
        step = now.progress.completed + 1
        expected = "expected a stream between two steps"
        raise DamagedError(f"{expected}, got one left within step {step} (take a checkpoint)")
    now.file.check(now.progress.completed)
    return now


def make(path: Path, direct: bool, now: Opened, params: Source) -> None:
    """Write the chunks of a new stream."""
    now.file.reserve()
    pipe = Pipe(path, now.file.layout(0).nbytes, direct)
    try:
        fill, places = partial(_fill, now, params), partial(place, now.file)
        _, error, _ = pipe.run(range(now.file.n_chunks), places, fill, read=False)
    finally:
        pipe.close()
    if error is not None:
        raise error
    now.file.write_progress(now.progress)


def place(file: StreamFile, chunk: int) -> tuple[int, int]:
    return file.place(chunk), file.layout(chunk).nbytes


def _fill(now: Opened, params: Source, chunk: int, data: npt.NDArray[np.uint8]) -> None:
    """Put the first parameters and fresh state into a chunk."""
    layout = now.file.layout(chunk)
    data[:] = 0
    now.file.write_chunk_head(data, chunk, 0)
    arrays = layout.arrays(data)
    begin = chunk * now.chunk
    end = begin + layout.count
    given = params(begin, end) if callable(params) else params[begin:end]
    part = _core.readable("params", given, arrays["param"])
    if part.shape != (layout.count,):
        raise ValueError(f"params: expected shape ({layout.count},), got {part.shape}")
    if part.dtype != now.dtype:
        raise TypeError(f"params: expected dtype {now.dtype}, got {part.dtype}")
    arrays["param"][:] = part
    layout.arrange(arrays["param"], lambda name, *_: arrays[name.removeprefix(".")])


def check_system() -> None:
    if not hasattr(os, "preadv"):
        raise NotImplementedError("Stream: expected a system with preadv and pwritev, got another")


def _lock(file: Any) -> None:
    """Keep others from opening the file; the lock ends with the process or the file."""
    import fcntl  # not on every system

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DamagedError("expected a stream that is open nowhere else, got an open one") from None
