"""Who is timed with arrays of fewer bits: the gradients, or a copy that the step writes."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

import contenders
from contenders import Step
from onepass._typing import Array
from workloads import Case, Workload

FORMATS = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


EXTRA_BYTES = {"gradients": -2, "copy": 2}
"""What they move of each element, beside a step in float32."""


class SmallGradients:
    """`opt.step(grads)`, the gradients in this format."""

    def __init__(self, case: Case, workload: Workload, dtype: Any) -> None:
        self.params = workload.weights()
        self.optimizer = case.cls(self.params, **case.settings)
        self.step: Step = partial(self.optimizer.step, [g.astype(dtype) for g in workload.grads()])


class Copying:
    """A step that writes the weights in this format too; or a step, and NumPy's copy after it."""

    def __init__(self, case: Case, workload: Workload, dtype: Any, *, afterwards: bool) -> None:
        self.params = workload.weights()
        self.copies: list[Array] = [np.zeros(p.shape, dtype) for p in self.params]
        given = {} if afterwards else {"copy_to": self.copies}
        self.optimizer = case.cls(self.params, **case.settings, **given)
        self.update = partial(self.optimizer.step, workload.grads())
        self.step: Step = self._step_and_copy if afterwards else self.update

    def _step_and_copy(self) -> None:
        self.update()
        for copy, param in zip(self.copies, self.params, strict=True):
            copy[...] = param


def rivals(case: Case, workload: Workload) -> dict[str, Any]:
    """The contenders by name: all of float32, each format, and PyTorch's optimizer in float32."""
    known = contenders.rivals(case)
    made: dict[str, Any] = {"onepass": known["onepass"](case, workload)}
    for name, dtype in FORMATS.items():
        made[f"{name} gradients"] = SmallGradients(case, workload, dtype)
        made[f"{name} copy"] = Copying(case, workload, dtype, afterwards=False)
    made["bf16 then copied"] = Copying(case, workload, FORMATS["bf16"], afterwards=True)
    if "torch" in known:
        made["torch"] = known["torch"](case, workload)
    return made
