"""Which rank has which part of each parameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onepass.formats import BLOCK as _Q8_BLOCK

BLOCK = 16384
"""Elements of which the engine sums up the squares (`norm_block` in cpp/src/pieces.hpp)."""

Kind = Literal["elements", "codes", "scales"]
"""What an array has for the elements of its parameter: as many of its own, or 8-bit codes of whole
blocks, or one scale for each block."""


def _divide_up(count: int, unit: int) -> int:
    return -(-count // unit)


@dataclass(frozen=True)
class Cut:
    """Parameters of these sizes, their blocks shared out over so many ranks, in order."""

    sizes: tuple[int, ...]
    ranks: int

    @cached_property
    def _begins(self) -> npt.NDArray[np.int64]:
        """Where each rank begins in each parameter; behind the last one stand the sizes."""
        sizes = np.array(self.sizes, np.int64)
        ends = np.cumsum(-(-sizes // BLOCK))
        total = int(ends[-1])
        firsts = np.array([total * rank // self.ranks for rank in range(self.ranks + 1)])
        before = np.concatenate([[0], ends[:-1]])
        begins: npt.NDArray[np.int64] = np.clip((firsts[:, None] - before) * BLOCK, 0, sizes)
        return begins

    def part(self, rank: int, param: int, kind: Kind = "elements") -> slice:
        """Return what a rank has of a parameter, or of its 8-bit codes or their scales."""
        begin, end = int(self._begins[rank, param]), int(self._begins[rank + 1, param])
        if kind == "elements":
            return slice(begin, end)
        begin, end = (_divide_up(place, _Q8_BLOCK) for place in (begin, end))
        unit = _Q8_BLOCK if kind == "codes" else 1
        return slice(begin * unit, end * unit)

    def n_blocks(self, params: Sequence[int]) -> list[int]:
        """Return how many blocks of these parameters each rank has."""
        counts: list[int] = self._blocks[:, list(params)].sum(axis=1).tolist()
        return counts

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        blocks: npt.NDArray[np.int64] = -(-np.diff(self._begins, axis=0) // BLOCK)
        return blocks


@dataclass(frozen=True)
class Piece:
    """A rank's part of the `index`-th of some arrays, and where it stands among its bytes."""

    index: int
    begin: int
    """The first byte in the array."""
    offset: int
    nbytes: int


ALIGNED = 64
"""Pieces begin at multiples of so many bytes, so that all dtypes may be read where they stand."""


class Layout:
    """The bytes that each rank has of some arrays: its pieces, one after the other."""

    def __init__(self, cut: Cut, arrays: Sequence[tuple[int, Kind, int]]) -> None:
        self.pieces: list[list[Piece]] = []
        self.nbytes: list[int] = []
        for rank in range(cut.ranks):
            pieces, offset = [], 0
            for index, (param, kind, itemsize) in enumerate(arrays):
                part = cut.part(rank, param, kind)
                nbytes = (part.stop - part.start) * itemsize
                if nbytes > 0:
                    pieces.append(Piece(index, part.start * itemsize, offset, nbytes))
                    offset += _divide_up(nbytes, ALIGNED) * ALIGNED
            self.pieces.append(pieces)
            self.nbytes.append(offset)

    def within(self, rank: int, begin: int, end: int) -> "list[tuple[Piece, int, int]]":
        """Return the pieces that have some of these bytes of a rank, and which of their own."""
        found = []
        for piece in self.pieces[rank]:
            first = max(begin - piece.offset, 0)
            last = min(end - piece.offset, piece.nbytes)
            if first < last:
                found.append((piece, first, last))
        return found


def octets(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return a flat array's bytes."""
    return array.view(np.uint8)
