"""BatchNorm equals its NumPy reference; where the sums are exact, to the bit.

Sums are exact in any order where every term is a small multiple of one power of two. On such data
equality holds over layouts, threads and instruction sets; on any other the statistics are held
against exact rational arithmetic, and everything after them is equal again.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from batchnorm_cases import (
    SHAPE_IDS,
    SHAPES,
    Problem,
    assert_gradients,
    exact,
    mean_and_variance,
)
from helpers import FORMATS, assert_same_bits
from onepass.batchnorm import reference


@pytest.fixture(params=SHAPES, ids=SHAPE_IDS)
def shape(request):
    return request.param


THREADS = (1, 2, 5)


@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, False), (True, True)])
def test_forward_on_exact_data(rng, shape, dtype, relu, residual):
    problem = Problem(rng, *shape, dtype, exact, residual)
    statistics = reference.statistics(problem.last(problem.x), 1e-5)
    start = [abs(rng.normal(size=problem.weight.shape)).astype(dtype) for _ in range(2)]
    count = problem.x.size // len(problem.weight)
    expected_running = (
        reference.running(start[0], statistics.mean, 0.1),
        reference.running(start[1], statistics.var * (count / (count - 1)), 0.1),
    )
    expected_y = problem.expected_y(statistics.mean, statistics.invstd, relu)
    kept = [array.astype(np.float64) for array in expected_running]
    expected_inference = problem.expected_y(kept[0], 1 / np.sqrt(kept[1] + 30), relu)
    options = {"weight": problem.weight, "bias": problem.bias, "residual": problem.residual}
    options |= {"axis": problem.axis, "relu": relu}
    for threads in THREADS:
        running = [array.copy() for array in start]
        options["num_threads"] = threads
        y, mean, invstd = op.batch_norm_train(
            problem.x, running_mean=running[0], running_var=running[1], **options
        )
        assert_same_bits(mean, statistics.mean)
        assert_same_bits(invstd, statistics.invstd)
        assert_same_bits(y, expected_y)
        for found, expected in zip(running, expected_running, strict=True):
            assert_same_bits(found, expected)
        y = op.batch_norm_infer(problem.x, mean=running[0], var=running[1], eps=30.0, **options)
        assert_same_bits(y, expected_inference)


@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_on_exact_data(rng, shape, dtype, relu, residual, frozen):
    problem = Problem(rng, *shape, dtype, exact, residual)
    n = len(problem.weight)
    mean, var = exact(rng, n, np.float64), rng.uniform(0.5, 2, n)
    assert_gradients(problem, mean, var, relu=relu, frozen=frozen, threads=THREADS)


def normal(rng, shape, dtype):
    return rng.normal(3, 2, shape).astype(dtype)


@pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, True)])
def test_any_data_gives_the_same_bits_for_any_number_of_threads(rng, shape, dtype, relu, residual):
    problem = Problem(rng, *shape, dtype, normal, residual)
    options = {"axis": problem.axis, "relu": relu, "residual": problem.residual}
    options |= {"weight": problem.weight, "bias": problem.bias}
    results = []
    for threads in (1, 2, 3, 7):
        options["num_threads"] = threads
        y, mean, invstd = op.batch_norm_train(problem.x, **options)
        both = problem.dy, problem.x
        gradients = [
            *op.batch_norm_backward(*both, saved_mean=mean, saved_invstd=invstd, **options),
            *op.batch_norm_infer_backward(*both, mean=mean, var=invstd, **options),
        ]
        results.append([y, mean, invstd, *gradients])
    y, mean, invstd, *_ = results[0]
    assert_same_bits(y, problem.expected_y(mean, invstd, relu))
    for result in results[1:]:
        for found, first in zip(result, results[0], strict=True):
            assert_same_bits(found, first)


def test_gradients_on_any_data(rng, shape, dtype):
    problem = Problem(rng, *shape, dtype, normal, residual=False)
    _, mean, invstd = op.batch_norm_train(problem.x, axis=problem.axis)
    found = op.batch_norm_backward(
        problem.dy,
        problem.x,
        saved_mean=mean,
        saved_invstd=invstd,
        weight=problem.weight,
        axis=problem.axis,
    )
    expected = problem.expected_gradients(mean, invstd, relu=False, frozen=False)
    # A few roundings of the result, and float64 sums in another order.
    for array, other in zip(found, expected, strict=True):
        tolerance = 4 * np.finfo(dtype).eps + 1e-13
        np.testing.assert_allclose(array, other, rtol=tolerance, atol=tolerance * abs(other).max())


def exact_moments(values):
    """Mean and biased variance of floats, in rational numbers."""
    values = [Fraction(float(v)) for v in values]
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


HARD = {
    **{
        f"offset {offset:g}": lambda samples, offset=offset: samples + offset
        for offset in (0, 1e2, 1e4, 1e5, 1e6, -1e6)
    },
    "times 1e30": lambda samples: samples * 1e30,
    "times 1e-30": lambda samples: samples * 1e-30,
    "first an outlier": lambda samples: np.concatenate([[1e4], samples[1:]]),
    "sixteen outliers": lambda samples: np.concatenate([np.full(16, 1e6), samples[16:]]),
    "two halves": lambda samples: samples + np.where(np.arange(len(samples)) < 2000, 0, 1e4),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("shape", [(4000, 2), (5, 2, 800)], ids=str)
def test_variance_whatever_the_mean(rng, dtype, kind, shape):
    n = np.prod(shape) // 2
    x = np.empty(shape, dtype)
    x[:, 0] = HARD[kind](rng.normal(size=n)).reshape(x[:, 0].shape)
    x[:, 1] = rng.normal(size=x[:, 1].shape)
    mean, var = mean_and_variance(x)
    expected_mean, expected_var = exact_moments(x[:, 0].ravel())
    assert abs(Fraction(var[0]) - expected_var) <= expected_var * Fraction(1e-12)
    spread = Fraction(np.sqrt(float(expected_var)))
    error = abs(Fraction(mean[0]) - expected_mean)
    assert error <= abs(expected_mean) * Fraction(2e-16) + spread * Fraction(1e-12)


def test_variance_where_the_first_samples_are_far_off(rng):
    """Sums about those alone lose three digits more."""
    n = 2_000_000
    x = rng.normal(size=(n, 1)).astype(np.float32)
    x[:16] = 3 * np.sqrt(n)
    _, var = mean_and_variance(x)
    exactly = x.astype(np.longdouble)
    expected = ((exactly - exactly.mean()) ** 2).mean()
    assert abs(var[0] - expected) < 1e-12 * expected


def test_float64_beyond_the_range_of_its_squares(rng):
    small = rng.normal(size=(40, 3))
    _, mean, invstd = op.batch_norm_train(small, eps=1e-300)
    dx, dweight, dbias = op.batch_norm_backward(
        small[::-1].copy(), small, saved_mean=mean, saved_invstd=invstd
    )
    for scale in (1e200, 1e307):
        x = small * scale
        _, wide_mean, wide_invstd = op.batch_norm_train(x, eps=1e-300)
        np.testing.assert_allclose(wide_mean, mean * scale, rtol=1e-12)
        np.testing.assert_allclose(wide_invstd, invstd / scale, rtol=1e-12)
        found = op.batch_norm_backward(
            small[::-1].copy(), x, saved_mean=wide_mean, saved_invstd=wide_invstd
        )
        np.testing.assert_allclose(found[0], dx / scale, rtol=1e-9)
        np.testing.assert_allclose(found[1], dweight, rtol=1e-12)
        assert_same_bits(found[2], dbias)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_what_has_no_weight_makes_no_nan(dtype, momentum):
    x = np.array([[1e30], [-1e30]]) if dtype == np.float32 else np.array([[1e200], [-1e200]])
    mean, var = np.zeros(1, dtype), np.full(1, np.inf, dtype)
    options = {"running_mean": mean, "running_var": var, "momentum": momentum}
    op.batch_norm_train(x.astype(dtype), **options)
    assert var == np.inf
    ordinary = np.array([[1.0], [3.0]], dtype)
    op.batch_norm_train(ordinary, **options)
    assert var == (2.0 if momentum else np.inf)


def test_weights_near_the_end_of_the_range(dtype):
    """An overflow on the way must not be multiplied with a 0."""
    most = np.finfo(dtype).max
    weight, bias = np.array([most / 4, 1.0], dtype), np.array([0.5, 2.0], dtype)
    x = np.array([[0.25, 1.0], [0.25, 3.0]], dtype)
    for eps in (1e-5, 1e-300):
        y, *_ = op.batch_norm_train(x, weight=weight, bias=bias, eps=eps)
        assert (y[:, 0] == 0.5).all()
        np.testing.assert_allclose(y[:, 1], [1, 3], rtol=1e-5)


def test_a_constant_statistic_keeps_x_out_of_its_gradient(dtype):
    x = np.array([[np.inf], [np.nan], [3.0]], dtype)
    dx, *_ = op.batch_norm_infer_backward(
        np.ones_like(x), x, mean=np.zeros(1), var=np.array([3.0]), eps=1.0
    )
    assert (dx == 0.5).all()


def test_relu_passes_a_nan_and_its_gradient(dtype):
    x = np.array([[np.nan, 1.0], [1.0, 3.0]], dtype)
    nan = np.array([[0.0, np.nan], [0.0, 0.0]], dtype)
    options = {"mean": np.zeros(2), "var": np.ones(2), "relu": True, "residual": nan}
    y = op.batch_norm_infer(x, **options)
    assert np.isnan(y).tolist() == [[True, True], [False, False]]
    dy = np.full((2, 2), 2, dtype)
    *_, dresidual = op.batch_norm_infer_backward(dy, x, **options)
    assert_same_bits(dresidual, dy)


@pytest.mark.parametrize("offset", [0, 1e3, 1e4, 1e5])
def test_y_does_not_lose_a_large_mean(rng, offset):
    """At 1e5, folding the mean into the bias is off by 8e-3; a float32 mean by 8e-4."""
    x = (rng.normal(size=(4000, 3)) + offset).astype(np.float32)
    exactly = x.astype(np.float64)
    exactly = (exactly - exactly.mean(0)) / np.sqrt(exactly.var(0) + 1e-5)
    y, *_ = op.batch_norm_train(x)
    assert abs(y - exactly).max() < 1e-6


CONSTANTS = [100.0, 1 / 3, 1e10, -7e-20, "max", "min", "smallest_subnormal", 0.0, -0.0]


@pytest.mark.parametrize("eps", [1e-5, 1e-300])
def test_a_constant_channel_gives_exactly_the_bias(shape, dtype, eps):
    (dimensions, axis) = shape
    bias = np.linspace(-3, 3, dimensions[axis]).astype(dtype)
    weight = np.full_like(bias, 1e3)
    for value in CONSTANTS:
        constant = getattr(np.finfo(dtype), value) if isinstance(value, str) else dtype(value)
        x = np.full(dimensions, constant)
        y, mean, _ = op.batch_norm_train(x, weight=weight, bias=bias, axis=axis, eps=eps)
        assert (mean == constant).all(), value
        expected = np.broadcast_to(bias, np.moveaxis(x, axis, -1).shape)
        assert_same_bits(np.moveaxis(y, axis, -1), expected)


@settings(max_examples=200)
@given(data=st.data(), dtype=st.sampled_from(FORMATS), axis=st.sampled_from([0, 1, 2]))
def test_no_nan_from_finite_values(data, dtype, axis):
    finite = st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False, allow_infinity=False)
    dimensions = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    assume(np.prod(dimensions) > dimensions[axis])  # more than one value per channel
    x = data.draw(hnp.arrays(dtype, dimensions, elements=finite))
    small = hnp.arrays(dtype, dimensions[axis], elements=st.floats(-4, 4, width=32))
    affine = [data.draw(small), data.draw(small)]
    y, mean, invstd = op.batch_norm_train(x, weight=affine[0], bias=affine[1], axis=axis)
    assert np.isfinite(mean).all()
    assert np.isfinite(invstd).all()
    assert np.isfinite(y).all()
    with np.errstate(all="ignore"):
        expected = reference.normalize(np.moveaxis(x, axis, -1), mean, invstd, *affine)
    assert_same_bits(y, np.moveaxis(expected, -1, axis).copy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(rng, dtype, bad, shape):
    (dimensions, axis) = shape
    x = normal(rng, dimensions, dtype)
    first = np.moveaxis(x, axis, 0)[0]
    first.flat[first.size // 2] = bad
    y, mean, _ = op.batch_norm_train(x, axis=axis)
    by_channel = np.moveaxis(y, axis, 0)
    assert np.isnan(by_channel[0]).all()
    assert not np.isfinite(mean[0])
    assert np.isfinite(by_channel[1:]).all()


@settings(max_examples=150)
@given(data=st.data(), dtype=st.sampled_from(FORMATS), threads=st.sampled_from([1, 2, 3]))
def test_any_shape_and_any_axis(data, dtype, threads):
    dimensions = data.draw(
        st.lists(st.sampled_from([1, 2, 3, 4, 15, 16, 17, 63, 64, 65]), min_size=2, max_size=4)
    )
    axis = data.draw(st.integers(-len(dimensions), len(dimensions) - 1))
    assume(dimensions[axis] < np.prod(dimensions) < 400_000)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    problem = Problem(rng, tuple(dimensions), axis, dtype, exact, residual=False)
    statistics = reference.statistics(problem.last(problem.x), 1e-3)
    y, mean, invstd = op.batch_norm_train(
        problem.x,
        weight=problem.weight,
        bias=problem.bias,
        eps=1e-3,
        axis=axis,
        num_threads=threads,
    )
    assert_same_bits(mean, statistics.mean)
    assert_same_bits(invstd, statistics.invstd)
    assert_same_bits(y, problem.expected_y(mean, invstd, relu=False))


def test_layouts_agree_on_exact_data(rng, dtype):
    first = exact(rng, (6, 70, 9, 10), dtype)
    weight, bias = rng.normal(size=(2, 70)).astype(dtype)
    expected, *statistics = op.batch_norm_train(first, weight=weight, bias=bias)
    last = np.ascontiguousarray(np.moveaxis(first, 1, -1))
    found, *others = op.batch_norm_train(last, weight=weight, bias=bias, axis=-1)
    assert_same_bits(np.moveaxis(found, -1, 1).copy(), expected)
    for one, other in zip(statistics, others, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("threads", [1, 3])
def test_streamed_results_are_the_same(rng, dtype, threads):
    """Large outputs go past the caches (of most machines: the C++ driver streams small ones)."""
    shape = (5, 3, 420, 421)
    problem = Problem(rng, shape, 1, dtype, exact, residual=True)
    mean, invstd = exact(rng, 3, np.float64), rng.uniform(0.5, 2, 3)
    expected, *others = problem.expected_gradients(mean, invstd, relu=True, frozen=False)
    buffer = np.full(problem.x.size + 200, 7, dtype)
    for offset in (0, 1, 7, 16):
        out = buffer[16 + offset : 16 + offset + problem.x.size].reshape(shape)
        options = {"residual": problem.residual, "out": out, "num_threads": threads}
        options |= {"weight": problem.weight, "bias": problem.bias}
        y, *saved = op.batch_norm_train(problem.x, **options)
        assert_same_bits(y, problem.expected_y(*saved, relu=False))
        dx, *found = op.batch_norm_backward(
            problem.dy, problem.x, saved_mean=mean, saved_invstd=invstd, relu=True, **options
        )
        for array, other in zip([dx, *found], [expected, *others], strict=True):
            assert_same_bits(array, other)
        assert (buffer[: 16 + offset] == 7).all()
        assert (buffer[16 + offset + problem.x.size :] == 7).all()
        buffer.fill(7)
