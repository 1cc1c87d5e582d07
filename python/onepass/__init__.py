"""Fast, exact, in-place optimizers and BatchNorm for NumPy arrays on the CPU.

>>> import numpy as np
>>> import onepass as op
>>> w = np.array([1.0, -2.0])
>>> opt = op.Adam(w, lr=0.1)
>>> info = opt.step(np.array([0.5, 0.5]))
>>> w
array([ 0.9, -2.1])
"""

from importlib.metadata import version
from pathlib import Path

from onepass import (
    _core,
    ema,
    formats,
    init,
    kernels,
    line_search,
    optim,
    runtime,
    schedules,
    search,
    surface,
)
from onepass._pack import pack
from onepass.batchnorm import (
    BatchNorm,
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
)
from onepass.optim import SGD, Adagrad, Adam, AdamW, LossScaler, Optimizer, RMSprop, StepInfo
from onepass.runtime import get_num_threads, set_num_threads

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BatchNorm",
    "LossScaler",
    "Optimizer",
    "RMSprop",
    "StepInfo",
    "batch_norm_backward",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
    "ema",
    "formats",
    "get_include",
    "get_num_threads",
    "init",
    "kernels",
    "line_search",
    "optim",
    "pack",
    "runtime",
    "schedules",
    "search",
    "set_num_threads",
    "surface",
]

__version__ = version("onepass")


def get_include() -> str:
    """Return the folder of the C++ headers, for ``#include <onepass/update.hpp>``.

    Compile with ``-ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd``: the first
    makes the bits those of the library, the others its speed.
    """
    return str(Path(_core.__file__).parent / "include")  # an editable install lies in two places
