"""Print a digest of what every rule, format and normalisation computes, one a line.

Two machines compute the same bits where they print the same: `nox -s aarch64` compares a real
processor with an emulated one. Neither the C library's nor BLAS's rounding takes part in the input.
"""

import itertools

import ml_dtypes
import numpy as np

import onepass as op
from batchnorm_cases import SHAPES
from helpers import CASES, accepts, case_id, digest
from row_norm_cases import CASES as ROW_NORMS

BF16 = ml_dtypes.bfloat16
OPTIONS = (
    (np.float64, {}),
    (np.float32, {}),
    (np.float32, {"state_format": "bf16", "ema_decay": 0.9, "max_grad_norm": 1.0}),
    (np.float32, {"state_format": "q8", "max_grad_norm_each": 0.5}),
    (np.float16, {}),
    (BF16, {"rounding": "stochastic"}),
    (BF16, {"rounding": "nearest", "state_format": "q8"}),
)


def numbers(rng, shape, dtype):
    """Numbers of many magnitudes, made of integers: those are the same everywhere."""
    whole = rng.integers(-(2**20), 2**20, shape).astype(np.float64)
    return np.ldexp(whole, rng.integers(-30, -15, shape)).astype(dtype)


def rules():
    for (cls, settings), (dtype, options) in itertools.product(CASES, OPTIONS):
        chosen = {**settings, **options}
        if not accepts(cls, chosen) or cls.row.is_directed({**cls.defaults, **settings}):
            continue  # directions are BLAS's products of matrices: each processor's own order
        rng = np.random.default_rng(1)
        for shape in ((1003,), (37, 61)):
            opt = cls(numbers(rng, shape, dtype), **chosen)
            for _ in range(3):
                opt.step(numbers(rng, shape, dtype))
            print(case_id((cls, chosen)), np.dtype(dtype).name, shape, digest(opt))


def batch_norm():
    rng = np.random.default_rng(2)
    for shape, axis in SHAPES:
        for dtype in (np.float32, np.float64):
            x, dy = numbers(rng, (2, *shape), dtype)
            y, mean, invstd = op.batch_norm_train(x, axis=axis)
            back = op.batch_norm_backward(dy, x, saved_mean=mean, saved_invstd=invstd, axis=axis)
            inferred = op.batch_norm_infer(x, mean=mean, var=invstd, axis=axis)
            print("BatchNorm", np.dtype(dtype).name, shape, digest(y, mean, invstd, back, inferred))


def row_norms():
    rng = np.random.default_rng(3)
    for case in ROW_NORMS:
        for dtype in (np.float32, np.float64):
            p = case.problem(rng, dtype, numbers)
            y, mean, invstd = case.forward(p)
            back = case.backward({**p, "mean": mean, "invstd": invstd})
            print(case, np.dtype(dtype).name, digest(y, mean, invstd, back))


if __name__ == "__main__":
    rules()
    batch_norm()
    row_norms()
