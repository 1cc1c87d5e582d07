"""What the ranks of a communicator tell each other in a layer's pass: one small collective."""

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._communicator import Gathers
from onepass.batchnorm.pieces import GradientSums, Moments, batch_norm_merge


class Exchange:
    """A pass in which all ranks take part, also the one that fails before it has sums to give.

    A context manager. Within it, a call gives this rank's sums and returns those of all ranks.
    Where an error comes before that call, leaving the block tells the others, and they raise too.
    """

    def __init__(
        self, comm: Gathers, kind: type[Moments] | type[GradientSums], channels: int
    ) -> None:
        self._comm, self._kind, self._channels = comm, kind, channels
        self._joined = False

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if not self._joined:
            arrays = 3 if self._kind is Moments else 2
            self._gather(np.zeros(2 + arrays * self._channels))

    def __call__(self, count: int, *sums: npt.NDArray[np.float64]) -> Any:
        rows = self._gather(np.concatenate([(1.0, count), *sums]))
        failed = np.flatnonzero(rows[:, 0] == 0)
        if failed.size:
            ranks = ", ".join(map(str, failed))
            raise RuntimeError(
                "comm: expected every rank to take part, got an error before that on rank "
                f"{ranks}; here nothing has changed"
            )
        pieces: Any = [
            self._kind(int(row[1]), *row[2:].reshape(-1, self._channels)) for row in rows
        ]
        whole: Any = batch_norm_merge(pieces)
        if self._kind is Moments and whole.count <= 1:
            raise ValueError(
                "x: expected more than one value per channel on all ranks together, "
                f"got {whole.count}"
            )
        return tuple(whole)

    def _gather(self, row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        self._joined = True
        rows = np.empty((self._comm.size, row.size))
        self._comm.Allgather(row, rows)
        return rows
