"""Who is timed in small calls, and what a program does right before them.

A pass over a network takes the caches from the code and the data of the step that follows. How
much of them it takes depends on the network, so there are several situations.
"""
# ruff: noqa: PLW2901 (`param -= ...` on an array writes into it, which is the point here)

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import full_step
from contenders import Kernel, Onepass, Step, Torch, torch_form
from onepass import optim, schedules
from onepass._memory import state_like
from onepass.lab.compare.losses import CrossEntropy
from onepass.lab.compare.network import Network
from timing import HOT, Situation
from workloads import Case, Workload


class Add:
    """`np.add` of the workload's only gradient to its only parameter: NumPy's own small call."""

    def __init__(self, workload: Workload) -> None:
        (param,), (grad,) = workload.weights(), workload.grads()
        self.step: Step = partial(np.add, param, grad, out=param)


class InPlace:
    """AdamW by someone who knows `out=`: 14 calls of NumPy for each array, and none allocates.

    The operations are the reference's, and so are the bits.
    """

    def __init__(self, case: Case, workload: Workload) -> None:
        defaults = {**case.cls.defaults, **case.settings}
        self.lr, self.eps, self.decay = (defaults[name] for name in ("lr", "eps", "weight_decay"))
        self.beta1, self.beta2 = defaults["betas"]
        self.params, self.grads = workload.weights(), workload.grads()
        self.averages, self.squares, self.spare, self.other = (
            [state_like(param) for param in self.params] for _ in range(4)
        )
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        lr, beta1, beta2 = self.lr, self.beta1, self.beta2
        step_size, inv_bias2 = lr / (1 - beta1**self.steps), 1 / (1 - beta2**self.steps)
        arrays = (self.params, self.grads, self.averages, self.squares, self.spare, self.other)
        for param, grad, average, square, spare, other in zip(*arrays, strict=True):
            param *= 1 - lr * self.decay
            average *= beta1
            np.multiply(grad, 1 - beta1, out=spare)
            average += spare
            square *= beta2
            np.multiply(grad, 1 - beta2, out=spare)
            spare *= grad
            square += spare
            np.multiply(square, inv_bias2, out=spare)
            np.sqrt(spare, out=spare)
            spare += self.eps
            np.multiply(average, step_size, out=other)
            other /= spare
            param -= other


def rivals(case: Case, workload: Workload) -> dict[str, Any]:
    """The contenders by name: the ways to call onepass, NumPy by hand, and PyTorch's two forms."""
    made = {
        "onepass": Onepass(case, workload),
        "bound": full_step.Onepass(case, workload, workload.grads()),
        "kernel": Kernel(case, workload),
    }
    if case.cls.checks["lr"].schedulable:
        lr = schedules.cosine(case.cls.defaults["lr"], steps=10**9)
        made["schedule"] = Onepass(case, workload, lr=lr)
    if len(workload.shapes) == 1:
        made["np.add"] = Add(workload)
    if case.cls is optim.AdamW:
        made["in place"] = InPlace(case, workload)
    if form := torch_form(case):
        made["torch"] = Torch(case, workload)
        if form != "foreach":
            made["foreach"] = Torch(case, workload, "foreach")
    return made


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

SITUATIONS_OF = {
    "1e3": tuple(SITUATIONS),
    "mlp": tuple(SITUATIONS),
    "1e5": ("matmul",),
    "1e6": ("matmul",),
}
"""In which situations each workload is timed."""
