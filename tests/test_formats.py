"""How numbers are stored: each format is read and written as NumPy's own conversion does it.

test_isa.py repeats this file on each instruction set.
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import SMALL_FORMATS, assert_same_bits, digest

formats = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: dtype.__name__)


@formats
def test_every_gradient_there_is(small):
    """All 65,536, an infinity and a NaN among them; 0 - g is exact."""
    grad = np.arange(2**16, dtype=np.uint16).view(small)
    param = np.zeros(2**16, np.float32)
    op.kernels.sgd(param, grad, lr=1.0)
    with np.errstate(invalid="ignore"):  # NaN that signal
        assert_same_bits(param, np.float32(0) - grad.astype(np.float32))


@formats
def test_norm_of_every_length(small, rng):
    for n in (1, 63, 64, 65, 255, 256, 257, 16_385, 40_000):
        grad = rng.normal(size=n).astype(small)
        norms = [
            op.SGD(np.zeros(n, np.float32), max_grad_norm=1.0).step(each).grad_norm
            for each in (grad, grad.astype(np.float32))
        ]
        assert norms[0] == norms[1]


@formats
@pytest.mark.parametrize("layout", ["strided", "reversed", "Fortran", "misaligned", "0-d"])
def test_any_layout(optimizer, small, layout, rng):
    grad = rng.normal(size=(30, 40)).astype(small)
    given_ = {
        "strided": np.repeat(grad, 2, axis=1)[:, ::2],
        "reversed": grad[::-1].copy()[::-1],
        "Fortran": np.asfortranarray(grad),
        "misaligned": np.frombuffer(b"x" + grad.tobytes(), np.uint8)[1:].view(small),
        "0-d": grad[0, 0],
    }[layout]
    given_ = given_.reshape(grad.shape) if layout == "misaligned" else given_
    param = np.full(np.shape(given_), 0.5, np.float32)
    expected = param.copy()
    optimizer(expected).step(np.asarray(given_).astype(np.float32))
    optimizer(param).step(given_)
    assert_same_bits(param, expected)


@formats
def test_bound_and_accumulated(optimizer, small, rng):
    grads = [rng.normal(size=70).astype(small) for _ in range(4)]
    expected, param = np.ones(70, np.float32), np.ones(70, np.float32)
    wide, opt = optimizer(expected), optimizer(param, zero_grad=True)
    bound = np.zeros(70, small)
    opt.bind(bound)
    for grad in grads[:2]:
        wide.step(grad.astype(np.float32))
        bound[:] = grad
        opt.step()
        assert not bound.any()
    for grad in grads[2:]:
        wide.accumulate(grad.astype(np.float32))
        bound[:] = grad
        opt.accumulate()
        assert not bound.any()
    wide.step(grad_scale=2.0)
    opt.step(grad_scale=2.0)
    assert_same_bits(param, expected)
    assert digest(opt.state_dict()["state"]) == digest(wide.state_dict()["state"])


@formats
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_not_finite(optimizer, small, bad):
    params = [np.ones(300, np.float32), np.ones(300, np.float32)]
    grads = [np.ones(300, np.float32), np.ones(300, small)]
    grads[1][257] = bad
    opt = optimizer(params, nonfinite="raise")
    before = digest(opt)
    with pytest.raises(ValueError, match=r"^grads\[1\]: expected finite values"):
        opt.step(grads)
    assert digest(opt) == before
    opt.nonfinite = "skip"
    assert opt.step(grads).skipped
    np.testing.assert_array_equal(params, 1)


@formats
def test_not_beside_float64(optimizer, small):
    param = np.ones(3)
    with pytest.raises(TypeError, match=r"^grads: expected the parameter's dtype float64, got"):
        optimizer(param).step(np.ones(3, small))
    np.testing.assert_array_equal(param, 1)


def test_no_other_format(optimizer):
    param = np.ones(3, np.float32)
    other = ml_dtypes.float8_e4m3fn
    expected = "the parameter's dtype float32, float16 or bfloat16, got"
    for dtype in (np.float64, np.int16, other, np.dtype(">f2")):
        with pytest.raises(TypeError, match=rf"^grads: expected {expected} {np.dtype(dtype)}"):
            optimizer(param).step(np.ones(3).astype(dtype))


@given(
    grad=hnp.arrays(np.uint16, st.integers(0, 300)),
    small=st.sampled_from(SMALL_FORMATS),
    clip=st.one_of(st.none(), st.floats(1e-3, 1e3)),
)
def test_any_bits(grad, small, clip):
    grad = grad.view(small)
    params = [np.ones(grad.size, np.float32) for _ in range(2)]
    with np.errstate(invalid="ignore"):
        wide = grad.astype(np.float32)
    for param, each in zip(params, (grad, wide), strict=True):
        opt = op.AdamW(param, max_grad_value=clip)
        opt.step(each)
        opt.step(each)
    assert_same_bits(*params)
