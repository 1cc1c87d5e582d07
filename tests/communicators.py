"""A communicator whose ranks are threads of this process, spelled as mpi4py's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np

PATIENCE = 30.0
"""Seconds after which a collective that a rank does not come to is an error."""


class _Shared:
    def __init__(self, size: int) -> None:
        self.barrier, self.given = Barrier(size, timeout=PATIENCE), [None] * size


class ThreadCommunicator:
    """One rank of it."""

    def __init__(self, shared: _Shared, rank: int) -> None:
        self._shared, self.rank = shared, rank
        self.size = len(shared.given)
        self.calls = 0

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:  # noqa: N802
        self.calls += 1
        self._shared.given[self.rank] = np.array(sendbuf)
        self._shared.barrier.wait()
        np.concatenate([np.ravel(one) for one in self._shared.given], out=recvbuf.reshape(-1))
        self._shared.barrier.wait()


def run_ranks(size: int, work: Callable[[ThreadCommunicator], Any]) -> list[Any]:
    """Call work(communicator) on each rank: what each returned, or the error that it raised."""
    shared = _Shared(size)

    def run(rank: int) -> Any:
        try:
            return work(ThreadCommunicator(shared, rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
