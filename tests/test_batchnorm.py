"""The BatchNorm functions as their users meet them: gradients, memory, errors."""

import copy

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import FUNCTIONS, arrays
from helpers import assert_same_bits, digest, misaligned


def first(result):
    return result[0] if isinstance(result, tuple) else result


def test_a_variance_of_zero_is_one():
    """y = x / sqrt(eps)."""
    y = op.batch_norm_infer(np.ones((2, 1)), mean=np.zeros(1), var=np.zeros(1), eps=0.25)
    np.testing.assert_array_equal(y, 2)


# Gradients


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_gradients_against_finite_differences(rng, frozen, relu, axis):
    shape = (3, 4, 5)
    p = arrays(rng, shape, np.float64, shape[axis])
    z, upstream = rng.normal(size=shape), rng.normal(size=shape)
    options = {"axis": axis, "relu": relu, "residual": z}

    def loss():
        if frozen:
            y = FUNCTIONS["infer"](p, **options)
        else:
            y, *_ = FUNCTIONS["train"](p, **options)
        return float((y * upstream).sum())

    if frozen:
        found = FUNCTIONS["infer_backward"]({**p, "dy": upstream}, **options)
    else:
        _, mean, invstd = FUNCTIONS["train"](p, **options)
        saved = {**p, "dy": upstream, "mean": mean, "var": invstd}
        found = FUNCTIONS["backward"](saved, **options)
    step = 1e-6
    for array, gradient in zip([p["x"], p["weight"], p["bias"], z], found, strict=True):
        for i in np.ndindex(array.shape):
            value = array[i]
            array[i] = value + step
            high = loss()
            array[i] = value - step
            low = loss()
            array[i] = value
            assert gradient[i] == pytest.approx((high - low) / (2 * step), rel=1e-6, abs=1e-7)


def test_dx_sums_to_zero(rng):
    """Neither a shift nor a scaling of a channel changes y."""
    p = arrays(rng, (50, 4, 60), np.float64)
    _, mean, invstd = op.batch_norm_train(p["x"], eps=1e-300)
    dx, *_ = op.batch_norm_backward(p["dy"], p["x"], saved_mean=mean, saved_invstd=invstd)
    assert abs(dx.sum(axis=(0, 2))).max() < 1e-11
    assert abs((dx * p["x"]).sum(axis=(0, 2))).max() < 1e-11


# Memory


def test_new_results_have_the_layout_of_x(rng, function):
    p = arrays(rng, (6, 4, 5, 3))
    for x in (p["x"], np.asfortranarray(p["x"]), channels_last(p["x"])):
        result = first(function({**p, "x": x}))
        assert result.strides == x.strides
        assert result.dtype == x.dtype


def channels_last(x):
    """The same array, its channels (axis 1) side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "channels last": channels_last,
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1],
    "misaligned": misaligned,
    "repeated": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["x", "dy", "residual"])
def test_any_layout_may_be_read(rng, function, layout, which):
    p = {**arrays(rng, (6, 4, 5, 3), np.float64), "residual": rng.normal(size=(6, 4, 5, 3))}
    p[which] = LAYOUTS[layout](p[which])
    plain = {name: np.ascontiguousarray(array) for name, array in p.items()}
    before = digest(p)

    def run(arrays):
        result = function(arrays, relu=True, residual=arrays["residual"])
        return result if isinstance(result, tuple) else (result,)

    for found, expected in zip(run(p), run(plain), strict=True):
        # Where the memory's order differs, so does that of the sums.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert digest(p) == before


def test_vectors_may_have_any_strides(rng, function):
    p = arrays(rng)
    expected = function(p)
    strided = {
        name: np.repeat(a, 3)[::3] if a.ndim == 1 else a for name, a in p.items()
    }  # fmt: skip
    assert digest(function(strided)) == digest(expected)


def test_out_is_what_is_returned(rng, function):
    p = arrays(rng)
    expected = first(function(p))
    out = np.empty_like(p["x"])
    assert first(function(p, out=out)) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("infer", "x"),
        ("infer", "residual"),
        ("backward", "dy"),
        ("backward", "x"),
        ("backward", "residual"),
        ("infer_backward", "dy"),
        ("infer_backward", "x"),
    ],
)
@pytest.mark.parametrize("shape", [(6, 4, 5), (3, 4, 400, 401)], ids=str)
def test_in_place_where_it_is_sound(rng, name, same, shape):
    p = {**arrays(rng, shape), "residual": rng.normal(size=shape).astype(np.float32)}
    kept = copy.deepcopy(p)
    expected = FUNCTIONS[name](kept, relu=True, residual=kept["residual"])
    found = FUNCTIONS[name](p, relu=True, residual=p["residual"], out=p[same])
    assert first(found) is p[same]
    assert digest(found) == digest(expected)


@pytest.mark.parametrize("same", ["x", "residual"])
def test_training_in_place_is_refused_and_says_why(rng, same):
    p = {**arrays(rng), "residual": rng.normal(size=(6, 4, 5)).astype(np.float32)}
    before = digest(p)
    message = rf"^out: expected memory of its own, because the backward pass needs {same}, got"
    with pytest.raises(ValueError, match=message):
        FUNCTIONS["train"](p, residual=p["residual"], out=p[same])
    assert digest(p) == before


def test_overlapping_out_is_refused(rng, function):
    p = arrays(rng)
    buffer = np.zeros(p["x"].size + 8, np.float32)
    p["x"] = buffer[8:].reshape(p["x"].shape)
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, got an overlap with"):
        function(p, out=buffer[:-8].reshape(p["x"].shape))
    weights = np.zeros(p["x"].size, np.float32)
    p["weight"] = weights[:4]
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, got .* with weight"):
        function(p, out=weights.reshape(p["x"].shape))
    assert not buffer.any()


def test_gradients_in_the_output_are_refused(rng):
    p, buffer = arrays(rng), np.zeros(120, np.float32)
    bn = op.BatchNorm(4)
    bn.weight_grad = buffer[:4]
    bn.forward(p["x"])
    for dy in (p["dy"], buffer.reshape(p["x"].shape)):
        with pytest.raises(ValueError, match="expected memory of its own"):
            bn.backward(dy, out=buffer.reshape(p["x"].shape))
    bn.running_mean[:] = 0
    bn.num_batches_tracked = bn.running_mean.view(np.int64)[0, ...]
    with pytest.raises(ValueError, match="expected memory of its own"):
        bn.forward(p["x"])
    assert not buffer.any()


def test_a_slice_is_copied_in_its_own_order(rng):
    x = np.asfortranarray(rng.normal(size=(6, 4, 10)))[:, :, ::2]
    y, *_ = op.batch_norm_train(x, out=np.empty_like(x))
    assert_same_bits(y, op.batch_norm_train(x.copy(order="K"))[0])
    assert y.flags.f_contiguous


def test_running_statistics_need_memory_of_their_own(rng):
    x, both = arrays(rng)["x"], np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"^running_\w+: expected memory of its own, got the same"):
        op.batch_norm_train(x, running_mean=both, running_var=both)
    with pytest.raises(ValueError, match=r"^running_mean: expected memory of its own, got the sam"):
        op.batch_norm_train(x, weight=both, running_mean=both, running_var=both.copy())
    assert (both == 1).all()


def test_no_batch_is_lost_between_threads(rng):
    from concurrent.futures import ThreadPoolExecutor

    x = rng.normal(size=(16, 4, 50, 50)).astype(np.float32)
    bn = op.BatchNorm(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bn.forward(x), range(40)))
    assert bn.num_batches_tracked == 40
    alone = op.BatchNorm(4)
    for _ in range(40):
        alone.forward(x)
    assert_same_bits(bn.running_mean, alone.running_mean)


def test_two_threads_at_once(rng):
    """Large calls release the GIL, and share no scratch memory."""
    from concurrent.futures import ThreadPoolExecutor

    problems = [arrays(rng, (8, 4, 50, 50)) for _ in range(4)]
    expected = [digest(FUNCTIONS["train"](p)) for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda p: digest(FUNCTIONS["train"](p)), problems))
            assert found == expected
