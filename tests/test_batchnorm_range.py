"""BatchNorm at the ends of the range: no NaN from finite values, and a bound on the variance."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from batchnorm_cases import Problem, assert_gradients, mean_and_variance
from helpers import FORMATS, assert_same_bits
from onepass.batchnorm import reference


def finite(dtype, *, low=None):
    """Finite values, those at the ends of the range often."""
    info = np.finfo(dtype)
    ends = [0.0, info.max, info.max / 2, np.sqrt(info.max), 1.0, info.tiny, info.smallest_subnormal]
    ends = [float(dtype(end)) for end in ends]
    if low is None:
        ends += [-end for end in ends]
    width = np.dtype(dtype).itemsize * 8
    anything = st.floats(low, width=width, allow_nan=False, allow_infinity=False)
    return st.sampled_from(ends) | anything | st.floats(0 if low == 0 else -4, 4, width=32)


SHAPES = [((2, 1), 1), ((5, 3), 1), ((3, 2, 4), 1), ((3, 4, 2), -1), ((2, 2, 70), 1), ((40, 3), 1)]


@st.composite
def passes(draw):
    """The arguments of all four functions, each value anywhere in the range of its dtype."""
    dtype = draw(st.sampled_from(FORMATS))
    shape, axis = draw(st.sampled_from(SHAPES))
    n = shape[axis]
    whole = hnp.arrays(dtype, shape, elements=finite(dtype))
    vector = hnp.arrays(dtype, n, elements=finite(dtype))
    relu = draw(st.booleans())
    return {
        "x": draw(whole),
        "dy": draw(whole),
        "options": {
            "axis": axis,
            "relu": relu,
            "residual": draw(whole) if draw(st.booleans()) else None,
            "weight": draw(vector),
            "bias": draw(vector),
        },
        "mean": draw(hnp.arrays(np.float64, n, elements=finite(np.float64))),
        "var": draw(hnp.arrays(np.float64, n, elements=finite(np.float64, low=0))),
        "eps": draw(finite(np.float64, low=0).filter(lambda eps: eps > 0)),
    }


def no_nan(arrays):
    return not any(np.isnan(array).any() for array in arrays)


def in_place(function, dy, x, **options):
    """The same where each of the arrays that may be overwritten is."""
    for name in ("dy", "x", "residual"):
        given = {"dy": dy, "x": x, "residual": options["residual"]}
        given = {key: None if array is None else array.copy() for key, array in given.items()}
        if given[name] is not None:
            yield function(**{**options, **given}, out=given[name])


@settings(max_examples=250)
@given(p=passes())
def test_no_nan_from_finite_arguments(p):
    """Statistics that are the batch's own, and such as no batch ever had."""
    both, options = (p["dy"], p["x"]), p["options"]
    y, mean, invstd = op.batch_norm_train(p["x"], eps=p["eps"], **options)
    given = {"mean": p["mean"], "var": p["var"], "eps": p["eps"]}
    results = [y, mean, invstd, op.batch_norm_infer(p["x"], **given, **options)]
    calls = [
        (op.batch_norm_backward, {"saved_mean": mean, "saved_invstd": invstd}),
        (op.batch_norm_backward, {"saved_mean": p["mean"], "saved_invstd": p["var"]}),
        (op.batch_norm_infer_backward, given),
    ]
    for function, statistics in calls:
        found = function(*both, **statistics, **options)
        results += found
        for other in in_place(function, *both, **statistics, **options):
            for array, first in zip(other, found, strict=True):
                assert_same_bits(array, first)
    assert no_nan(results)


@settings(max_examples=250)
@given(data=st.data(), dtype=st.sampled_from(FORMATS), frozen=st.booleans(), relu=st.booleans())
def test_gradients_are_the_references_at_any_scale(data, dtype, frozen, relu):
    """Sums that are exact but for their range: in larger units they are the same."""
    shape, axis = data.draw(st.sampled_from(SHAPES))
    low, high = (-60, 125) if dtype == np.float32 else (-240, 1021)
    exponents = st.integers(low, high) | st.just(high)
    x_scale, dy_scale = 2.0 ** data.draw(exponents), 2.0 ** data.draw(exponents)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def scaled(scale):
        return lambda rng, shape, dtype: (rng.integers(-7, 8, shape) / 4 * scale).astype(dtype)

    problem = Problem(rng, shape, axis, dtype, scaled(x_scale), residual=relu)
    problem.dy = scaled(dy_scale)(rng, shape, dtype)
    n = shape[axis]
    problem.weight = data.draw(hnp.arrays(dtype, n, elements=finite(dtype)))
    mean = rng.integers(-7, 8, n) / 4 * x_scale
    var = data.draw(hnp.arrays(np.float64, n, elements=finite(np.float64, low=0)))
    assert_gradients(problem, mean, var, relu=relu, frozen=frozen, eps=2.0**-1000)


def test_sums_beyond_the_range_are_right(rng):
    """What a channel's sums come to may well be in the range when what they are made of is not."""
    scale = 2.0**1020
    dy = np.array([[1.0], [1.0], [1.0], [-1.0], [-1.0], [-0.5], [1.0]]) * scale * 8
    x = np.array([[3.0], [1.0], [-2.0], [5.0], [-3.0], [-8.0], [4.0]])
    mean, invstd = np.zeros(1), np.full(1, 2.0**-10)
    options = {"saved_mean": mean, "saved_invstd": invstd}
    _, dweight, dbias = op.batch_norm_backward(dy, x, **options)
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(dy.ravel(), x.ravel(), strict=True))
    assert Fraction(dweight[0]) == exact / 2**10
    assert dbias == 1.5 * 2.0**1023  # and 3 * 2**1023 on the way is beyond
    options = {"mean": mean, "var": np.full(1, 2.0**20), "eps": 2.0**-100}
    for out in (None, dy.copy()):
        given = dy if out is None else out
        _, dweight, dbias = op.batch_norm_infer_backward(given, x, **options, out=out)
        assert Fraction(dweight[0]) == exact / 2**10


@pytest.mark.parametrize("name", ["dy", "x"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_gradients(rng, dtype, name, bad):
    """Also where the weight is 0, and in the other channels never."""
    given = {key: rng.normal(size=(20, 3)).astype(dtype) for key in ("dy", "x")}
    _, mean, invstd = op.batch_norm_train(given["x"])
    given[name][4, 1] = bad
    for weight in (None, np.zeros(3, dtype)):
        options = {"weight": weight, "saved_mean": mean, "saved_invstd": invstd}
        dx, dweight, dbias = op.batch_norm_backward(**given, **options)
        assert not np.isfinite(dweight[1])
        assert not np.isfinite(dx[4, 1])
        assert np.isfinite(dbias[1]) == (name == "x")
        for array in (dx, dweight[None], dbias[None]):
            assert np.isfinite(array[:, [0, 2]]).all()


# The variance


BOUND = Fraction(1, 10**11)
"""What batch_norm_train promises for up to ten million values a channel."""

LONG = [(10_000_000, 2, 1), (1, 2, 10_000_000), (153_846, 2, 65), (64, 2, 156_250)]


def exact_variance(values, counts):
    total = sum(counts)
    mean = sum(Fraction(v) * c for v, c in zip(values, counts, strict=True)) / total
    return sum((Fraction(v) - mean) ** 2 * c for v, c in zip(values, counts, strict=True)) / total


@pytest.mark.parametrize("layout", LONG, ids=str)
@pytest.mark.parametrize(
    ("deviations", "deviation"),
    [
        (6.9, 1.0),  # about the first samples: the worst found
        (6.999, 0.83),
        (95.0, 1.3),  # about the mean, which a bound of a hundred deviations did not ask for
        (99.0, 0.7),
    ],
)
def test_variance_at_its_worst(layout, dtype, deviations, deviation):
    """First samples far off, and then two values whose squares are all rounded one way."""
    outer, channels, inner = layout
    n = outer * inner
    one = np.empty(n, dtype)
    one[0::2], one[1::2] = deviation, -deviation
    one[:16] = deviations * deviation
    values = [float(v) for v in (one[0], one[16], one[17])]
    expected = exact_variance(values, [16, n // 2 - 8, n - n // 2 - 8])
    x = np.repeat(one.reshape(outer, 1, inner), channels, axis=1)
    _, var = mean_and_variance(x)
    for found in var:
        assert abs(Fraction(found) - expected) <= BOUND * expected


@pytest.mark.parametrize("shape", [(400_000, 3), (2, 3, 200_000)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_variance_of_long_arrays_whose_first_samples_are_far_off(rng, shape, offset):
    x = (rng.normal(size=shape) + offset).astype(np.float32)
    firsts = x[:16] if x.ndim == 2 else x[0, :, :16]
    firsts += 95
    _, var = mean_and_variance(x)
    exactly = np.moveaxis(x, 1, 0).reshape(3, -1).astype(np.longdouble)
    expected = exactly.var(axis=1)
    assert (abs(var - expected) <= 1e-12 * expected).all()


def test_a_channel_that_is_summed_again_leaves_the_others_alone(rng):
    """Bits of a channel depend on that channel alone."""
    x = rng.normal(size=(3000, 40)).astype(np.float32)
    _, expected = mean_and_variance(x)
    x[:16, 7] = 1e4
    _, var = mean_and_variance(x)
    assert var[7] != expected[7]
    assert_same_bits(np.delete(var, 7), np.delete(expected, 7))
    statistics = reference.statistics(x, 1e-5)
    np.testing.assert_allclose(var, statistics.var, rtol=1e-13)
