"""PyTorch's optimizers, with our step: for parameters in the CPU's memory.

Each class here is a subclass of the class of that name in `torch.optim`, and overrides its step
alone: constructor, `param_groups`, files, hooks, schedulers are PyTorch's. Optimizers that PyTorch
lacks derive from `torch.optim.Optimizer`.

>>> import torch
>>> import onepass.torch
>>> model = torch.nn.Linear(2, 1)
>>> opt = onepass.torch.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
>>> isinstance(opt, torch.optim.AdamW)
True
>>> model(torch.ones(3, 2)).sum().backward()
>>> opt.step()
>>> opt.last_step.clipped
True
"""

from onepass._extras import require

require("torch", torch="torch")

import inspect  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import torch  # noqa: E402

from onepass import optim  # noqa: E402
from onepass._hyperparameters import Fixed  # noqa: E402
from onepass.optim import registry  # noqa: E402
from onepass.optim._settings import GROUP_DEFAULTS  # noqa: E402
from onepass.torch._native import OPTIONS, Native  # noqa: E402

__all__ = [cls.__name__ for cls in registry.values()]


def _make(cls: type[optim.Optimizer]) -> type[Native]:
    host = getattr(torch.optim, cls.__name__, None)
    parameters = inspect.signature(host or cls).parameters.values()
    known = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
    if not host:  # whose parameters are NumPy's
        known = [each.replace(annotation=each.empty) for each in known]
    settings = {**cls.defaults, **GROUP_DEFAULTS, **({"rounding": None} if host else {})}
    fixed = [name for name, check in cls.checks.items() if isinstance(check, Fixed)]
    not_beyond = {*(each.name for each in known), *fixed}
    beyond = {name: value for name, value in settings.items() if name not in not_beyond}
    ours = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for name, value in {**OPTIONS, **beyond}.items()
    ]
    members = {
        "cls": cls,
        "host": host,
        "beyond": beyond,
        "arguments": inspect.Signature(known),
        "__signature__": inspect.Signature([*known, *ours]),
        "__doc__": _document(cls.__name__, _BEHIND if host else _ALONE),
        "__module__": __name__,
    }
    return type(cls.__name__, (Native, host) if host else (Native,), members)


_BEHIND = """`torch.optim.{name}`, whose step is `onepass.{name}`'s: one pass, on the CPU.

Constructor, `param_groups`, files, hooks, schedulers and errors are those of `torch.optim.{name}`,
from which this class derives; the equations are those of `onepass.{name}`. PyTorch's own step runs,
and `fallbacks` counts why, where one parameter or gradient is not for the kernels: on a GPU,
sparse, complex, of a tensor subclass, not dense, of a dtype that does not suit, of 16 bits where
`rounding` is None. It runs, too, with `capturable` or `differentiable`, while a compiler traces the
step, and with values of settings that PyTorch takes and `onepass.{name}` does not."""
_ALONE = """`onepass.{name}` as an optimizer of PyTorch's, which has none of this name.

It derives from `torch.optim.Optimizer`, so `param_groups`, files, hooks and schedulers are
PyTorch's. The equations are those of `onepass.{name}`. Parameters and gradients must be dense
tensors in the CPU's memory, of float32, float64, bfloat16 or float16."""
_DOC = """{behind}

Parameters
----------
params : iterable of tensors, of (name, tensor), or of groups
    As for every optimizer of PyTorch's. Dense tensors may have their axes in any order.
**hyperparameters
    Those of the signature, as in `onepass.{name}`. Groups may differ in them. A setting may be
    changed in `param_groups` between steps, and may be a tensor without axes; a schedule is one of
    PyTorch's, and no function.
max_grad_norm : float > 0, optional
    The Euclidean norm that all gradients may have together, over all groups; ``math.inf`` measures
    it. It sees the gradients that this process holds.
skip_grad_norm : float > 0, optional
    The norm above which the step is left out, see `onepass.Optimizer`; a number that may be set
    between steps, and no schedule. `last_step.skip_reason` says why a step was left out.
nonfinite : {{"propagate", "skip", "raise"}}
    What an infinity or a NaN in a gradient does, see `onepass.Optimizer`.
clear_grads : bool
    Put zeros into the gradients in the pass that reads them, in the place of ``zero_grad(False)``.
    Beside a `GradScaler` call `zero_grad` all the same: it takes no step where gradients overflow.
seed : int in [0, 2**53)
    The seed of stochastic rounding.
num_threads : int, optional
    The default is `torch.get_num_threads()`; they are PyTorch's own threads.
max_grad_norm_each, max_grad_value, ema_decay, ema_warmup, swa_start, average_every, \
average_dtype, lookahead_every, lookahead_weight, state_format, cautious_weight_decay
    Stages of a step, see `onepass.Optimizer`; groups may differ in them.
rounding : {{None, "master", "stochastic", "nearest"}}
    How parameters of 16 bits are kept, see `onepass.Optimizer`. None: as PyTorch does it, by
    PyTorch's step. (Classes that PyTorch lacks begin with "master".)

Attributes
----------
max_grad_norm, skip_grad_norm, nonfinite, clear_grads, seed, num_threads
    As above; they may be set between steps, and are checked when they are. `state_dict` has none
    of them.
last_step : StepInfo or None
    What the last step reports: its number, the learning rate, the gradients' norm, whether they
    were clipped or the step left out, and why. None where PyTorch's own step ran, or the step
    failed.
fallbacks : Counter
    Why PyTorch's own step ran, and how often.

Raises
------
ValueError
    In a step: where PyTorch's own step would have to run, or parameters share memory, and a setting
    of ours is in use or PyTorch has no such class. Nothing has changed then.

Notes
-----
Differs from

* PyTorch: the result is the same bits for any number of threads, and those of `onepass.{name}`. A
  step bumps the versions of parameters. Where PyTorch keeps no count of steps (SGD, Muon), ``step``
  is added to the state. For what our equations do otherwise see `onepass.{name}`.
* `onepass.{name}`: PyTorch counts steps in float32, so from 16,777,216 on the count stands still.
  An interrupt in the very first step may lose the state that this step has made.
"""


def _document(name: str, behind: str) -> str:
    return _DOC.format(name=name, behind=behind.format(name=name))


globals().update({cls.__name__: _make(cls) for cls in registry.values()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[Native]: ...
