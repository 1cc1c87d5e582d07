"""Communicators of threads, in mpi4py's spelling, for what is tested without MPI."""

from collections.abc import Callable, Sequence
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any, TypeVar

import numpy as np

_Result = TypeVar("_Result")
_TIMEOUT = 60.0
"""Seconds after which a rank that waits for the others gives up."""


class _Team:
    """What the ranks of a communicator share: a barrier, and a place for what each one gives."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=_TIMEOUT)
        self.given: list[Any] = [None] * size


class Communicator:
    """One rank of a communicator; `communicators` makes all of them.

    Counts and displacements are in elements of the buffer. As in MPI, a buffer that is written must
    not overlap one that is read, what is received must be as long as what was sent, and each rank
    calls the same functions in the same order.
    """

    def __init__(self, team: _Team, rank: int, size: int) -> None:
        self._team, self.rank, self.size = team, rank, size
        self.calls = 0  # collectives

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Barrier(self) -> None:
        self._swap("Barrier", None)

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        """Put every rank's buffer into rows of `recvbuf`."""
        own, rows = _flat(sendbuf), _flat(recvbuf)
        assert rows.size == own.size * self.size, "Allgather: the buffers have other sizes"
        assert not np.shares_memory(own, rows), "Allgather: a buffer is read and written"
        for rank, part in enumerate(self._swap("Allgather", own.copy())):
            rows[rank * own.size : (rank + 1) * own.size] = _same(part, own.size, rows)

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
        """Put every rank's part where `recvbuf` says; None as `sendbuf`: it is there already."""
        whole, counts, displs = _spread(recvbuf, self.size)
        begin, count = displs[self.rank], counts[self.rank]
        if sendbuf is None:
            own = whole[begin : begin + count]
        else:
            own, (n,), (first,) = _spread(sendbuf, 1)
            assert n == count, "Allgatherv: a rank sends another number than it says"
            own = own[first : first + n]
            assert not np.shares_memory(own, whole), "Allgatherv: a buffer is read and written"
        for rank, part in enumerate(self._swap("Allgatherv", own.copy())):
            begin, count = displs[rank], counts[rank]
            whole[begin : begin + count] = _same(part, count, whole)

    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None:
        """Send each rank its part of `sendbuf`."""
        own, counts, displs = _spread(sendbuf, self.size)
        into, into_counts, into_displs = _spread(recvbuf, self.size)
        assert not np.shares_memory(own, into), "Alltoallv: a buffer is read and written"
        parts = [own[d : d + c].copy() for c, d in zip(counts, displs, strict=True)]
        for rank, given in enumerate(self._swap("Alltoallv", parts)):
            begin, count = into_displs[rank], into_counts[rank]
            into[begin : begin + count] = _same(given[self.rank], count, into)

    def _swap(self, call: str, own: Any) -> list[Any]:
        """Return what all ranks give in this call."""
        self._team.given[self.rank] = (call, own)
        self._team.barrier.wait()
        given = list(self._team.given)
        self._team.barrier.wait()  # nobody writes the next call's before all have read
        self.calls += 1
        assert {name for name, _ in given} == {call}, f"the ranks are in {[n for n, _ in given]}"
        return [value for _, value in given]


class Interrupted:
    """A rank of a communicator that raises an error once it has sent `left` more messages."""

    def __init__(self, comm: Communicator, error: type[BaseException]) -> None:
        self._comm, self._error = comm, error
        self.rank, self.size = comm.rank, comm.size
        self.left: int | None = None  # without an end

    def Allgatherv(self, *buffers: Any) -> None:
        self._send(self._comm.Allgatherv, buffers)

    def Alltoallv(self, *buffers: Any) -> None:
        self._send(self._comm.Alltoallv, buffers)

    def _send(self, call: Callable[..., None], buffers: tuple[Any, ...]) -> None:
        call(*buffers)
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise self._error


def communicators(size: int) -> list[Communicator]:
    """Return the ranks of a communicator, one for each thread."""
    team = _Team(size)
    return [Communicator(team, rank, size) for rank in range(size)]


def on_ranks(size: int, body: Callable[[Communicator], _Result]) -> list[_Result]:
    """Return what `body` returns on each rank, or raise the first error of a rank."""
    results = outcomes(size, body)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error  # one that waits for a rank that has failed is not the cause
    return results  # type: ignore[return-value]


def outcomes(size: int, body: Callable[[Communicator], _Result]) -> list[_Result | BaseException]:
    """Return what `body` returns or raises on each rank. Where one ends, the others do not wait."""
    results: list[Any] = [None] * size
    ranks = communicators(size)
    barrier = ranks[0]._team.barrier

    def run(comm: Communicator) -> None:
        try:
            results[comm.rank] = body(comm)
        except BaseException as error:  # it is handed on
            results[comm.rank] = error
            if not _all_raise(error):
                barrier.abort()

    threads = [Thread(target=run, args=(comm,)) for comm in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _all_raise(error: BaseException) -> bool:
    """Return whether this is an error that our code has agreed on, so that nobody waits."""
    return isinstance(error, ValueError | TypeError)


def _flat(buffer: Any) -> np.ndarray:
    array = buffer[0] if isinstance(buffer, Sequence) else buffer
    assert array.flags.c_contiguous, "a buffer has gaps"
    assert array.dtype.kind in "biufc", f"MPI knows no {array.dtype}"
    return array.reshape(-1)


def _spread(buffer: Any, size: int) -> tuple[np.ndarray, list[int], list[int]]:
    """Return a flat buffer, its counts and displacements: one of each for every rank."""
    array = _flat(buffer)
    if not isinstance(buffer, Sequence):
        assert size == 1, "counts are missing"
        return array, [array.size], [0]
    _, spread, *_ = buffer
    counts, displs = spread if isinstance(spread, tuple) else (spread, None)
    counts = [counts] if isinstance(counts, int) else list(map(int, counts))
    if displs is None:
        displs = np.cumsum([0, *counts[:-1]]).tolist()
    displs = [displs] if isinstance(displs, int) else list(map(int, displs))
    assert len(counts) == len(displs) == size
    for count, begin in zip(counts, displs, strict=True):
        assert count >= 0
        assert count == 0 or 0 <= begin <= array.size - count, "a part is outside of its buffer"
        assert max(count, begin) < 2**31, "MPI's numbers are of 32 bits"
    return array, counts, displs


def _same(part: np.ndarray, count: int, into: np.ndarray) -> np.ndarray:
    assert part.size == count, f"a rank receives {count} elements where {part.size} were sent"
    assert part.dtype == into.dtype, f"a rank receives {into.dtype} where {part.dtype} was sent"
    return part


class Alone:
    """A communicator of one rank."""

    rank, size = 0, 1

    def Allgather(self, sendbuf, recvbuf):
        recvbuf[0] = sendbuf
