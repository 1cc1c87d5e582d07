"""Who is timed with numbers of fewer bits, and the rulers of *those* bytes."""

from collections.abc import Iterable, Mapping
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from onepass._memory import aligned_zeros
from onepass._typing import Array
from onepass.lab.bench import contenders
from onepass.lab.bench.contenders import Step
from onepass.lab.bench.workloads import NUMPY_OFFSET, Case, Workload

DTYPES = {"float32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


class Format(NamedTuple):
    """How the numbers of a step are kept."""

    params: str = "float32"
    grads: str = "float32"
    state: str = "float32"
    rounding: str | None = None
    """Of parameters in fewer bits."""
    copied: Literal["bf16 copy", "NumPy's copy"] | None = None
    """By the step (`copy_to`), or after it."""

    @property
    def parameters(self) -> str:
        """What becomes of the parameters, in words."""
        rounded = f"{self.params}, {self.rounding}" if self.rounding else self.params
        return f"{rounded} + {self.copied}" if self.copied else rounded

    @property
    def settings(self) -> dict[str, str]:
        state = None if self.state == "float32" else self.state
        settings = {"rounding": self.rounding, "state_format": state}
        return {name: value for name, value in settings.items() if value}

    def __str__(self) -> str:
        return f"{self.parameters}; {self.grads} gradients; {self.state} state"


FLOAT32 = Format()
FORMATS = (
    FLOAT32,
    Format(grads="bf16"),
    Format(grads="f16"),
    Format(state="bf16"),
    Format(state="q8"),
    Format(grads="bf16", state="q8"),
    Format("bf16", "bf16", rounding="master"),
    Format("bf16", "bf16", rounding="stochastic"),
    Format("bf16", "bf16", "q8", rounding="stochastic"),
    Format(copied="bf16 copy"),
    Format(copied="NumPy's copy"),
)


class Onepass:
    """`opt.step(grads)` with numbers of this format."""

    def __init__(self, case: Case, workload: Workload, form: Format) -> None:
        self.params = stored(workload.weights(), form.params)
        self.grads = stored(workload.grads(), form.grads)
        self.copies = stored(self.params, "bf16") if form.copied else []
        given = {"copy_to": self.copies} if form.copied == "bf16 copy" else {}
        self.optimizer = case.cls(self.params, **case.settings, **form.settings, **given)
        self.update = partial(self.optimizer.step, self.grads)
        self.step: Step = self._step_and_copy if form.copied == "NumPy's copy" else self.update
        self.step()  # makes the state
        state = nbytes(self.optimizer.state_dict()["state"])
        # A step reads everything, and writes all but the gradients.
        moved = 2 * (nbytes(self.params) + state) + nbytes(self.grads) + nbytes(self.copies)
        self.bytes = {"moved": moved, "state": state}

    def _step_and_copy(self) -> None:
        self.update()
        for copy, param in zip(self.copies, self.params, strict=True):
            copy[...] = param


class CopyLimits:
    """Copy limits of all numbers of elements up to this, on the front of the same arrays."""

    def __init__(self, case: Case, size: int) -> None:
        self.param, self.grad = filled(size, 1), filled(size, 0)
        self.state = [filled(size, 1) if name else None for name in case.states]

    def of(self, size: int) -> SimpleNamespace:
        state = tuple(array if array is None else array[:size] for array in self.state)
        step = contenders.copy_limit([self.param[:size]], [self.grad[:size]], [state])
        return SimpleNamespace(step=step)


class BitsAndBytes:
    """Its class of the same name with 8-bit state, on parameters and gradients of float32."""

    def __init__(self, case: Case, workload: Workload) -> None:
        self.params = contenders.tensors(workload)
        settings = {"lr": case.cls.defaults["lr"], **case.settings}  # its SGD has no default
        self.step: Step = eight_bit(case)(self.params, **settings).step


def rivals(case: Case, workload: Workload) -> dict[str, Any]:
    """The contenders by name: each format and its copy limit; torch's float32, bitsandbytes."""
    differ = [form for form in FORMATS if case.n_small_states or form.state == "float32"]
    formats = [form for form in differ if case.accepts(form.settings)]
    ours = {str(form): Onepass(case, workload, form) for form in formats}
    float32 = 4 * case.arrays_moved
    sizes = {name: round(rival.bytes["moved"] / float32) for name, rival in ours.items()}
    limits = CopyLimits(case, max(sizes.values()))
    made: dict[str, Any] = {}
    for name, rival in ours.items():
        made |= {name: rival, f"copy limit of {name}": limits.of(sizes[name])}
    if contenders.torch_form(case):
        made["torch"] = contenders.Torch(case, workload)
    if eight_bit(case):
        made["bitsandbytes"] = BitsAndBytes(case, workload)
    return made


def stored(arrays: Iterable[Array], name: str) -> list[Array]:
    """Copies in this format, which begin where NumPy's own large arrays do."""
    copies = []
    for array in arrays:
        copy = aligned_zeros(array.size, DTYPES[name], offset=NUMPY_OFFSET).reshape(array.shape)
        copy[...] = array
        copies.append(copy)
    return copies


def filled(size: int, value: float) -> Array:
    """Real memory, because it is written to."""
    array = aligned_zeros(size, offset=NUMPY_OFFSET)
    array.fill(value)
    return array


def nbytes(tree: Any) -> int:
    """Of all arrays in it."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return sum(map(nbytes, tree))
    return tree.nbytes if isinstance(tree, np.ndarray) else 0


def eight_bit(case: Case) -> Any:
    """bitsandbytes' class for this case, if it has one that keeps state and knows the settings."""
    try:
        from bitsandbytes import optim  # late, as it takes seconds
    except ImportError:
        return None
    found = getattr(optim, f"{case.cls.__name__}8bit", None) if case.n_states else None
    knows_all = found and case.settings.keys() <= signature(found).parameters.keys()
    return found if knows_all else None
