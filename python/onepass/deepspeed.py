"""DeepSpeed's optimizers for the CPU, with our step: there is nothing to compile.

`DeepSpeedCPUAdam`, `DeepSpeedCPUAdagrad` and `DeepSpeedCPULion` call operations that DeepSpeed
compiles on the user's machine. `install` puts ours in their place; the classes, which ZeRO-Offload
insists on, stay DeepSpeed's.

>>> import torch, onepass.deepspeed
>>> onepass.deepspeed.install()
>>> from deepspeed.ops.adam import DeepSpeedCPUAdam
>>> weights = torch.nn.Parameter(torch.zeros(3))
>>> opt = DeepSpeedCPUAdam([weights], lr=0.5)
>>> weights.grad = torch.ones(3)
>>> opt.step()
>>> weights.tolist()
[-0.5, -0.5, -0.5]
>>> onepass.deepspeed.uninstall()
"""

from onepass._extras import require

require("deepspeed", deepspeed="deepspeed")

from collections.abc import Callable, Sequence  # noqa: E402
from functools import cache  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import torch  # noqa: E402
from deepspeed.ops import op_builder  # noqa: E402
from torch import Tensor  # noqa: E402

from onepass import _capi, optim  # noqa: E402
from onepass.torch import _tensors  # noqa: E402

__all__ = ["install", "uninstall"]


def install() -> None:
    """Let DeepSpeed's optimizers that are made from now on, in this process, step by our kernels.

    Call it before `deepspeed.initialize`. Without DeepSpeed, ``import onepass.deepspeed`` raises
    MissingExtraError, an ImportError that names the `pip install`.
    """
    for name, kind in _KINDS.items():
        builder = getattr(op_builder, name)
        if not isinstance(builder.load, _Load):
            builder.load = _Load(kind, builder)


def uninstall() -> None:
    """Let DeepSpeed's optimizers that are made from now on step by DeepSpeed's own operations."""
    for name in _KINDS:
        builder = getattr(op_builder, name)
        if isinstance(builder.load, _Load):
            builder.load = builder.load.theirs


class _Kind(NamedTuple):
    """What one of DeepSpeed's operations is called with."""

    name: str
    cls: type[optim.Optimizer]
    settings: tuple[str, ...]
    tensors: tuple[str, ...]


_BETAS = ("lr", "beta1", "beta2")
_KINDS = {
    "CPUAdamBuilder": _Kind(
        "adam",
        optim.AdamW,
        (*_BETAS, "eps", "weight_decay", "bias_correction"),
        ("params", "grads", "exp_avg", "exp_avg_sq"),
    ),
    "CPUAdagradBuilder": _Kind(
        "adagrad",
        optim.Adagrad,
        ("lr", "eps", "weight_decay"),
        ("params", "grads", "exp_avg_sq"),
    ),
    "CPULionBuilder": _Kind(
        "lion", optim.Lion, (*_BETAS, "weight_decay"), ("params", "grads", "exp_avg")
    ),
}
_ADAMW_MODE = 5
"""The place of Adam's mode among the settings that it is created with."""
_GRAD = 1
"""The place of the gradient among the tensors."""
_CHUNK = 1 << 18
"""Elements that are taken back at a time, in double."""
_ROW = ("size", "steps", "param", "grad", "state", "format", "grad_format", "state_format")
"""What a step writes into the table of C."""


class _Load:
    """A builder's `load`, which builds nothing."""

    def __init__(self, kind: _Kind, builder: Any) -> None:
        self.theirs = theirs = builder.load
        self._operation = _Operation(kind, lambda: theirs(builder()))

    def __call__(self, *_: Any, **__: Any) -> "_Operation":
        return self._operation


class _Operation:
    """Functions that step a tensor, under the names that those have that DeepSpeed compiles.

    An optimizer is a number to them. What ours lack is theirs, compiled when it is first wanted:
    state in float16, and the process of its own in which ZenFlow steps.
    """

    def __init__(self, kind: _Kind, load: Callable[[], Any]) -> None:
        self._kind, self._load = kind, load
        self._created: dict[int, tuple[Any, ...]] = {}
        self._steps: dict[int, _Step] = {}
        self._theirs: Any = None
        self._created_there: set[int] = set()
        ours: dict[str, Callable[..., int]] = {
            f"create_{kind.name}": self._create,
            f"{kind.name}_update": self._update,
            f"destroy_{kind.name}": self._destroy,
        }
        vars(self).update(ours)
        if kind.cls is optim.AdamW:
            self.adam_rollback = self._rollback

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._build(), name)

    def _build(self) -> Any:
        """Return theirs, which is told of the same optimizers."""
        if self._theirs is None:
            self._theirs = self._load()
        for number in self._created.keys() - self._created_there:
            getattr(self._theirs, f"create_{self._kind.name}")(number, *self._created[number])
            self._created_there.add(number)
        return self._theirs

    def _create(self, number: int, *settings: Any) -> int:
        self._destroy(number)
        is_plain_adam = self._kind.cls is optim.AdamW and not settings[_ADAMW_MODE]
        kind = self._kind._replace(cls=optim.Adam) if is_plain_adam else self._kind
        self._steps[number] = _Step(kind)
        self._created[number] = settings
        return 0

    def _destroy(self, number: int) -> int:
        self._steps.pop(number, None)
        self._created.pop(number, None)
        if number in self._created_there:
            self._created_there.remove(number)
            getattr(self._theirs, f"destroy_{self._kind.name}")(number)
        return 0

    def _update(self, number: int, step: int, *arguments: Any) -> int:
        n = len(self._kind.settings)
        try:
            self._steps[number].run(step, arguments[:n], arguments[n:])
        except _NotOurs as error:
            try:
                theirs = self._build()
            except Exception as failure:
                raise TypeError(f"{error} (DeepSpeed's own operation did not build)") from failure
            getattr(theirs, f"{self._kind.name}_update")(number, step, *arguments)
        return 0

    def _rollback(self, number: int, step: int, *arguments: Any) -> int:
        n = len(self._kind.settings)
        _roll_back(self._steps[number].kind.cls, step, arguments[:n], arguments[n:])
        return 0


class _NotOurs(TypeError):  # noqa: N818
    """A tensor is of a dtype that the kernels do not take."""


class _Step:
    """The step of one optimizer, one tensor at a time."""

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self._step = _capi.Step(kind.cls, 1, [kind.name])
        self._step.tensors["nearest"] = True  # 16-bit weights, as DeepSpeed has them
        self._row = self._step.tensors[list(_ROW)]
        self._numbers: tuple[float, ...] = ()
        self._last_step = 0

    def run(self, step: int, settings: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        """Take a step, or raise what is wrong, which has changed nothing."""
        size, formats = _check(self.kind.tensors, tensors)
        if not size:
            return
        numbers = tuple(map(float, settings))
        if numbers != self._numbers:
            self._set(numbers)
        pieces = [tensor.contiguous() for tensor in tensors]
        param, grad, *states = (piece.data_ptr() for piece in pieces)
        states += [0] * (_capi.MOST_STATES - len(states))
        self._row[0] = size, step - 1, param, grad, tuple(states), *formats
        call = self._step.call
        call.threads = torch.get_num_threads()
        # State in bfloat16 is rounded at random: by a seed for each tensor of an optimizer's step.
        call.seed = call.seed + 1 if step == self._last_step else 0
        self._last_step = step
        try:
            self._step.run()
        except _capi.Overlap:
            result = self._step.result
            one, other = map(self._name, (result.array, result.other_array))
            error = f"{one}: expected memory of its own, got the same memory as {other}"
            raise ValueError(error) from None
        _give_back(tensors, pieces)

    def _name(self, array: int) -> str:
        """Return what DeepSpeed calls an array, by the number that C has for it."""
        place = array - 1 if array < _capi.FIRST_STATE else array - _capi.FIRST_STATE + 2
        return self.kind.tensors[place]

    def _set(self, numbers: tuple[float, ...]) -> None:
        values: dict[str, Any] = dict(zip(self.kind.settings, numbers, strict=True))
        if "beta1" in values:
            values["betas"] = values.pop("beta1"), values.pop("beta2")
        if "bias_correction" in values:
            values["bias_correction"] = bool(values["bias_correction"])
        for name, value in values.items():
            self.kind.cls.group_checks[name](name, value)
        self._numbers = ()
        self._step.set(0, values)
        self._numbers = numbers


def _check(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[int, tuple[int, ...]]:
    """Return the number of elements and the formats, or raise what is wrong with a tensor."""
    size = tensors[0].numel()
    for name, tensor in zip(names, tensors, strict=True):
        if why := _tensors.unfit(tensor):
            raise TypeError(f"{name}: expected a dense tensor in the CPU's memory, got a {why}")
        if tensor.numel() != size:
            raise ValueError(f"{name}: expected {size} elements, as params, got {tensor.numel()}")
    return size, _formats(names, *(tensor.dtype for tensor in tensors))


@cache
def _formats(names: Sequence[str], param: Any, grad: Any, *states: Any) -> tuple[int, ...]:
    """Return the formats of parameter, gradient and state by their dtypes, or raise."""
    if torch.float64 in (param, grad) and grad != param:
        raise TypeError(f"grads: expected {param}, as params, got {grad}")
    full = param if param == torch.float64 else torch.float32
    known = [full] if full == torch.float64 else [full, torch.bfloat16]
    for name, state in zip(names[2:], states, strict=True):
        if state not in known:
            raise _NotOurs(f"{name}: expected {' or '.join(map(str, known))}, got {state}")
        if state != states[0]:
            raise TypeError(f"{name}: expected {states[0]}, as {names[2]}, got {state}")
    formats = _tensors.FORMATS
    return formats[param], formats[grad], 0 if states[0] == full else formats[states[0]]


def _give_back(tensors: Sequence[Tensor], pieces: Sequence[Tensor]) -> None:
    """Write what was computed on copies of tensors in C order to the tensors, but the gradient."""
    for i, (tensor, piece) in enumerate(zip(tensors, pieces, strict=True)):
        if piece is not tensor and i != _GRAD:
            tensor.copy_(piece)


def _roll_back(
    cls: type[optim.Optimizer], step: int, settings: Sequence[Any], tensors: Sequence[Tensor]
) -> None:
    """Take a step of Adam back: exact but for rounding, and but for what is not finite."""
    lr, beta1, beta2, eps, decay, is_corrected = map(float, settings)
    corrections = [1 - beta**step if is_corrected else 1.0 for beta in (beta1, beta2)]
    pieces = [tensor.contiguous() for tensor in tensors]
    for chunks in zip(*(piece.view(-1).split(_CHUNK) for piece in pieces), strict=True):
        param, grad, mean, square = (chunk.to(torch.float64, copy=True) for chunk in chunks)
        param += lr / corrections[0] * mean / ((square / corrections[1]).sqrt() + eps)
        if cls is optim.AdamW:
            param /= 1 - lr * decay
        else:
            grad += decay * param
        mean = _before(mean, beta1, grad)
        square = _before(square, beta2, grad * grad).clamp(min=0)
        _give_back(chunks, (param, grad, mean, square))
    _give_back(tensors, pieces)


def _before(moment: Tensor, beta: float, added: Tensor) -> Tensor:
    """Return what a moment was; with a beta of 0 nothing of it is left, nor is it needed."""
    return (moment - (1 - beta) * added) / beta if beta else torch.zeros_like(moment)
