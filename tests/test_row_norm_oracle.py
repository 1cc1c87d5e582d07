"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm equal their NumPy reference.

To the bit where the sums are exact, as those of small multiples of one power of two are; elsewhere
the statistics are held against exact arithmetic, and everything after them is equal again.
"""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import FORMATS, assert_same_bits
from row_norm_cases import CASES, ONE_OF_EACH, Case, exact

THREADS = (1, 2, 5)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=ONE_OF_EACH, ids=lambda case: case.kind)
def kind(request):
    return request.param


def assert_all_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


def test_forward_on_exact_data(rng, case, dtype):
    p = case.problem(rng, dtype, exact)
    expected = case.expected_forward(p)
    for threads in THREADS:
        assert_all_same(case.forward(p, eps=1e-5, num_threads=threads), expected)


def test_backward_on_exact_data(rng, case, dtype):
    p = case.problem(rng, dtype, exact)
    expected = case.expected_backward(p)
    for threads in THREADS:
        assert_all_same(case.backward(p, num_threads=threads), expected)


def test_any_data_gives_the_same_bits_for_any_number_of_threads(rng, case, dtype):
    p = case.problem(rng, dtype)
    results = []
    for threads in (1, 2, 3, 7, 64):
        y, mean, invstd = case.forward(p, num_threads=threads)
        gradients = case.backward({**p, "mean": mean, "invstd": invstd}, num_threads=threads)
        results.append([y, mean, invstd, *gradients])
    for result in results[1:]:
        assert_all_same(result, results[0])
    y, mean, invstd, *gradients = results[0]
    assert_all_same([y], case.expected_forward(p, mean, invstd)[:1])
    expected = case.expected_backward({**p, "mean": mean, "invstd": invstd})
    # A few roundings of the result, and float64 sums in another order.
    tolerance = 8 * np.finfo(dtype).eps + 1e-13
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * abs(other).max())


@settings(max_examples=60)
@given(data=st.data(), dtype=st.sampled_from(FORMATS), threads=st.sampled_from([1, 3]))
def test_any_shape(data, dtype, threads):
    size = st.sampled_from([1, 2, 3, 15, 16, 17, 63, 65, 130, 600])
    kind = data.draw(st.sampled_from(["layer", "rms", "group", "instance"]))
    groups, per_group = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    shape = (data.draw(size), groups * per_group, data.draw(size))
    setting = groups if kind == "group" else None
    if kind in ("layer", "rms"):
        setting = shape[data.draw(st.integers(0, 2)) :]
    assume(np.prod(shape) < 60_000)
    case = Case(kind, shape, setting)
    p = case.problem(np.random.default_rng(data.draw(st.integers(0, 2**32))), dtype, exact)
    assert_all_same(case.forward(p, eps=1e-5, num_threads=threads), case.expected_forward(p))
    assert_all_same(case.backward(p, num_threads=threads), case.expected_backward(p))


@pytest.mark.parametrize("offset", [0, 1e4, -1e6])
@pytest.mark.parametrize("n", [300, 17_000])
def test_variance_whatever_the_mean(rng, dtype, offset, n):
    x = rng.normal(size=(2, n)).astype(dtype)
    x[0] += dtype(offset)
    x[1, :16] += 1e4  # the first ones are far off
    y, mean, invstd = op.layer_norm(x, normalized_shape=n, eps=1e-300)
    for row in range(2):
        values = [Fraction(float(v)) for v in x[row]]
        exact_mean = sum(values) / n
        variance = sum((v - exact_mean) ** 2 for v in values) / n
        assert abs(mean[row] - float(exact_mean)) <= 1e-15 * abs(float(exact_mean)) + 1e-12
        assert invstd[row] == pytest.approx(float(variance) ** -0.5, rel=1e-11)
    if dtype == np.float32:
        exactly = (x.astype(np.float64) - mean[:, None]) * invstd[:, None]
        np.testing.assert_allclose(y, exactly, rtol=0, atol=1e-6 * abs(exactly).max())


@pytest.mark.parametrize("offset", [0, 3, -300, 1e5])
@pytest.mark.parametrize("case", [c for c in CASES if c.centered and 900 < np.prod(c.shape) < 5e4])
def test_gradients_of_weights_whatever_the_mean(rng, case, offset):
    p = case.problem(rng, np.float32)
    p["x"] += np.float32(offset)
    _, mean, invstd = case.forward(p)
    _, *gradients = case.backward({**p, "mean": mean, "invstd": invstd})
    x, dy = (case.rows(p[n], p["weight"], p["bias"]).x.astype(np.longdouble) for n in ("x", "dy"))
    terms = dy * (x - mean.reshape(-1, 1)) * invstd.reshape(-1, 1), dy
    for found, of_weight in zip(gradients, terms, strict=True):
        expected, size = case.of_weights(of_weight), case.of_weights(abs(of_weight))
        assert (abs(found - expected) <= 2 * np.finfo(np.float32).eps * size).all()


def test_the_mean_square_is_exact(rng, dtype):
    x = rng.normal(3, 2, (3, 1000)).astype(dtype)
    _, invrms = op.rms_norm(x, normalized_shape=1000, eps=1e-300)
    for row, found in zip(x, invrms, strict=True):
        square = sum(Fraction(float(v)) ** 2 for v in row) / 1000
        assert found == pytest.approx(float(square) ** -0.5, rel=1e-15)


@pytest.mark.parametrize("scale", [1e-100, 1e200, 1e307])
def test_float64_beyond_the_range_of_its_squares(rng, kind, scale):
    p = kind.problem(rng, np.float64)
    wide = {**p, "x": p["x"] * scale}
    y, mean, invstd = kind.forward(p, eps=1e-300)
    found = kind.forward(wide, eps=1e-300)
    for one, other in zip(found, (y, mean * scale, invstd / scale), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)
    expected = kind.backward({**p, "mean": mean, "invstd": invstd})
    found = kind.backward({**wide, "mean": found[1], "invstd": found[2]})
    for one, other in zip(found, (expected[0] / scale, *expected[1:]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


CONSTANTS = [100.0, 1 / 3, 0.01, 1e10, -7e-20, "max", "min", "smallest_subnormal", 0.0]


@pytest.mark.parametrize("case", [c for c in CASES if c.centered and np.prod(c.shape) < 60_000])
def test_a_constant_row_gives_exactly_the_bias(case, dtype):
    n = np.prod(case.weight_shape)
    bias = np.linspace(-3, 3, n).astype(dtype).reshape(case.weight_shape)
    for value, eps in itertools.product(CONSTANTS, (1e-5, 1e-300)):
        constant = getattr(np.finfo(dtype), value) if isinstance(value, str) else dtype(value)
        p = {"x": np.full(case.shape, constant), "weight": np.full_like(bias, 1e3), "bias": bias}
        y, mean, _ = case.forward(p, eps=eps)
        assert (mean == constant).all()
        np.testing.assert_array_equal(y.ravel(), case.rows(p["x"], bias, bias).bias.ravel())


@pytest.mark.parametrize("case", [c for c in CASES if c.centered and np.prod(c.shape) < 60_000])
def test_a_constant_row_adds_nothing_to_the_gradient_of_its_weight(rng, case, dtype):
    p = case.problem(rng, dtype)
    most = 1e-12 * abs(p["dy"]).sum()
    for value, eps in itertools.product(CONSTANTS, (1e-5, 1e-300)):
        constant = getattr(np.finfo(dtype), value) if isinstance(value, str) else dtype(value)
        p["x"] = np.full(case.shape, constant)
        _, p["mean"], p["invstd"] = case.forward(p, eps=eps)
        assert (abs(case.backward(p)[1]) <= most).all()


@settings(max_examples=100)
@given(data=st.data(), dtype=st.sampled_from(FORMATS), kind=st.sampled_from(ONE_OF_EACH))
def test_no_nan_from_finite_values(data, dtype, kind):
    finite = st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False, allow_infinity=False)
    x = data.draw(hnp.arrays(dtype, kind.shape, elements=finite))
    small = hnp.arrays(dtype, kind.weight_shape, elements=st.floats(-4, 4, width=32))
    p = {"x": x, "weight": data.draw(small), "bias": data.draw(small)}
    y, mean, invstd = kind.forward(p)
    assert np.isfinite(mean).all()
    assert np.isfinite(invstd).all()
    assert np.isfinite(y).all()
    assert_same_bits(y, kind.expected_forward(p, mean, invstd)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_alone(rng, kind, dtype, bad):
    p = kind.problem(rng, dtype)
    p["x"].reshape(-1)[1] = bad
    y, _, invstd = kind.forward(p)
    rows = kind.rows(y, p["weight"], p["weight"]).x
    assert np.isnan(rows[0, 1])
    assert kind.centered <= np.isnan(rows[0]).all()
    assert np.isfinite(rows[1:]).all()
    assert not invstd.ravel()[0] > 0


def test_results_past_the_caches_are_the_same(rng):
    """Large outputs go past the caches, wherever they begin and end."""
    case = Case("layer", (5000, 1201), (1201,))
    p = case.problem(rng, np.float32)
    mean, invstd = np.zeros(5000), np.ones(5000)
    p |= {"mean": mean, "invstd": invstd}
    expected = case.expected_forward(p, *case.forward(p)[1:])[0]
    gradient = case.expected_backward(p)[0]
    buffer = np.full(p["x"].size + 200, 7, np.float32)
    for offset in (0, 1, 16):
        out = buffer[16 + offset : 16 + offset + p["x"].size].reshape(case.shape)
        assert_same_bits(case.forward(p, out=out, num_threads=2)[0], expected)
        found = case.backward(p, out=out, num_threads=2)[0]
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)
        assert (buffer[: 16 + offset] == 7).all()
        assert (buffer[16 + offset + p["x"].size :] == 7).all()
        buffer.fill(7)
