"""Initialisers: fans by layout, exact bounds, and deviations as far as a sample shows them."""

import inspect
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_same_bits
from onepass import init
from test_registry import assert_documented, section

INITIALISERS = [name for name in init.__all__ if "_" in name]
LAYOUTS = {
    "in_out": [(40, 60), (3, 5, 20, 30)],  # x @ weight; Keras' kernels
    "out_in": [(60, 40), (30, 20, 3, 5)],  # PyTorch's
}
FANS = [(40, 60), (15 * 20, 15 * 30)]
CASES = [
    (name, layout, shape, fans)
    for name in INITIALISERS
    for layout, shapes in LAYOUTS.items()
    for shape, fans in zip(shapes, FANS, strict=True)
]


def deviation(name, fan_in, fan_out, gain=None, mode="fan_in"):
    """The papers': Glorot and Bengio's equation 16, He et al.'s 10 and 14."""
    if name.startswith("xavier"):
        return (gain or 1) * math.sqrt(2 / (fan_in + fan_out))
    return (gain or math.sqrt(2)) / math.sqrt({"fan_in": fan_in, "fan_out": fan_out}[mode])


def draw(name, shape, seed=0, **options):
    return getattr(init, name)(shape, np.random.default_rng(seed), **options)


@pytest.mark.parametrize("name", init.__all__)
def test_documentation_is_whole(name):
    thing = getattr(init, name)
    if name == "Fans":
        assert all(f"{field} : int" in thing.__doc__ for field in thing._fields)
        return
    doc = thing.__doc__
    assert ".. math::" in doc
    assert "TypeError, ValueError" in section(doc, "Raises")
    assert ">>> " in section(doc, "Examples")
    assert section(doc, "Returns")
    assert "PyTorch" in section(doc, "Notes").split("Differs from")[1]
    assert name == "fans" or re.search(r"\b(19|20)\d\d\b", section(doc, "References"))
    assert_documented(inspect.signature(thing).parameters, section(doc, "Parameters"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fans(layout):
    assert [init.fans(shape, layout) for shape in LAYOUTS[layout]] == FANS
    assert init.fans([np.int64(4), 6], layout) == init.fans((4, 6), layout)


@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_fans_are_pytorchs(shape):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert init.fans(shape, "out_in") == theirs


@pytest.mark.parametrize(("name", "layout", "shape", "fans"), CASES)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_deviation_and_mean(name, layout, shape, fans, mode, dtype):
    """Of n draws the mean has deviation s / sqrt(n), the variance s^2 sqrt((k - 1) / n).

    k is the kurtosis: 3 of a normal, 9/5 of a uniform distribution. Five of those are passed once
    in 1.7 million, and the seed is fixed.
    """
    options = {"layout": layout, "dtype": dtype}
    if name.startswith("he"):
        options["mode"] = mode
    expected = deviation(name, *fans, mode=mode)
    rng = np.random.default_rng(1)
    sample = np.concatenate([getattr(init, name)(shape, rng, **options).ravel() for _ in range(20)])
    kurtosis = 3 if name.endswith("normal") else 9 / 5
    sample = sample.astype(float)
    mean_score = sample.mean() / (expected / math.sqrt(sample.size))
    spread = math.sqrt((kurtosis - 1) / sample.size)
    variance_score = ((sample**2).mean() / expected**2 - 1) / spread
    assert abs(mean_score) < 5
    assert abs(variance_score) < 5
    # Tight enough to tell the deviation from one that is 3 % off, in the smallest sample.
    assert 5 * spread < 0.06


@pytest.mark.parametrize(("name", "layout", "shape", "fans"), CASES)
def test_uniform_keeps_its_bound_and_reaches_it(name, layout, shape, fans, dtype):
    bound = math.sqrt(3) * deviation(name, *fans)
    largest = abs(draw(name, shape, layout=layout, dtype=dtype)).max()
    if name.endswith("uniform"):
        # All of 2,400 draws or more are below it with probability 0.996^2400 < 1e-4.
        assert 0.996 * bound < largest <= dtype(bound)
    else:
        assert largest > bound


@pytest.mark.parametrize("name", INITIALISERS)
def test_distribution_is_the_one_it_is_named_after(name):
    """The largest distance between the sample's distribution function and the true one.

    Kolmogorov and Smirnov's: above 1.95 / sqrt(n) once in a thousand; the two distributions are
    0.057 apart where their deviations are the same.
    """
    n = 160_000
    sample = np.sort(draw(name, (400, n // 400), dtype=np.float64).ravel())
    scaled = sample / deviation(name, 400, n // 400)
    if name.endswith("normal"):
        expected = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in scaled])
    else:
        expected = 0.5 * (1 + scaled / math.sqrt(3))
    assert abs(np.arange(1, n + 1) / n - expected).max() < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("name", INITIALISERS)
def test_gain_scales(name):
    plain, doubled = (draw(name, (8, 9), dtype=np.float64, gain=gain) for gain in (1.0, 2.0))
    assert_same_bits(doubled, 2 * plain)  # a power of two rounds nothing


@pytest.mark.parametrize("name", INITIALISERS)
def test_default_gain(name):
    gain = 1.0 if name.startswith("xavier") else math.sqrt(2)
    assert_same_bits(draw(name, (8, 9)), draw(name, (8, 9), gain=gain))


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_new_array_from_the_generator_alone(name):
    one, two = draw(name, (4, 5)), draw(name, (4, 5))
    assert one is not two
    assert one.dtype == np.float32
    assert one.shape == (4, 5)
    assert one.flags.c_contiguous
    assert one.flags.writeable
    assert_same_bits(one, two)
    assert (draw(name, (4, 5), seed=1) != one).all()
    assert_same_bits(one, draw(name, (4, 5), dtype=np.float64).astype(np.float32))
    rng = np.random.default_rng(0)
    first, second = (getattr(init, name)((4, 5), rng) for _ in range(2))
    assert (first != second).all()


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": 5}, "shape: expected a sequence of integers, got 5"),
        ({"shape": (5,)}, "shape: expected at least 2 axes, inputs and outputs, got (5,)"),
        ({"shape": (5, 0)}, "shape[1]: expected an integer >= 1, got 0"),
        ({"shape": (5, 2.0)}, "shape[1]: expected an integer >= 1, got 2.0"),
        ({"gain": 0}, "gain: expected a finite number > 0, got 0"),
        ({"gain": math.nan}, "gain: expected a finite number > 0, got nan"),
        ({"layout": "oi"}, "layout: expected one of 'in_out', 'out_in', got 'oi'"),
        ({"mode": "fan_avg"}, "mode: expected one of 'fan_in', 'fan_out', got 'fan_avg'"),
        ({"dtype": np.float16}, "dtype: expected float32 or float64, got "),
    ],
)
def test_bad_arguments_draw_nothing(name, change, words):
    if "mode" in change and name.startswith("xavier"):
        return
    rng = np.random.default_rng(0)
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(words)):
        getattr(init, name)(**{"shape": (3, 4), "rng": rng, **change})
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("name", INITIALISERS)
def test_generator_is_numpys(name):
    with pytest.raises(TypeError, match="^rng: expected a numpy.random.Generator, got 0"):
        getattr(init, name)((3, 4), 0)


def test_relu_layers_keep_their_scale():
    """What He's gain is for: 30 layers later the mean square is what it was (to sampling noise)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 256))
    for _ in range(30):
        x = np.maximum(x @ init.he_normal((256, 256), rng, dtype=np.float64), 0)
    # The logarithm of a layer's factor has variance about 5 / 256; of 30 layers: deviation 0.77.
    assert abs(math.log((x**2).mean() / 0.5)) < 5 * 0.77
    # Without the gain each layer halves it.
    assert 30 * math.log(2) > 5 * 0.77
