"""Who is timed in small calls, and in which situations."""

from functools import partial
from typing import Any

import numpy as np

import full_step
from onepass import optim, schedules
from onepass.lab.bench.contenders import InPlace, Kernel, Onepass, Step, Torch, torch_form
from onepass.lab.bench.situations import SITUATIONS
from onepass.lab.bench.workloads import Case, Workload


class Add:
    """`np.add` of the workload's only gradient to its only parameter: NumPy's own small call."""

    def __init__(self, workload: Workload) -> None:
        (param,), (grad,) = workload.weights(), workload.grads()
        self.step: Step = partial(np.add, param, grad, out=param)


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


SITUATIONS_OF = {
    "1e3": tuple(SITUATIONS),
    "mlp": tuple(SITUATIONS),
    "1e5": ("matmul",),
    "1e6": ("matmul",),
}
"""In which situations each workload is timed."""
