"""BatchNorm on more threads than there are channels, blocks or cores: the same bits."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import FORMATS, digest

ELEMENTS_PER_THREAD = 16384
"""Fewer are not shared out (cpp/src/values.hpp)."""


def everything(x, dy, residual, threads, **options):
    """A digest of the results of all four functions."""
    running = np.zeros(x.shape[1]), np.ones(x.shape[1])
    options |= {"residual": residual, "num_threads": threads}
    y, mean, invstd = op.batch_norm_train(
        x, running_mean=running[0], running_var=running[1], **options
    )
    given = {"mean": mean, "var": invstd}
    return digest(
        y,
        mean,
        invstd,
        running,
        op.batch_norm_infer(x, **given, **options),
        op.batch_norm_backward(dy, x, saved_mean=mean, saved_invstd=invstd, **options),
        op.batch_norm_infer_backward(dy, x, **given, **options),
        op.batch_norm_infer_backward(dy.copy(), x, **given, **options, out=x.copy()),
    )


def problem(outer, channels, inner, dtype, with_residual):
    rng = np.random.default_rng(outer + channels)
    drawn = rng.normal(3, 2, (3, outer, channels, inner)).astype(dtype)
    drawn[0, :, 0].flat[:16] = 500  # about the mean, then
    return drawn[0], drawn[1], drawn[2] if with_residual else None


# Short runs, fewer blocks than threads, and a share of a row that is shorter than a run.
ORDINARY = [(128, 4, 196), (128, 3, 250), (64, 8, 240), (200, 2, 253), (100, 5, 128)]


@settings(max_examples=40)
@given(
    channels=st.integers(1, 12) | st.sampled_from([16, 33, 64, 300, 1100]),
    inner=st.integers(1, 300) | st.sampled_from([1, 7 * 7, 14 * 14, 1000, 5000]),
    threads=st.integers(2, 64),
    share=st.floats(0.3, 1.2),
    dtype=st.sampled_from(FORMATS),
    relu=st.booleans(),
)
@example(channels=4, inner=256, threads=64, share=1.0, dtype=np.float32, relu=True)
@example(channels=1, inner=1, threads=64, share=1.0, dtype=np.float64, relu=False)
def test_any_shape_on_any_number_of_threads(channels, inner, threads, share, dtype, relu):
    size = int(share * threads * ELEMENTS_PER_THREAD)
    outer = max(size // (channels * inner), 2)
    x, dy, residual = problem(outer, channels, inner, dtype, relu)
    alone = everything(x, dy, residual, 1, relu=relu)
    assert everything(x, dy, residual, threads, relu=relu) == alone


@pytest.mark.parametrize("shape", ORDINARY, ids=str)
def test_ordinary_shapes_on_many_threads(shape, dtype):
    x, dy, residual = problem(*shape, dtype, True)
    alone = everything(x, dy, residual, 1, relu=True)
    for threads in range(2, 17):
        assert everything(x, dy, residual, threads, relu=True) == alone
