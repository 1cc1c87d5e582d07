"""What a program does right before the calls that are timed.

A pass over a network takes the caches from the code and the data of the step that follows. How
much of them it takes depends on the network, so there are several situations.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from onepass.lab.bench.timing import HOT, Situation, Step
from onepass.lab.compare.losses import CrossEntropy
from onepass.lab.compare.network import Network


def small_pass() -> Step:
    """Forward and backward of `onepass compare`'s network on digits, in half a millisecond.

    It touches less than 0.5 MB, so a core's second cache still has most of what a step needs.
    """
    rng = np.random.default_rng(3)
    network = Network((64, 128, 64, 10), rng, CrossEntropy())
    inputs, labels = rng.standard_normal((64, 64), np.float32), rng.integers(10, size=64)
    return partial(network.loss_and_grad, inputs, labels)


def matmul() -> Step:
    """A product of 1024x1024, of which a layer of 1,024 units has three: 12 MB, 20 ms of one core.

    OpenBLAS copies panels of its matrices that fill the second cache, and it runs for so long that
    what a core keeps of Python's code, of pages and of branches is gone, too. Its threads look for
    more work for a while, and hold the cores.
    """
    a = np.ones((1024, 1024), np.float32)
    return partial(np.matmul, a, a, out=np.empty_like(a))


def sweep() -> Step:
    """Read 64 MB, as a pass over a large network does: more than the last cache holds.

    It is a small loop, so what a core keeps apart from the data (branches, decoded code) stays.
    """
    return np.ones(16 * 2**20, np.float32).sum


SITUATIONS: dict[str, Callable[[], Situation]] = {
    "hot": lambda: HOT,
    "awake": lambda: Situation(matmul()),
    "pass": lambda: Situation(small_pass(), hot=False),
    "matmul": lambda: Situation(matmul(), hot=False),
    "sweep": lambda: Situation(sweep(), hot=False),
}
"""By name. In the first two a call comes after others, in "awake" while NumPy's threads still look
for work; in the others right after what the name says."""
