"""What is used of a communicator: some of mpi4py's ``MPI.Comm``, and of any that is like it."""

from typing import Any, Protocol


class Ranks(Protocol):
    """Who takes part."""

    @property
    def rank(self) -> int:
        """Which of the processes this one is."""

    @property
    def size(self) -> int:
        """How many there are."""


class Gathers(Ranks, Protocol):
    """What `onepass.BatchNorm` takes."""

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> Any:  # noqa: N802
        """Put each rank's buffer into a row of `recvbuf`, on all ranks."""


class Shares(Ranks, Protocol):
    """What `onepass.shard` takes."""

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> Any:  # noqa: N802
        """Send each rank's buffer to all ranks; None: it is in its place in `recvbuf`."""

    def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> Any:  # noqa: N802
        """Send each rank a part of the buffer."""


def check_comm(comm: Any, *calls: str) -> None:
    """Raise where it is no communicator that has these calls."""
    for name in ("rank", "size", *calls):
        if not hasattr(comm, name):
            expected = f"a communicator like mpi4py's, with {name}"
            raise TypeError(f"comm: expected {expected}, got {type(comm).__name__}")
