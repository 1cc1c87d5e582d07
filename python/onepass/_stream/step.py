"""One step of a stream: its gradients, its norm, and what becomes of a chunk."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onepass import _core, kernels
from onepass._hyperparameters import Fixed
from onepass._stream.arguments import NOT_HERE, Source
from onepass._stream.file import Progress, StreamFile
from onepass._typing import Array
from onepass.optim import Optimizer, StepInfo
from onepass.optim._maker import AVERAGE, SLOW
from onepass.optim._reference import clip_coefficient
from onepass.optim._settings import DEFAULTS, GRAD_SCALE


@dataclass
class Opened:
    """What a stream's file says, and how far it is."""

    cls: type[Optimizer]
    settings: dict[str, Any]
    dtype: np.dtype[Any]
    size: int
    chunk: int
    """Parameters of a chunk."""
    file: StreamFile
    progress: Progress


class Step:
    """What a step needs to know for each chunk."""

    def __init__(
        self,
        stream: Opened,
        values: Mapping[str, Any],
        grads: Source,
        grad_scale: float,
        num_threads: int | None,
    ) -> None:
        self.stream, self.values, self.grads = stream, values, grads
        self.grad_scale: float = GRAD_SCALE("grad_scale", grad_scale)
        self.num_threads = num_threads
        if num_threads is not None:
            _core.check_num_threads(num_threads)
        self.left = set(range(stream.file.n_chunks))
        self.memory = list(stream.progress.memory)
        self.info: StepInfo | None = None
        self.norm: float | None = None
        self.is_finite = True
        self._measure()
        max_norm = values["max_grad_norm"]
        self.clipped = max_norm is not None and clip_coefficient(self.norm or 0.0, max_norm) < 1

    def _measure(self) -> None:
        """Check gradients that are given as an array, and take their norm where it is needed."""
        values, stream = self.values, self.stream
        by_norm = ("max_grad_norm", "skip_grad_norm", "nonfinite")
        needed = [name for name in by_norm if values[name] != DEFAULTS[name]]
        if callable(self.grads):
            for name in needed:
                expected = "its default where a function has the gradients"
                raise ValueError(f"{name}: expected {expected}, got {values[name]!r}")
            return
        grads = self.grads
        if not isinstance(grads, np.ndarray):
            got = type(grads).__name__
            raise TypeError(f"grads: expected a flat NumPy array or a function, got {got}")
        if grads.shape != (stream.size,):
            raise ValueError(f"grads: expected shape ({stream.size},), got {grads.shape}")
        if values["clear_grads"] and not grads.flags.writeable:
            raise ValueError("grads: expected a writable array, got a read-only one")
        if not grads.flags.c_contiguous:
            raise ValueError(f"grads: expected contiguous elements, got strides {grads.strides}")
        like = np.zeros(1, stream.dtype)
        if not needed:
            _core.grad_norm(grads[:0], like)  # for its dtype
            return
        norm, self.is_finite = _core.grad_norm(grads, like, self.num_threads)
        self.norm = norm / self.grad_scale

    def skipped(self) -> StepInfo | None:
        """Return what a step reports that is left out; raise where that is asked for."""
        reason = self._reason_to_skip()
        if reason is None:
            return None
        if self.values["clear_grads"] and isinstance(self.grads, np.ndarray):
            self.grads.fill(0)
        now = self.stream
        skipped = replace(now.progress, skipped=now.progress.skipped + 1)
        now.progress = now.file.write_progress(skipped)
        return StepInfo(
            skipped.completed, self.values["lr"], self.norm, skipped=True, skip_reason=reason
        )

    def _reason_to_skip(self) -> Literal["nonfinite", "grad_norm"] | None:
        limit, nonfinite = self.values["skip_grad_norm"], self.values["nonfinite"]
        if self.is_finite:
            is_above = limit is not None and self.norm is not None and self.norm > limit
            return "grad_norm" if is_above else None
        if nonfinite == "raise":
            raise ValueError("grads: expected finite values, got an infinity or NaN")
        return None if nonfinite == "propagate" and limit is None else "nonfinite"

    def finish(self, other: "Step") -> None:
        """Step what is left of a step, or raise where this is another one."""
        if self.values != other.values or self.grad_scale != other.grad_scale:
            raise ValueError(
                "settings: expected those of the step that is not finished, got others"
            )
        self.left, self.info, self.memory = other.left, other.info, other.memory

    def change(self, chunk: int, data: npt.NDArray[np.uint8]) -> None:
        """Step a chunk, in its buffer."""
        stream, values = self.stream, self.values
        file, cls = stream.file, stream.cls
        step = stream.progress.completed + 1
        file.check_chunk(data, chunk, stream.progress.completed)
        arrays = file.layout(chunk).arrays(data)
        param = arrays["param"]
        begin = chunk * stream.chunk
        grad = self._gradient(begin, param)
        memory = [np.array([number]) for number in stream.progress.memory]
        options: dict[str, Any] = {}
        if self.norm is not None and values["max_grad_norm"] is not None:
            options = {"max_grad_norm": values["max_grad_norm"], "grad_norm": self.norm}
            if np.isnan(self.norm):  # which makes all gradients NaN
                grad, options = _spoilt(grad, values["clear_grads"]), {}
        stages = {name: values[name] for name in kernels._STAGES if name != NOT_HERE}
        own = {n: values[n] for n, check in cls.checks.items() if not isinstance(check, Fixed)}
        kernel: Any = getattr(kernels, cls.rule)
        info = kernel(
            param,
            grad,
            *(arrays.get(name) for name in cls.row.states),
            *memory,
            step=step,
            average=arrays.get(AVERAGE),
            slow=arrays.get(SLOW),
            rounding=values["rounding"],
            seed=(values["seed"] + chunk) % 2**53,
            grad_scale=self.grad_scale,
            clear_grads=values["clear_grads"],
            num_threads=self.num_threads,
            **own,
            **stages,
            **options,
        )
        file.write_chunk_head(data, chunk, step)
        self.info, self.memory = info, [number.item() for number in memory]

    def _gradient(self, begin: int, param: Array) -> Array:
        grads, end = self.grads, begin + param.size
        if not callable(grads):
            return grads[begin:end]
        part = _core.readable("grads", grads(begin, end), param)
        if part.shape != param.shape:
            raise ValueError(f"grads: expected shape {param.shape}, got {part.shape}")
        return part


def _spoilt(grad: Array, clear: bool) -> Array:
    """Return a gradient of NaN in the place of one, which is used up by that."""
    spoilt = np.full(grad.shape, np.nan, grad.dtype)
    if clear:
        grad.fill(0)
    return spoilt
