"""Parameters and settings of which something is kept in fewer bits; what tests of them share."""

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import SMALL_FORMATS

BF16 = ml_dtypes.bfloat16
N = 5000
SIGNS = {rule: cls.row.has_sign for rule, cls in op.optim.registry.items()}

dtypes = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: np.dtype(dtype).name)
in_small_formats = pytest.mark.parametrize("state_format", ["bf16", "q8"])
# A parameter's dtype and its group's settings.
KINDS = {
    "float32 with q8": (np.float32, {"state_format": "q8"}),
    "float32 with bf16": (np.float32, {"state_format": "bf16"}),
    "bfloat16 with a master": (BF16, {}),
    "float16 with a master and q8": (np.float16, {"state_format": "q8"}),
    "bfloat16 and q8, stochastic": (BF16, {"state_format": "q8", "rounding": "stochastic"}),
    "float16 and bf16, nearest": (np.float16, {"state_format": "bf16", "rounding": "nearest"}),
}
kinds = pytest.mark.parametrize(("dtype", "kept"), KINDS.values(), ids=KINDS)


def normal(rng, shape=N, dtype=np.float32):
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def params_like(rng, dtype):
    return {
        "w": np.asfortranarray(normal(rng, (90, 70), dtype)),
        "b": normal(rng, 4100, dtype),
        "few": normal(rng, 5, dtype),
        "frozen": np.ones(4096, dtype),
    }


def run(opt, steps, seed):
    """Steps of an optimizer of parameters such as the above."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        grads = {
            key: normal(rng, param.shape, param.dtype)
            for key, param in zip(("w", "b", "few"), opt.param_groups[0]["params"], strict=False)
        }
        opt.step({**grads, "frozen": None})


def blocks_of(codes, scales):
    """8-bit state as it is kept: for each scale a block whose elements have these codes."""
    order = [64 * byte + word for word in range(64) for byte in range(4)]
    return np.concatenate([np.tile(codes[order], scales.size), scales]).astype(np.uint8)


def bits(array):
    return array.view(f"u{array.itemsize}")


@np.errstate(over="ignore", invalid="ignore")
def neighbours(small):
    """Floats about each number of a format and halfway to the next one, infinities and NaN."""
    numbers = np.arange(2**15, dtype=np.uint16).view(small).astype(np.float64)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    last = numbers[-1] + (numbers[-1] - numbers[-2]) / 2  # from here on they become infinite
    halves = np.append((numbers[1:] + numbers[:-1]) / 2, last)
    near = np.concatenate([numbers, halves]).astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, 0)])
    return np.concatenate([near, -near, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], "f4")])
