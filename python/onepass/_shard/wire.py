"""What the ranks of a communicator tell each other, in calls that all of them make together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._communicator import Shares
from onepass._memory import aligned_zeros
from onepass._shard.cut import ALIGNED, Cut, Kind, Layout, octets

Flat = npt.NDArray[Any]
_Value = TypeVar("_Value")

_MOST_BYTES = 1 << 26
"""How many bytes a rank sends another one, or all others, at a time."""
_MOST_OF_ALL = 1 << 28
"""How many bytes all ranks together send one at a time, at most."""
_MOST_COUNTED = 2**31
"""MPI's counts and places are numbers of 32 bits."""


class Wire:
    """The communicator, and who has what."""

    def __init__(self, comm: Shares) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size
        # No number is cut in two where a part ends, nor where it begins.
        most = min(_MOST_BYTES, _MOST_OF_ALL // self.size)
        self.most_bytes = max(most // ALIGNED * ALIGNED, 4096)
        # Those of the gradients and of the parameters are the same in each step.
        self._layout = lru_cache(maxsize=8)(Layout)
        self._within: str | None = None  # the call of which not all ranks know how it ends

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """Go through a call in which all ranks send the same messages, or refuse it.

        It is refused once such a call has ended here alone, as by Ctrl-C. The others still wait for
        its messages, and would take the next call's for them.
        """
        if self._within is not None and self.size > 1:
            raise RuntimeError(
                f"{name}: expected all ranks in the same call, got ranks that may wait in "
                f"{self._within}, which ended on this one alone: end all processes"
            )
        self._within = name
        yield
        self.settle()

    def settle(self) -> None:
        """Note that all ranks know how the call ends, before an error that all of them raise."""
        self._within = None

    def tell(self, own: npt.NDArray[Any], counts: Sequence[int]) -> npt.NDArray[Any]:
        """Return all ranks' vectors, one behind the other; each has the length that is said."""
        whole = np.empty(sum(counts), own.dtype)
        self.comm.Allgatherv(own, [whole, (list(counts), _places(counts))])
        return whole

    def agree(
        self,
        name: str,
        attempt: Callable[[], tuple[_Value, object]],
        expected: str = "the same parameters, settings and kinds of gradients on all ranks",
    ) -> _Value:
        """Return what the attempt makes, or raise on all ranks where it fails on one.

        It returns besides what must be the same on all ranks. A message calls the call `name`, and
        says what was expected where that is not the same.
        """
        error: BaseException | None = None
        told = 0
        try:
            value, same = attempt()
            told = crc32(repr(same).encode())
        except BaseException as found:  # raised below, once the others know
            error = found
        rows = self.tell(np.array([error is not None, told], np.int64), [2] * self.size)
        if error is not None:
            self.settle()
            raise error
        failed, digests = rows[::2], rows[1::2]
        self.check_others(name, failed)
        if other := np.flatnonzero(digests != told).tolist():
            self.settle()
            raise ValueError(f"{name}: expected {expected}, got others on rank {other[0]}")
        return value

    def check_others(self, name: str, failed: npt.NDArray[Any]) -> None:
        """Raise where another rank has failed; each has said whether it did."""
        if ranks := np.flatnonzero(failed).tolist():
            self.settle()
            expected = "arguments that all ranks can take"
            raise ValueError(f"{name}: expected {expected}, got an error on rank {ranks[0]}")

    def share(self, cut: Cut, arrays: Sequence[tuple[int, Kind, Flat]]) -> None:
        """Let all ranks have the parts of all. `arrays`: of this parameter, kind; flat."""
        if len(arrays) == 1 and arrays[0][2].size < _MOST_COUNTED:
            param, kind, array = arrays[0]
            parts = [cut.part(rank, param, kind) for rank in range(self.size)]
            counts = [max(part.stop - part.start, 0) for part in parts]
            places = [part.start for part in parts]
            self.comm.Allgatherv(None, [_as_numbers(array), (counts, places)])
            return
        layout = self._layout(cut, tuple((param, kind, a.itemsize) for param, kind, a in arrays))
        own = [octets(array) for _, _, array in arrays]
        for begin in range(0, max(layout.nbytes, default=0), self.most_bytes):
            counts = [_left(n, begin, self.most_bytes) for n in layout.nbytes]
            places = _places(counts)
            buffer = np.empty(sum(counts), np.uint8)
            for rank in (self.rank, *(r for r in range(self.size) if r != self.rank)):
                if rank != self.rank and not counts[rank]:
                    continue
                into = buffer[places[rank] : places[rank] + counts[rank]]
                _move(layout, rank, begin, own, into, packs=rank == self.rank)
                if rank == self.rank:
                    self.comm.Allgatherv(None, [buffer, (counts, places)])

    def reduce(
        self,
        cut: Cut,
        grads: Sequence[tuple[int, Flat]],
        sums: Sequence[Flat],
        num_threads: int | None,
    ) -> None:
        """Write the sums of all ranks' gradients into `sums`, each in the ranks' order.

        `grads`: of this parameter; flat and whole. `sums`: the part of each that is this rank's.
        """
        if not grads:
            return
        of_grads = tuple((param, "elements", grad.itemsize) for param, grad in grads)
        layout = self._layout(cut, of_grads)
        # One array is sent from where it is, in numbers of its own; else bytes of all are packed.
        alone = grads[0][1] if len(grads) == 1 and grads[0][1].size < _MOST_COUNTED else None
        unit = 1 if alone is None else alone.itemsize
        mine = layout.nbytes[self.rank]
        for begin in range(0, max(layout.nbytes), self.most_bytes):
            if alone is None:
                counts = [_left(n, begin, self.most_bytes) for n in layout.nbytes]
                places = _places(counts)
                sent: Flat = np.empty(sum(counts), np.uint8)
                own = [octets(grad) for _, grad in grads]
                for rank in range(self.size):
                    into = sent[places[rank] : places[rank] + counts[rank]]
                    _move(layout, rank, begin, own, into, packs=True)
                count = _left(mine, begin, self.most_bytes)
            else:
                sent = _as_numbers(alone)
                pieces = [layout.pieces[rank] for rank in range(self.size)]
                counts = [
                    _left(of[0].nbytes, begin, self.most_bytes) // unit if of else 0
                    for of in pieces
                ]
                places = [(of[0].begin + begin) // unit if of else 0 for of in pieces]
                count = counts[self.rank] * unit
            row = -(-count // ALIGNED) * ALIGNED
            received = aligned_zeros(row * self.size, np.uint8)
            self.comm.Alltoallv(
                [sent, (counts, places)],
                [
                    _as_numbers(received.view(f"u{unit}")),
                    ([count // unit] * self.size, [row * r // unit for r in range(self.size)]),
                ],
            )
            rows = received.reshape(self.size, row)
            for piece, first, last in layout.within(self.rank, begin, begin + count):
                at = piece.offset + first - begin
                dtype = grads[piece.index][1].dtype
                parts = rows[:, at : at + last - first].view(dtype)
                into = sums[piece.index][first // dtype.itemsize : last // dtype.itemsize]
                _core.fold(into, list(parts), num_threads)


class Asked:
    """The exchange of one step: each rank says that it can take the step, or none does."""

    def __init__(self, wire: Wire, name: str, n_blocks: Sequence[int]) -> None:
        self._wire, self._name, self._n_blocks = wire, name, n_blocks
        self._told = False
        self.is_finite = True
        """Whether all gradients are, where somebody has asked for that."""

    def __call__(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return all ranks' sums of squares, or raise where one of them has failed."""
        self._told = True
        own = np.zeros(1 + self._n_blocks[self._wire.rank])
        # Where no norm is asked for, there are none; where all gradients were left out, too many.
        own[1 : 1 + sums.size] = sums[: own.size - 1]
        rows = self._exchange(own)
        self._wire.check_others(self._name, np.array([row[0] for row in rows]))
        everything = np.concatenate([*(row[1:] for row in rows), sums[own.size - 1 :]])
        with np.errstate(all="ignore"):
            self.is_finite = bool(np.isfinite(everything.sum()))
        return everything

    def give_up(self) -> None:
        """Tell the others that this rank cannot, where they still wait for it."""
        if self._told:
            return
        own = np.zeros(1 + self._n_blocks[self._wire.rank])
        own[0] = True
        self._exchange(own)
        self._wire.settle()

    def _exchange(self, own: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
        """Return what each rank has said: whether it has failed, and its sums."""
        counts = [1 + n for n in self._n_blocks]
        return np.split(self._wire.tell(own, counts), _places(counts)[1:])


def _places(counts: Sequence[int]) -> list[int]:
    """Return where each rank's part begins."""
    places = [0]
    for count in counts[:-1]:
        places.append(places[-1] + count)
    return places


def _left(nbytes: int, begin: int, most: int) -> int:
    """Return how many of so many bytes there are from here on, at most `most`."""
    return min(max(nbytes - begin, 0), most)


def _as_numbers(array: Flat) -> Flat:
    """Return an array as MPI knows one: of whole numbers of its size, as there is no bfloat16."""
    return array.view(f"u{array.itemsize}")


def _move(
    layout: Layout,
    rank: int,
    begin: int,
    arrays: Sequence[npt.NDArray[np.uint8]],
    buffer: npt.NDArray[np.uint8],
    *,
    packs: bool,
) -> None:
    """Copy a rank's bytes from `begin` on: from the arrays into a buffer, or back."""
    for piece, first, last in layout.within(rank, begin, begin + buffer.size):
        at = piece.offset + first - begin
        inside = arrays[piece.index][piece.begin + first : piece.begin + last]
        outside = buffer[at : at + last - first]
        if packs:
            outside[:] = inside
        else:
            inside[:] = outside
