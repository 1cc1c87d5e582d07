"""Moving averages: the lecture's identity, the weights, and the picture."""

import inspect
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_same_bits
from onepass import ema
from onepass.lab import ema_picture
from test_registry import assert_documented, section

BETAS = st.floats(0, 0.9999)


@pytest.mark.parametrize("name", ema.__all__)
def test_documentation_is_whole(name):
    thing = getattr(ema, name)
    doc = thing.__doc__
    assert "math:" in doc
    assert "TypeError, ValueError" in section(doc, "Raises")
    assert ">>> " in section(doc, "Examples")
    assert name == "picture" or section(doc, "Returns")
    assert_documented(inspect.signature(thing).parameters, section(doc, "Parameters"))


# E[m_t] = E[g] (1 - b^t)


@given(beta=BETAS, value=st.floats(0.01, 100), n=st.integers(1, 300))
def test_identity_for_a_constant_series(beta, value, n):
    """Where g is its own expectation. n roundings of a step, each of at most 1.5 eps |g|."""
    factor = 1 - beta ** np.arange(1, n + 1)
    tolerance = 1.5 * n * np.finfo(float).eps * abs(value)
    series = np.full(n, value)
    np.testing.assert_allclose(ema.average(series, beta), value * factor, rtol=0, atol=tolerance)
    corrected = ema.average(series, beta, bias_correction=True)
    assert (abs(corrected - value) <= tolerance / factor).all()


def test_identity_is_exact_where_nothing_is_rounded():
    series = np.full(40, 3.0)
    assert_same_bits(ema.average(series, 0.5), 3 * (1 - 0.5 ** np.arange(1.0, 41)))
    assert_same_bits(ema.average(series, 0.5, bias_correction=True), series)


@given(beta=BETAS, n=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_identity_by_linearity(beta, n, seed):
    """m_t is the weighted sum of the values, and the weights sum to 1 - b^t."""
    series = np.random.default_rng(seed).uniform(-1, 1, n)
    weights = ema.weights(beta, n)
    assert math.isclose(weights.sum(), 1 - beta**n, rel_tol=0, abs_tol=n * 2e-16)
    assert math.isclose(ema.average(series, beta)[-1], weights @ series[::-1], abs_tol=n * 4e-16)


def test_identity_by_sampling():
    """Of r runs the mean of m_t has deviation s sqrt(sum w^2 / r); five of them, fixed seed."""
    mean, spread, beta, steps, runs = 2.0, 3.0, 0.9, 40, 20_000
    series = np.random.default_rng(5).normal(mean, spread, (steps, runs))
    found = ema.average(series, beta).mean(axis=1)
    t = np.arange(1, steps + 1)
    weights = (1 - beta) * beta ** np.arange(steps)
    error = spread * np.sqrt(np.cumsum(weights**2) / runs)
    assert (abs(found - mean * (1 - beta**t)) < 5 * error).all()
    corrected = ema.average(series, beta, bias_correction=True).mean(axis=1)
    assert (abs(corrected - mean) < 5 * error / (1 - beta**t)).all()
    # And the average is not that of the values: the bias is there to be seen.
    assert (mean - found)[0] > 100 * error[0]


# average


def test_average_is_the_recurrence():
    # m = 0.75 m + 0.25 g from 16
    averages = ema.average([16.0, 0.0, 16.0], beta=0.75, initial=16)
    assert averages.tolist() == [16, 12, 13]
    assert ema.average([16, 0, 16], beta=0.75).tolist() == [4, 3, 6.25]


def test_average_runs_along_the_first_axis(rng, dtype):
    series = rng.normal(size=(7, 3, 2)).astype(dtype)
    averages = ema.average(series, 0.8, initial=np.ones((3, 2)))
    assert averages.shape == series.shape
    for i in np.ndindex(3, 2):
        assert_same_bits(
            averages[(slice(None), *i)], ema.average(series[(..., *i)], 0.8, initial=1)
        )


def test_average_keeps_the_dtype_and_the_series(dtype):
    series = np.arange(5, dtype=dtype)
    before = series.copy()
    assert ema.average(series, 0.9).dtype == dtype
    assert ema.simple(series, 2).dtype == dtype
    assert_same_bits(series, before)
    assert ema.average([1, 2, 3], 0.9).dtype == np.float64
    assert ema.average(np.ones((0, 2), dtype), 0.9).shape == (0, 2)


def test_average_is_adams(rng):
    """Adam's first moment is one."""
    import onepass as op

    series = rng.normal(size=(20, 6))
    opt = op.Adam(np.ones(6), betas=(0.8, 0.9))
    for grad in series:
        opt.step(grad)
    assert_same_bits(opt.state_dict()["state"][0]["exp_avg"], ema.average(series, 0.8)[-1])


def test_average_spreads_what_is_not_finite():
    averages = ema.average([1.0, np.nan, 1.0], 0.5)
    assert np.isnan(averages).tolist() == [False, True, True]


# weights, window, expanded


def test_weights_of_the_lecture():
    np.testing.assert_allclose(ema.weights(0.9, 3), [0.1, 0.09, 0.081], rtol=1e-14)
    assert ema.weights(0, 3).tolist() == [1, 0, 0]


@pytest.mark.parametrize(("beta", "expected"), [(0, 1), (0.5, 2), (0.9, 10), (0.98, 50)])
def test_window(beta, expected):
    assert math.isclose(ema.window(beta), expected)
    # Its newest values have 1 - beta^window of the weight, towards 1 - 1/e for a long one.
    share = ema.weights(beta, expected).sum()
    assert 1 - 1 / math.e - 1e-12 <= share <= 1
    assert beta < 0.9 or share < 1 - 1 / math.e + 0.5 / expected


def test_expanded():
    assert ema.expanded(0.9, 3) == "m_3 = 0.1 g_3 + 0.09 g_2 + 0.081 g_1"
    assert ema.expanded(0.5, 1) == "m_1 = 0.5 g_1"
    assert ema.expanded(0.999, 2) == "m_2 = 0.001 g_2 + 0.000999 g_1"


@given(st.sampled_from([0.0, 0.5, 0.75]), st.integers(1, 6), st.integers(0, 2**32))
def test_expanded_computes_the_average(beta, n, seed):
    series = np.random.default_rng(seed).uniform(1, 2, n)
    total = 0.0
    for weight, index in re.findall(r"([\d.e-]+) g_(\d+)", ema.expanded(beta, n)):
        total += float(weight) * series[int(index) - 1]
    # Each weight is written with four digits.
    assert math.isclose(total, ema.average(series, beta)[-1], rel_tol=1e-3)


# table


def test_table_of_the_lecture():
    """10, 20, 30 at beta 0.9: 0.1 * 10; 0.9 * 1 + 0.1 * 20; 0.9 * 2.9 + 0.1 * 30."""
    assert ema.table([10, 20, 30], beta=0.9).splitlines() == [
        "formula                  numbers               value",
        "m_1 = 0.9 m_0 + 0.1 g_1  0.9 * 0 + 0.1 * 10    1",
        "m_2 = 0.9 m_1 + 0.1 g_2  0.9 * 1 + 0.1 * 20    2.9",
        "m_3 = 0.9 m_2 + 0.1 g_3  0.9 * 2.9 + 0.1 * 30  5.61",
    ]


def test_table_from_an_initial_value_and_corrected():
    (_, line) = ema.table([16], beta=0.75, initial=8).splitlines()
    assert line.split("  ") == ["m_1 = 0.75 m_0 + 0.25 g_1", "0.75 * 8 + 0.25 * 16", "10"]
    (heading, line) = ema.table([16], beta=0.75, bias_correction=True).splitlines()
    assert heading.split()[-1] == "corrected"
    assert line.endswith("0.75 * 0 + 0.25 * 16  4      4 / (1 - 0.75^1) = 16")


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5),
    st.floats(0, 0.99),
    st.floats(-1e3, 1e3),
)
def test_table_says_what_it_computes(series, beta, initial):
    """The numbers of a line, each with four digits, give its value, the average."""
    _, *lines = ema.table(series, beta, initial=initial).splitlines()
    averages = ema.average(series, beta, initial=initial)
    scale = max(map(abs, (*series, initial)))
    for line, expected in zip(lines, averages, strict=True):
        _, numbers, value = re.split("  +", line)
        assert value == f"{expected:.4g}"
        # Four digits: factors and terms are off by 5e-4 of themselves at most.
        assert eval(numbers) == pytest.approx(expected, abs=4e-3 * scale)


# simple


def test_simple_is_pandas_rolling_mean(rng):
    averages = ema.simple([1, 2, 6, 12], 3)
    np.testing.assert_array_equal(averages, [np.nan, np.nan, 3, 20 / 3])
    series = rng.normal(size=(9, 2))
    expected = [series[i - 3 : i + 1].mean(axis=0) for i in range(3, 9)]
    np.testing.assert_allclose(ema.simple(series, 4)[3:], expected, rtol=1e-13)
    assert_same_bits(ema.simple(series, 1), series)
    assert_same_bits(ema.simple([1, 3], 2), [np.nan, 2.0])
    assert np.isnan(ema.simple(series, 10)).all()


# Errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ema.average([1.0], 1.0), "beta: expected a number in [0, 1), got 1.0"),
        (lambda: ema.average([1.0], -0.1), "beta: expected a number in [0, 1), got -0.1"),
        (lambda: ema.average(1.0, 0.5), "series: expected an axis of steps, got 1.0"),
        (lambda: ema.average([1j], 0.5), "series: expected real numbers, got dtype complex128"),
        (lambda: ema.average(["a"], 0.5), "series: expected real numbers, got dtype <U1"),
        (lambda: ema.average([1.0], 0.5, 1), "bias_correction: expected True or False, got 1"),
        (lambda: ema.average([1.0], 0.5, True, 2), "initial: expected 0 for bias_correction, got"),
        (lambda: ema.average([1.0], 0.5, False, [1, 2]), "initial: expected a number, or an array"),
        (lambda: ema.average([1.0], 0.5, False, "a"), "initial: expected a number, or an array"),
        (lambda: ema.table([], 0.5), "series: expected one axis of 1 value or more, got (0,)"),
        (lambda: ema.table([[1.0]], 0.5), "series: expected one axis of 1 value or more, got (1, "),
        (lambda: ema.table([1.0], 1.0), "beta: expected a number in [0, 1), got 1.0"),
        (lambda: ema.table([1.0], 0.5, 0), "bias_correction: expected True or False, got 0"),
        (lambda: ema.table([1.0], 0.5, True, 2), "initial: expected 0 for bias_correction, got"),
        (lambda: ema.table([1.0], 0.5, False, "a"), "initial: expected a number, or an array"),
        (lambda: ema.weights(0.5, 0), "n: expected an integer >= 1, got 0"),
        (lambda: ema.weights(1, 1), "beta: expected a number in [0, 1), got 1"),
        (lambda: ema.window(1), "beta: expected a number in [0, 1), got 1"),
        (lambda: ema.expanded(0.5, 1.0), "n: expected an integer >= 1, got 1.0"),
        (lambda: ema.simple([1.0], 0), "window: expected an integer >= 1, got 0"),
        (lambda: ema.picture([1.0], 0.5, "x.png"), "series: expected one axis of 2 values or more"),
        (lambda: ema.picture(np.ones((2, 2)), 0.5, "x.png"), "series: expected one axis of 2"),
        (lambda: ema.picture([1, 2], 0.5, "x.png", [1, 2]), "initial: expected a number, or an"),
        (lambda: ema.picture([1, 2], 1.0, "x.png"), "beta: expected a number in [0, 1), got 1.0"),
    ],
)
def test_arguments_are_checked(call, words):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(words)):
        call()


# The picture


@pytest.fixture
def figure(monkeypatch):
    """What `picture` has drawn last."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = []
    make = ema_picture.new_figure

    def new_figure(*size):
        drawn.append(make(*size))
        return drawn[-1]

    monkeypatch.setattr(ema_picture, "new_figure", new_figure)
    return drawn


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 0.9, 0.999, 1 - 1e-9])
def test_picture_has_four_panels_and_marks_the_crossing(beta, figure, tmp_path, rng):
    series = 1 + rng.normal(size=50)
    path = tmp_path / "ema.png"
    ema.picture(series, beta, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    over_data, _, _, cumulated = figure[0].axes
    lines = [line.get_ydata() for line in over_data.get_lines()]
    assert_same_bits(lines[0], series)
    assert_same_bits(lines[1], ema.average(series, beta))
    (mark,) = [line for line in cumulated.get_lines() if line.get_marker() == "o"]
    (count,), (share,) = mark.get_data()
    assert 1 - beta**count == share >= 0.95 * (1 - 1e-12)
    assert 1 - beta ** (count - 1) < 0.95  # one fewer is not enough
    (text,) = cumulated.texts
    assert f"newest {count:,}" in text.get_text()


def test_picture_from_an_initial_value(figure, tmp_path, rng):
    series = 1 + rng.normal(size=50)
    ema.picture(series, 0.9, tmp_path / "ema.png", initial=2.5)
    _, exponential, corrected, *_ = figure[0].axes[0].get_lines()
    assert exponential.get_label() == "exponential, from 2.5"
    assert_same_bits(exponential.get_ydata(), ema.average(series, 0.9, initial=2.5))
    assert_same_bits(corrected.get_ydata(), ema.average(series, 0.9, bias_correction=True))


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"onepass\[plot\]"):
        ema.picture([1.0, 2.0], 0.5, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
