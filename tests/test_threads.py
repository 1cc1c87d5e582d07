"""Any number of threads gives the bits of one: whole steps over generated shapes and options."""

import math

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import digest

# Empty ones, one element, a few, about a piece of 16,384, and many pieces.
SIZES = (
    st.integers(0, 3)
    | st.integers(4, 300)
    | st.integers(16_380, 16_390)
    | st.integers(16_384, 300_000)
)
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
OPTIONS = st.fixed_dictionaries(
    {
        "max_grad_norm": st.sampled_from([None, math.inf, 1e-3]),
        "max_grad_value": st.sampled_from([None, 0.5]),
        "ema_decay": st.sampled_from([None, 0.9]),
        "state_format": st.sampled_from([None, "bf16", "q8"]),
        "rounding": st.sampled_from(["master", "stochastic", "nearest"]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
    }
)


@given(
    threads=st.integers(2, 64),
    tensors=st.lists(st.tuples(SIZES, st.sampled_from(DTYPES)), min_size=1, max_size=5),
    options=OPTIONS,
    offset=st.integers(0, 15),
)
@settings(max_examples=25)
def test_any_number_of_threads_gives_the_bits_of_one(optimizer, threads, tensors, options, offset):
    rng = np.random.default_rng(1)
    room = rng.normal(size=300_000 + 16)
    arrays = [room.astype(dtype)[offset : offset + size] for size, dtype in tensors]
    found = []
    for n in (1, threads):
        params = [array.copy() for array in arrays]
        wide = [{"params": [p], "state_format": None} for p in params if p.dtype == np.float64]
        rest = [{"params": [p]} for p in params if p.dtype != np.float64]
        opt = optimizer([*wide, *rest], **options)
        grads = [group["params"][0].copy() for group in opt.param_groups]
        infos = [opt.step([[grad] for grad in grads], num_threads=n) for _ in range(2)]
        found.append((infos, digest(opt)))
    assert found[0] == found[1]
