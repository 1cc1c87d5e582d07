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
        "__doc__": _DOC.format(name=cls.__name__, behind=_BEHIND if host else _ALONE),
        "__module__": __name__,
    }
    return type(cls.__name__, (Native, host) if host else (Native,), members)


_BEHIND = "`torch.optim.{name}`, whose step is onepass's"
_ALONE = "`onepass.{name}` as an optimizer of PyTorch's, which has none of this name"
_DOC = """{behind}."""

globals().update({cls.__name__: _make(cls) for cls in registry.values()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[Native]: ...
