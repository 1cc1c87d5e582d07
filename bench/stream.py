"""Times a step through a file against the disk's own speed and against mapped arrays.

python bench/stream.py                     AdamW on 1e8 parameters, 1.2 GB; a minute or two
python bench/stream.py --parameters 4e8 --folder /mnt/disk --steps 2

Gradients are in memory. All take turns, and each begins with nothing of its files in the page
cache. GB/s counts what is read and what is written; a ratio is the median of the rounds' ratios.

disk      16 threads read and write back pieces of 1 MiB, past the page cache: as many bytes
loop      one thread does so with pieces of 32 MiB, one after the other
stream    op.Stream, past the page cache
cached    op.Stream through the page cache, until the disk has it all
mapped    op.AdamW on a numpy.memmap, state_alloc= makes others of its state; until it is flushed
8 bits    op.Stream on bfloat16 with state_format="q8", beside the page cache
"""

import argparse
import mmap
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np

import onepass as op


class Disk:
    """Pieces of a file, each read and written back, by so many threads; no code of ours."""

    def __init__(
        self, folder: Path, n: int, _: np.ndarray, *, piece: int = 1 << 20, threads: int = 16
    ) -> None:
        self.path = folder / f"disk-{threads}"
        self.pieces = -(-12 * n // piece)
        self.piece, self.threads = piece, threads
        self.nbytes = 2 * self.pieces * piece
        with self.path.open("wb") as file:
            for _ in range(self.pieces):
                file.write(bytes(piece))

    def step(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        coming = iter(range(self.pieces))

        def work() -> None:
            buffer = memoryview(mmap.mmap(-1, self.piece))
            for number in coming:
                assert os.preadv(descriptor, [buffer], number * self.piece) == self.piece
                assert os.pwritev(descriptor, [buffer], number * self.piece) == self.piece

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.fdatasync(descriptor)
        os.close(descriptor)

    def forget(self) -> None:
        forget(self.path)


class Streamed:
    """`op.Stream`."""

    def __init__(
        self, folder: Path, n: int, grads: np.ndarray, dtype=np.float32, **options
    ) -> None:
        name = "-".join(["stream", *map(str, options.values())])
        self.stream = create(folder / name, n, dtype, chunk=CHUNK, **options)
        self.grads, self.nbytes = grads, 2 * self.stream._now.file.nbytes

    def step(self) -> None:
        self.stream.step(self.grads)

    def forget(self) -> None:
        forget(self.stream.path)


class Mapped:
    """`op.AdamW` on mapped files."""

    def __init__(self, folder: Path, n: int, grads: np.ndarray) -> None:
        self.paths: list[Path] = []
        self.maps: list[np.memmap] = []

        def alloc(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            path = folder / name
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(int(np.prod(shape)), 1) * dtype.itemsize)
            self.paths.append(path)
            self.maps.append(np.memmap(path, dtype, "r+", shape=shape))
            return self.maps[-1]

        self.opt = op.AdamW(alloc("w", (n,), np.dtype(np.float32)), state_alloc=alloc)
        self.grads, self.nbytes = grads, 24 * n

    def step(self) -> None:
        self.opt.step(self.grads)
        for array in self.maps:
            array.flush()

    def forget(self) -> None:
        for array, path in zip(self.maps, self.paths, strict=True):
            array.flush()
            array._mmap.madvise(4)  # MADV_DONTNEED: pages that are mapped stay in the cache
            forget(path)


CHUNK = 1 << 22
CONTENDERS: dict[str, Callable[..., object]] = {
    "disk": Disk,
    "loop": partial(Disk, piece=1 << 25, threads=1),
    "stream": partial(Streamed),
    "cached": partial(Streamed, direct=False),
    "mapped": Mapped,
    "8 bits": partial(Streamed, dtype=ml_dtypes.bfloat16, state_format="q8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--parameters", type=float, default=1e8)
    parser.add_argument("--folder", default=".", help="on the disk that is to be measured")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    options = parser.parse_args()
    n = int(options.parameters)
    grads = np.full(n, 1e-3, np.float32)
    with TemporaryDirectory(dir=options.folder) as folder:
        contenders = {name: CONTENDERS[name](Path(folder), n, grads) for name in options.only}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(options.steps + 1):
            for name, contender in contenders.items():
                contender.forget()
                begin = time.perf_counter()
                contender.step()
                if number:
                    seconds[name].append(time.perf_counter() - begin)
        print(f"{n:,} parameters, load {os.getloadavg()[0]:.1f}, {op.runtime.info()['isa']}")
        print(f"{'':10}{'bytes a parameter':>18}{'s a step':>10}{'GB/s':>8}{'of the disk':>13}")
        for name, found in seconds.items():
            nbytes = contenders[name].nbytes
            rates = [nbytes / each / 1e9 for each in found]
            disk = [contenders["disk"].nbytes / each / 1e9 for each in seconds["disk"]]
            ratio = median(a / b for a, b in zip(rates, disk, strict=True))
            line = f"{nbytes / n:18.1f}{median(found):10.2f}{median(rates):8.2f}{ratio:13.2f}"
            print(f"{name:10}{line}")


def create(path: Path, n: int, dtype, **options) -> op.Stream:
    """Return a stream of zeros."""
    return op.Stream.create(
        path,
        lambda begin, end: np.zeros(end - begin, dtype),
        "adamw",
        size=n,
        dtype=dtype,
        **options,
    )


def forget(path: Path) -> None:
    """Drop what the page cache has of a file."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
