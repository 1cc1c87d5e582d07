"""Fast, exact, in-place optimizers and BatchNorm for NumPy arrays on the CPU.

>>> import numpy as np
>>> import onepass as op
>>> w = np.array([1.0, -2.0])
>>> opt = op.Adam(w, lr=0.1)
>>> info = opt.step(np.array([0.5, 0.5]))
>>> w
array([ 0.9, -2.1])

Each of these has its own ``help()``:

* `AdamW`, `SGD` and the other optimizers; `optim` has all, and `Optimizer` what they share, such
  as clipping, averages of the weights, and files.
* `schedules`: learning rates, and other settings, that change from step to step.
* `BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm`: layers, with their gradients.
* `init`: the first weights of a network.
* `search`: choosing a learning rate.
* `minimize`: the minimum of a function of one array, and nothing else to write.
* `kernels`: the optimizers as functions on raw arrays.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from onepass import _core, ema, formats, init, kernels, line_search, optim, runtime, schedules
from onepass._descent import Iterate
from onepass._minimize import MinimizeResult, minimize
from onepass._pack import pack
from onepass.batchnorm import (
    BatchNorm,
    batch_norm_backward,
    batch_norm_gradient_sums,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_input_gradient,
    batch_norm_merge,
    batch_norm_moments,
    batch_norm_normalize,
    batch_norm_train,
    update_bn,
)
from onepass.norms import (
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    RMSNorm,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from onepass.optim import (
    ADOPT,
    ASGD,
    LAMB,
    LARS,
    SGD,
    SM3,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdamWScheduleFree,
    Adan,
    AdEMAMix,
    Lion,
    LossScaler,
    Muon,
    NAdam,
    NovoGrad,
    Optimizer,
    ParamStats,
    Prodigy,
    RAdam,
    RAdamScheduleFree,
    RMSprop,
    Rprop,
    SGDScheduleFree,
    StepInfo,
    Yogi,
)
from onepass.optim._overrides import layer_decay, no_decay_1d
from onepass.runtime import get_num_threads, set_num_threads

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "SM3",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "Iterate",
    "LayerNorm",
    "Lion",
    "LossScaler",
    "MinimizeResult",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "ParamStats",
    "Prodigy",
    "RAdam",
    "RAdamScheduleFree",
    "RMSNorm",
    "RMSprop",
    "Rprop",
    "SGDScheduleFree",
    "StepInfo",
    "Stream",
    "Yogi",
    "batch_norm_backward",
    "batch_norm_gradient_sums",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_input_gradient",
    "batch_norm_merge",
    "batch_norm_moments",
    "batch_norm_normalize",
    "batch_norm_train",
    "compare",
    "ema",
    "formats",
    "get_include",
    "get_library",
    "get_num_threads",
    "group_norm",
    "group_norm_backward",
    "init",
    "instance_norm",
    "instance_norm_backward",
    "kernels",
    "layer_decay",
    "layer_norm",
    "layer_norm_backward",
    "line_search",
    "minimize",
    "no_decay_1d",
    "optim",
    "pack",
    "rms_norm",
    "rms_norm_backward",
    "runtime",
    "schedules",
    "search",
    "set_num_threads",
    "shard",
    "surface",
    "tune",
    "update_bn",
]

__version__ = _core.version

_LATE = {"Stream": "onepass._stream", "shard": "onepass._shard"}
"""Where names are that are loaded when they are first used."""
_SETTINGS_OF_SGD = {"Momentum": "momentum=0.9", "Nesterov": "momentum=0.9, nesterov=True"}
"""What courses and the lab call by names that are no classes."""

if TYPE_CHECKING:
    from onepass._shard import shard
    from onepass._stream import Stream
    from onepass.lab import compare, search, surface, tune
else:  # for a type checker, a module with `__getattr__` would have every name

    def __getattr__(name):
        """Load the parts of `onepass.lab`, and what few programs need, when they are first used."""
        if name in _LATE:
            return globals().setdefault(name, getattr(import_module(_LATE[name]), name))
        if name not in ("compare", "search", "surface", "tune"):
            settings = _SETTINGS_OF_SGD.get(name)
            hint = f"; it is SGD(..., {settings})" if settings else ""
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
        # From now on this function is not called for that name.
        return globals().setdefault(name, import_module(f"onepass.lab.{name}"))

    def __dir__():
        """Return the names of what is loaded, and of what would be."""
        return sorted({*globals(), *__all__})


def get_include() -> str:
    """Return the folder of the C++ headers, for ``#include <onepass/update.hpp>``.

    Compile with ``-ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd``: the first
    makes the bits those of the library, the others its speed.
    """
    return str(Path(_core.__file__).parent / "include")  # an editable install lies in two places


def get_library() -> str:
    """Return the file that exports the functions of `onepass/capi.h`.

    It is the extension module itself, for whatever loads a library by its path into a process that
    runs Python: ctypes, cffi, Numba. Programs without Python take `libonepass`.

    Examples
    --------
    >>> import ctypes
    >>> import onepass as op
    >>> library = ctypes.CDLL(op.get_library())
    >>> library.onepass_rule(b"adam") >= 0
    True
    """
    return str(_core.__file__)
