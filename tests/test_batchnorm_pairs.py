"""Options of the BatchNorm layer, two at a time: 16 bits, masks, contexts, ranks and modes."""

import itertools

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import arrays
from communicators import outcomes
from helpers import SMALL_FORMATS, assert_same_bits, digest

SMALL = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: np.dtype(dtype).name)


def in_memory(layout, array):
    """The same numbers, in another order of memory or with gaps."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "channels last":
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)).swapaxes(-1, 1).swapaxes(-1, 2)
    if layout == "slice":
        return np.repeat(array, 2, axis=2)[:, :, ::2]
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    return array


def layer(rng, **given):
    bn = op.BatchNorm(4, **given)
    bn.weight[:], bn.bias[:] = rng.normal(size=(2, 4))
    bn.running_mean[:], bn.running_var[:] = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    return bn


def passes(bn, inputs, mask, training, residual):
    """All results of two forwards that wait for their backwards, those of x's dtype first."""
    waiting = [
        bn.forward(x, training, mask=mask, residual=x if residual else None, context=True)
        for x, _ in inputs
    ]
    small, rest = [y for y, _ in waiting], []
    for index, ((_, dy), (_, context)) in enumerate(zip(inputs, waiting, strict=True)):
        found = bn.backward(dy, context=context, accumulate=index == 1)
        small += found if residual else [found]
        rest += [bn.weight_grad.copy(), bn.bias_grad.copy()]
    return small, [*rest, bn.state_dict()]


@SMALL
@pytest.mark.parametrize("layout", ["C", "F", "channels last", "slice", "reversed"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all"])
@pytest.mark.parametrize("form", ["plain", "relu", "add and relu"])
def test_16_bits_are_float32_rounded(rng, small, layout, training, masked, form):
    inputs = rng.normal(1, 2, size=(2, 2, 6, 4, 5, 3)).astype(small)
    mask = rng.random((6, 5, 3)) < 0.6 if masked else None
    seed = rng.integers(2**32)

    def results(dtype):
        bn = layer(np.random.default_rng(seed), relu=form != "plain")
        given = [[in_memory(layout, one.astype(dtype)) for one in pair] for pair in inputs]
        return passes(bn, given, mask, training, form == "add and relu")

    found, rest = results(small)
    expected, expected_rest = results(np.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == small
        assert_same_bits(one, other.astype(small))
    assert digest(rest) == digest(expected_rest)


@SMALL
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_16_bits_on_three_ranks_are_float32_rounded(rng, small, masked, training):
    """The first rank has no row, and the second no position that counts."""
    inputs = rng.normal(1, 2, size=(2, 2, 9, 4, 5)).astype(small)
    mask = rng.random((9, 5)) < 0.6 if masked else None
    if masked:
        mask[:3] = False
    seed = rng.integers(2**32)

    def results(dtype):
        def work(comm):
            own = np.split(np.arange(9), [0, 3])[comm.rank]
            bn = layer(np.random.default_rng(seed), relu=True, comm=comm)
            given = [[one[own].astype(dtype) for one in pair] for pair in inputs]
            return passes(bn, given, None if mask is None else mask[own], training, True)

        return outcomes(3, work)

    for (found, rest), (expected, expected_rest) in zip(
        results(small), results(np.float32), strict=True
    ):
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other.astype(small))
        assert digest(rest) == digest(expected_rest)


@SMALL
def test_running_statistics_anew_of_16_bits(rng, small):
    batches, mask = rng.normal(size=(3, 8, 4, 5)).astype(small), rng.random((8, 5)) < 0.6
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    op.update_bn(bn, batches, lambda x: bn(x, mask=mask))
    op.update_bn(other, batches.astype(np.float32), lambda x: other(x, mask=mask))
    assert digest(bn.state_dict()) == digest(other.state_dict())
    assert bn.num_batches_tracked == 3


def test_running_statistics_anew_on_ranks_and_with_a_mask(rng):
    """The plain average over batches of mean and unbiased variance, of what counts on all ranks."""
    batches, mask = rng.normal(size=(3, 9, 4)), rng.random(9) < 0.6
    mask[:2] = True

    def work(comm):
        own = np.split(np.arange(9), [2, 2])[comm.rank]
        bn = op.BatchNorm(4, dtype=np.float64, comm=comm)
        op.update_bn(bn, batches, lambda x: bn(x[own], mask=mask[own]))
        return bn.state_dict()

    states = outcomes(3, work)
    kept = batches[:, mask]
    np.testing.assert_allclose(states[0]["running_mean"], kept.mean((0, 1)), atol=1e-13)
    expected = kept.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(states[0]["running_var"], expected, rtol=1e-12)
    assert digest(states[0]) == digest(states[1]) == digest(states[2])


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
def test_a_context_waits_while_the_statistics_move(rng, masked, training):
    """Through another forward, statistics anew, a reset and a state that is loaded."""
    p = arrays(rng)
    mask = rng.random((6, 5)) < 0.6 if masked else None
    seed = rng.integers(2**32)
    bn, other = (layer(np.random.default_rng(seed)) for _ in range(2))
    y, context = bn.forward(p["x"], training, mask=mask, context=True)
    assert_same_bits(y, other.forward(p["x"], training, mask=mask))
    state = bn.state_dict(prefix="first.")
    bn.forward(p["dy"])
    op.update_bn(bn, [p["dy"]], bn)
    bn.reset_running_stats()
    bn.load_state_dict(state, prefix="first.")
    assert_same_bits(bn.backward(p["dy"], context=context), other.backward(p["dy"]))
    assert digest(bn.state_dict()) == digest(other.state_dict())
    assert_same_bits(bn.weight_grad, other.weight_grad)


@SMALL
def test_a_state_of_16_bits_under_a_prefix(rng, small):
    """A checkpoint in 16 bits is widened, which changes no number; float64 is no kind of them."""
    values = {"weight": rng.normal(size=4), "bias": rng.normal(size=4)}
    values |= {"running_mean": rng.normal(size=4), "running_var": rng.uniform(0.5, 2, 4)}
    state = {f"bn1.{name}": value.astype(small) for name, value in values.items()}
    bn = op.BatchNorm(4)
    bn.load_state_dict({**state, "bn2.weight": np.ones(7, small)}, prefix="bn1.")
    for name, value in values.items():
        assert_same_bits(getattr(bn, name), value.astype(small).astype(np.float32))
    x = rng.normal(size=(6, 4, 5)).astype(small)
    wide = op.BatchNorm(4)
    wide.load_state_dict(bn.state_dict(prefix="a."), prefix="a.")
    for training, masked in itertools.product((True, False), repeat=2):
        mask = rng.random((6, 5)) < 0.6 if masked else None
        expected = wide.forward(x.astype(np.float32), training, mask=mask).astype(small)
        assert_same_bits(bn.forward(x, training, mask=mask), expected)
