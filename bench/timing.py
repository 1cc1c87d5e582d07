"""How it is timed: in one process, in turns, so that a noisy machine is noisy for everybody."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
class Block:
    """One contender's turn in a round."""

    step: Step
    calls: int  # per batch
    warm_up: int  # calls
    batches: int
    before: Step | None = None  # done before each batch, not timed

    @classmethod
    def plan(cls, step: Step, before: Step | None) -> "Block":
        """Fit a block to what a call costs, measured on the spot."""
        step()
        if before:
            calls, cost = 1, _timed(before, 1) + _timed(step, 1)
        else:
            cost = min(_timed(step, 1) for _ in range(2))
            calls = math.ceil(BATCH / cost)
        batches = min(max(int(BLOCK / (calls * cost)), 1), MOST_BATCHES)
        return cls(step, calls, math.ceil(WARM_UP / cost), batches, before)

    def run(self) -> float:
        """Seconds per call: the median batch."""
        time.sleep(PAUSE)
        for _ in self._repeat(self.warm_up):
            self.step()
        return median(_timed(self.step, self.calls) for _ in self._repeat(self.batches))

    def _repeat(self, times: int) -> Iterator[None]:
        for _ in range(times):
            if self.before:
                self.before()
            yield


def alternate(
    steps: Mapping[str, Step], seconds: float, before: Step | None = None
) -> dict[str, list[float]]:
    """Time the contenders in turns, and return each one's seconds per call, one a round.

    Every contender gets an equal part of the time, so the slow ones sit out the last rounds. The
    first one takes part in all of them. `before` stands for what a program does between two steps.
    """
    with _no_garbage_collection():
        blocks = {name: Block.plan(step, before) for name, step in steps.items()}
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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
