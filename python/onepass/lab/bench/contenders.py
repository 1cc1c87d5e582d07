"""Who is timed: onepass, and the rulers it is held against, each on arrays of its own.

A contender is built from a case and a workload; its `step` takes no argument and does one update.
"""
# ruff: noqa: PLW2901 (`param -= ...` on an array writes into it, which is the point here)

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from onepass import _core, kernels, runtime
from onepass._memory import state_like
from onepass._typing import Array
from onepass.lab.bench.timing import Step
from onepass.lab.bench.workloads import Case, Workload

try:
    import torch as _torch
except ImportError:
    _torch = None
torch: Any = _torch
"""PyTorch, None where it is not installed."""

PLAIN = "plain"
"""What a class of PyTorch's is called that has one form only."""


def fresh_state(case: Case, param: Array) -> list[Array | None]:
    """The rule's state before the first step, where the optimizer would put it; and its memory."""
    row = case.cls.row
    settings = {**case.cls.defaults, **case.settings}
    shapes = row.state_shapes(settings, param.shape)
    arrays = [
        None if shape is None else state_like(param, start, shape=shape)
        for shape, start in zip(shapes, row.start_values(settings), strict=True)
    ]
    return arrays + [np.array(start) for start in case.cls.memory_start().values()]


class Onepass:
    """`opt.step(grads)`, as a user calls it."""

    def __init__(self, case: Case, workload: Workload, **options: Any) -> None:
        self.params = workload.weights()
        self.optimizer = case.cls(self.params, **case.settings, **options)
        self.step: Step = partial(self.optimizer.step, workload.grads())


class Kernel:
    """`onepass.kernels.<rule>` on the workload's array, or on lists of its arrays."""

    def __init__(self, case: Case, workload: Workload) -> None:
        self.params = workload.weights()
        states = zip(*(fresh_state(case, param) for param in self.params), strict=True)
        arrays: list[Any] = [self.params, workload.grads(), *states]
        if len(self.params) == 1:
            arrays = [array for (array,) in arrays]
        else:
            arrays = [None if all(a is None for a in kind) else list(kind) for kind in arrays]
            if case.cls.row.sums_over_all:  # what is remembered is one for all
                n = len(case.cls.row.memory)
                arrays[-n:] = [of_all[0] for of_all in arrays[-n:]]
        kernel = getattr(kernels, case.cls.rule)
        self.step: Step = partial(kernel, *arrays, step=1, **case.settings)


class CopyLimit:
    """The same bytes read and written, and nothing computed."""

    def __init__(self, case: Case, workload: Workload) -> None:
        self.params = workload.weights()
        # Zeros, so that the values stay what they are; written once, so that they are real memory.
        grads = [np.multiply(grad, 0, out=grad) for grad in workload.grads()]
        states = [
            tuple(state_like(param, 1.0) if like else None for like in case.like_param(param.shape))
            for param in self.params
        ]
        arrays = list(zip(self.params, grads, *zip(*states, strict=True), strict=True))
        reads = [
            [[array for array, reads in zip(own, which, strict=True) if reads] for own in arrays]
            for which in case.passes_before(max(len(shape) for shape in workload.shapes))
        ]
        self.step = copy_limit(self.params, grads, states, reads)


def copy_limit(
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[tuple[Array | None, ...]],
    reads: Sequence[list[list[Array]]] = (),
) -> Step:
    """Read all and write all but the gradients; with gradients of zero the values stay.

    `reads`: of passes before that, the arrays that each reads of each parameter.
    """
    kept = [[array for array in state if array is not None] for state in states]
    ruler = _core.CopyLimit(list(params), list(grads), kept, list(reads))
    return partial(ruler.run, runtime.get_num_threads())


class NumPy:
    """The class's NumPy reference, its results written back into the arrays."""

    def __init__(self, case: Case, workload: Workload) -> None:
        self.params, self.grads = workload.weights(), workload.grads()
        self.states = [fresh_state(case, param) for param in self.params]
        self.steps = 0
        self._reference: Any = partial(case.cls.reference_step, **case.settings)

    def step(self) -> None:
        self.steps += 1
        for param, grad, state in zip(self.params, self.grads, self.states, strict=True):
            new = self._reference(param, grad, *state, step=self.steps)
            for array, values in zip([param, *state], new, strict=True):
                if array is not None:
                    np.copyto(array, values)


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


class Torch:
    """PyTorch's class of the same name, in the form that is named, or in its fastest."""

    def __init__(self, case: Case, workload: Workload, form: str | None = None) -> None:
        self.params = tensors(workload)
        self.form = form or torch_form(case)
        optimizer = getattr(torch.optim, case.cls.__name__)
        form_: dict[str, Any] = {} if self.form == PLAIN else {str(self.form): True}
        self.step: Step = optimizer(self.params, **case.settings, **form_).step


def tensors(workload: Workload) -> list[Any]:
    """PyTorch's parameters with their gradients, for as many threads as onepass has.

    They share the memory of NumPy's arrays, as those of a program that computes with NumPy would.
    """
    torch.set_num_threads(runtime.get_num_threads())
    params = [torch.from_numpy(w).requires_grad_() for w in workload.weights()]
    for param, grad in zip(params, workload.grads(), strict=True):
        param.grad = torch.from_numpy(grad)
    return params


def torch_form(case: Case) -> str | None:
    """The fastest form that PyTorch has of this case on a CPU; None where it has none."""
    optimizer = getattr(torch, "optim", None) and getattr(torch.optim, case.cls.__name__, None)
    if optimizer is None:
        return None
    if "foreach" not in inspect.signature(optimizer.__init__).parameters:
        return PLAIN
    probe = torch.zeros(1, requires_grad=True)
    probe.grad = torch.ones(1)
    for form in ("fused", "foreach"):
        try:
            optimizer([probe], **case.settings, **{form: True}).step()
        except (TypeError, RuntimeError):
            continue
        return form
    return None


def rivals(case: Case) -> dict[str, Callable[[Case, Workload], Any]]:
    """The contenders of a step, onepass first, by the name of their column."""
    chosen: dict[str, Callable[[Case, Workload], Any]] = {
        "onepass": Onepass,
        "copy limit": CopyLimit,
        "NumPy": NumPy,
    }
    return {**chosen, "torch": Torch} if torch_form(case) else chosen
