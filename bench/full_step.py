"""Who is timed in a whole training step: clip by norm, step, average, zero the gradients.

Each contender reads and zeroes the same gradients, which `before` fills again before every call,
as the backward pass of a training does.
"""

from functools import partial
from typing import Any

import numpy as np

from onepass import runtime
from onepass._typing import Array
from onepass.lab.bench.contenders import Step, torch, torch_form
from onepass.lab.bench.workloads import Case, Workload

MAX_NORM = 1.0
DECAY = 0.999
STAGES: dict[str, dict[str, Any]] = {
    "norm": {"max_grad_norm": MAX_NORM},
    "norm, spikes": {"max_grad_norm": MAX_NORM, "skip_grad_norm": 1e30},
    "value": {"max_grad_value": 0.02},
    "average": {"ema_decay": DECAY},
    "zeros": {"clear_grads": True},
}
ALL = STAGES["norm"] | STAGES["average"] | STAGES["zeros"]
EXTRA_ARRAYS = 6
"""What `ALL` moves beside the bare step, in arrays of float32: gradients for the norm, zeros, the
average, which is of float64, there and back."""


class Onepass:
    """One call, bound to its gradients."""

    def __init__(self, case: Case, workload: Workload, grads: list[Array], **options: Any) -> None:
        self.params = workload.weights()
        self.optimizer = case.cls(self.params, grads=grads, **case.settings, **options)
        self.step: Step = self.optimizer.step


class Torch:
    """A call for each: PyTorch's own loops over all tensors, and its fused or foreach optimizer."""

    def __init__(self, case: Case, workload: Workload, grads: list[Array]) -> None:
        torch.set_num_threads(runtime.get_num_threads())
        self.form = torch_form(case)
        self.params = [torch.from_numpy(w).requires_grad_() for w in workload.weights()]
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = torch.from_numpy(grad)
        self.values = [param.detach() for param in self.params]
        self.average = [value.clone() for value in self.values]
        self.grads = [param.grad for param in self.params]
        optimizer = getattr(torch.optim, case.cls.__name__)
        self.update = optimizer(self.params, **case.settings, **{self.form: True}).step

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)
        self.update()
        torch._foreach_lerp_(self.average, self.values, 1 - DECAY)
        torch._foreach_zero_(self.grads)


class Filling:
    """Fills the gradients again; it is itself not timed."""

    def __init__(self, workload: Workload) -> None:
        self.source, self.grads = workload.grads(), workload.grads()

    def __call__(self) -> None:
        for grad, values in zip(self.grads, self.source, strict=True):
            np.copyto(grad, values)


def rivals(case: Case, workload: Workload) -> dict[str, Any]:
    """The contenders by name: no stage, each alone, and all, by onepass and by PyTorch."""
    fill = Filling(workload)
    make = partial(Onepass, case, workload, fill.grads)
    made: dict[str, Any] = {"onepass": make(**ALL), "bare": make()}
    made |= {name: make(**options) for name, options in STAGES.items()}
    if torch_form(case):
        made["torch"] = Torch(case, workload, fill.grads)
    made["onepass"].before = fill
    return made
