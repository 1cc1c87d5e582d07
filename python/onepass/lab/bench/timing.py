"""How it is timed: in one process, in turns, so that a noisy machine is noisy for everybody."""

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import median
from typing import Any

Step = Callable[[], Any]

PAUSE = 0.03  # s; libgomp's workers, which are torch's, spin on after a region, in another's turn
WARM_UP = 0.001  # s at least, and one call at least
BATCH = 0.0001  # s at least; calls are timed in batches that the clock can resolve
BLOCK = 0.05  # s that the batches of a block may take together ...
MOST_BATCHES = 20  # ... of which more than this many are not needed
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Situation:
    """What a program does before calls that are timed, itself not timed."""

    before: Step | None = None
    hot: bool = True  # many calls at a time, after others; else one, right after `before`

    def prepare(self, step: Step, calls: int) -> None:
        if self.before:
            self.before()
            if self.hot:
                _timed(step, calls)


HOT = Situation()


@dataclass(frozen=True)
class Block:
    """One contender's turn in a round."""

    step: Step
    prepare: Step  # before each batch
    calls: int  # per batch
    warm_up: int  # calls
    batches: int

    @classmethod
    def plan(cls, step: Step, situation: Situation) -> "Block":
        """Fit a block to what a call costs, measured on the spot."""
        step()
        cost = min(_timed(step, 1) for _ in range(2))
        calls = math.ceil(BATCH / cost) if situation.hot else 1
        prepare = partial(situation.prepare, step, calls)
        beside = _timed(prepare, 1)
        batches = min(max(int(BLOCK / (beside + calls * cost)), 1), MOST_BATCHES)
        return cls(step, prepare, calls, math.ceil(WARM_UP / (beside + cost)), batches)

    def run(self) -> float:
        """Seconds per call: the median batch."""
        time.sleep(PAUSE)
        for _ in range(self.warm_up):
            self.prepare()
            self.step()
        return median(self._batch() for _ in range(self.batches))

    def _batch(self) -> float:
        self.prepare()
        return _timed(self.step, self.calls)


def alternate(
    steps: Mapping[str, Step], seconds: float, situation: Situation = HOT
) -> dict[str, list[float]]:
    """Time the contenders in turns, and return each one's seconds per call, one a round.

    Every contender gets an equal part of the time, so the slow ones sit out the last rounds. The
    first one takes part in all of them.
    """
    _keep_freed_memory()
    with _no_garbage_collection():
        blocks = {name: Block.plan(step, situation) for name, step in steps.items()}
        rounds = {}
        for name, block in blocks.items():
            start = time.perf_counter()
            block.run()  # not counted: what it costs says how many of them the time holds
            cost = time.perf_counter() - start
            rounds[name] = max(FEWEST_ROUNDS, int(seconds / len(blocks) / cost))
        first, *_ = blocks
        rounds[first] = max(rounds.values())
        results: dict[str, list[float]] = {name: [] for name in blocks}
        for number in range(rounds[first]):
            for name, block in blocks.items():
                if number < rounds[name]:
                    results[name].append(block.run())
    return results


def _timed(step: Step, calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in repeat(None, calls):
        step()
    return (time.perf_counter() - start) / calls


def _keep_freed_memory() -> None:
    """Spare who allocates results the fresh pages that glibc may fetch for them in every call.

    By default it keeps them only after the program has freed a larger array, so that a figure would
    depend on what ran before: the same line of NumPy took 15 ms on a million numbers, and then 2.6.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_trim_threshold, -1)
        mallopt(m_mmap_max, 0)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
