"""Print a digest of what every rule, loop, format and normalisation computes, one a line.

Two machines, or two instruction sets of one, compute the same bits where they print the same:
`test_isa.py` compares the instruction sets, `nox -s aarch64` a real processor with an emulated one.
Neither the C library's nor BLAS's rounding takes part in the input.
"""

import itertools
from functools import cache

import ml_dtypes
import numpy as np

import onepass as op
from batchnorm_cases import SHAPES as BATCHES
from helpers import (
    CASES,
    FORMATS,
    KINDS,
    SHAPES,
    SMALL_FORMATS,
    accepts,
    case_id,
    digest,
    fresh_state,
    moves_rows,
)
from onepass._memory import aligned_zeros
from row_norm_cases import CASES as ROW_NORMS
from storage_cases import blocks_of, neighbours

BF16 = ml_dtypes.bfloat16
# Around every vector width, a tile and a block of 8-bit state; one that is several tiles.
LENGTHS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257]
LENGTHS += [1000, 1023, 1024, 1025, 4095, 4096, 4097, 4352, 40_003]
OPTIONS = (
    (np.float64, {}),
    (np.float32, {}),
    (np.float32, {"state_format": "bf16", "ema_decay": 0.9, "max_grad_norm": 1.0}),
    (np.float32, {"state_format": "q8", "max_grad_norm_each": 0.5}),
    (np.float16, {}),
    (BF16, {"rounding": "stochastic"}),
    (BF16, {"rounding": "nearest", "state_format": "q8"}),
)
STAGES = (
    {"max_grad_value": 0.01, "clear_grads": True, "nonfinite": "skip"},
    {"lookahead_every": 2, "ema_decay": 0.3, "average_dtype": "float32"},
    {"swa_start": 2, "average_dtype": "float32"},
    {"ema_decay": 0.9, "ema_warmup": True, "average_every": 2, "skip_grad_norm": 16.0},
    {"cautious_weight_decay": True, "weight_decay": 0.1},
)


def numbers(rng, shape, dtype):
    """Numbers of many magnitudes, made of integers: those are the same everywhere."""
    whole = rng.integers(-(2**20), 2**20, shape).astype(np.float64)
    return np.asarray(np.ldexp(whole, rng.integers(-30, -15, shape))).astype(dtype)


@cache
def given(k, shape, dtype):
    """The k-th array of this shape and dtype, to be copied before it is written."""
    return numbers(np.random.default_rng(k), shape, dtype)


def rules():
    for (cls, settings), (dtype, options) in itertools.product(CASES, OPTIONS):
        chosen = {**settings, **options}
        if not accepts(cls, chosen) or cls.row.is_directed({**cls.defaults, **settings}):
            continue  # directions are BLAS's products of matrices: each processor's own order
        params = [given(0, shape, dtype).copy() for shape in ((1003,), (37, 61))]
        opt = cls(params, **chosen)
        for step in (1, 2, 3):
            opt.step([given(step, param.shape, dtype) for param in params])
        print(case_id((cls, chosen)), np.dtype(dtype).name, digest(params, opt.state_dict()))


def special_values():
    """Infinities, NaN, both zeros, the ends of the range: each as a weight beside each gradient."""
    for (cls, settings), dtype in itertools.product(CASES, FORMATS):
        info = np.finfo(dtype)
        each = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny]
        each = np.array([*each, info.smallest_subnormal, 1.0], dtype)
        if cls.row.is_directed({**cls.defaults, **settings}):
            continue
        param = np.repeat(each, each.size)
        opt = cls(param, **settings)
        for grad in (np.tile(each, each.size), np.ones_like(param)):
            opt.step(grad)
        print("special values", case_id((cls, settings)), np.dtype(dtype).name, digest(opt))


def lengths():
    for (cls, settings), (dtype, options) in itertools.product(SHAPES, OPTIONS):
        params = [given(0, n, dtype).copy() for n in LENGTHS]
        opt = cls(params, **settings, **options)
        for step in (1, 2):
            opt.step([given(step, n, dtype) for n in LENGTHS], num_threads=1)
        found = digest(params, opt.state_dict()["state"])
        print("lengths", case_id((cls, {**settings, **options})), np.dtype(dtype).name, found)


def offsets():
    """Every offset from a cache line; in every 64th step what is subnormal becomes zero."""
    for (cls, settings), dtype in itertools.product(SHAPES, FORMATS):
        tiny = np.finfo(dtype).tiny / dtype(2) * abs(given(2, 500, dtype))
        found = []
        for offset in range(0, 64, itemsize := np.dtype(dtype).itemsize):
            param, grad = (
                aligned_zeros(1003, dtype, offset=at) for at in (offset, 64 - itemsize - offset)
            )
            param[:], grad[:] = given(0, 1003, dtype), given(1, 1003, dtype)
            state = fresh_state(cls, settings, param)
            for array in state[: len(cls.row.states)]:
                if array is not None:
                    array[:500] = tiny
            for step in (63, 64):
                getattr(op.kernels, cls.rule)(param, grad, *state, step=step, **settings)
            found += [param, state]
        print("offsets", case_id((cls, settings)), np.dtype(dtype).name, digest(found))


def stages():
    """What lies around a rule, with gradients of any dtype."""
    dtypes = (np.float32, np.float64, *SMALL_FORMATS)
    shapes = ((20_003,), (257,), (), (30, 7))
    for cls, options, dtype, other in itertools.product(KINDS, STAGES, dtypes, dtypes):
        if not accepts(cls, options) or (dtype == np.float64 and "average_dtype" in options):
            continue
        params = [given(0, shape, dtype).copy() for shape in shapes]
        opt = cls(params, lr=0.01, **options)
        found = [params]
        for step in (1, 2, 3):
            grads = [given(step, shape, other).copy() for shape in shapes]
            found += [opt.step(grads, stats=True, num_threads=1), grads]
        found = digest(found, opt.state_dict()["state"])
        names = np.dtype(dtype).name, np.dtype(other).name
        print("stages", case_id((cls, options)), *names, found)


def rows():
    for (cls, settings), dtype in itertools.product(SHAPES, FORMATS):
        if moves_rows(cls, settings):
            param = given(0, (50, 33), dtype).copy()
            opt = cls(param, **settings)
            opt.step_rows((np.arange(40) * 7 % 50, given(1, (40, 33), dtype)))
            print("rows", case_id((cls, settings)), np.dtype(dtype).name, digest(opt))


def norms():
    """Squares that overflow and vanish, of every length."""
    for dtype in (np.float32, np.float64, *SMALL_FORMATS):
        for n, power in itertools.product(LENGTHS, (0, 600, -600) if dtype == np.float64 else (0,)):
            grad = np.ldexp(given(1, n, np.float64), power).astype(dtype)
            info = op.SGD(np.ones(n, dtype), max_grad_norm=1.0).step(grad, stats=True)
            print("norm", np.dtype(dtype).name, n, power, digest(info))


def conversions():
    """Every number of 16 bits that is read, those about each that are written, every 8-bit code."""
    for small in SMALL_FORMATS:
        every = np.arange(2**16, dtype=np.uint16).view(small)
        for dtype in FORMATS:
            param = np.zeros(2**16, dtype)
            op.SGD(param, lr=1.0).step(every)
            print("read", np.dtype(small).name, np.dtype(dtype).name, digest(param))
        param = neighbours(small)
        copy = np.zeros(param.size, small)
        op.SGD(param, lr=0.0, copy_to=copy).step(np.zeros_like(param))
        print("written", np.dtype(small).name, digest(copy))
    for rule, options in (("sgd", {"momentum": 0.5}), ("rmsprop", {"alpha": 0.5})):
        codes = blocks_of(np.arange(256), np.arange(256))
        param = np.zeros(codes.size // 257 * 256, np.float32)
        getattr(op.kernels, rule)(param, param.copy(), codes, step=1, seed=5, **options)
        print("codes", rule, digest(param, codes))


def batch_norm():
    rng = np.random.default_rng(2)
    for shape, axis in BATCHES:
        wide = numbers(rng, (3, *shape), np.float64)
        for dtype in FORMATS:
            x, dy, z = wide.astype(dtype)
            found = []
            # What is large is there for its results, which go past the caches.
            for options in ({}, {"relu": True, "residual": z})[x.size > 1_000_000 :]:
                options["axis"] = axis
                y, mean, invstd = op.batch_norm_train(x, **options)
                both = {"saved_mean": mean, "saved_invstd": invstd}
                given = {"mean": mean, "var": abs(mean), "eps": 0.1}
                found += [y, mean, invstd, op.batch_norm_backward(dy, x, **both, **options)]
                found += [op.batch_norm_infer_backward(dy, x, **given, **options)]
                found += [op.batch_norm_infer(x, **given, **options)]
                found += [op.batch_norm_gradient_sums(dy, x, **both, **options)]
                found += [op.batch_norm_moments(x, axis=axis)]
            print("BatchNorm", np.dtype(dtype).name, shape, digest(found))


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
    special_values()
    lengths()
    offsets()
    stages()
    rows()
    norms()
    conversions()
    batch_norm()
    row_norms()
