"""The BatchNorm layer in a network: modes, several forwards before a backward, and masks."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from batchnorm_cases import arrays
from communicators import Alone
from helpers import assert_same_bits, digest
from interrupting import at_each_place


def layer(p, **given):
    bn = op.BatchNorm(4, dtype=p["x"].dtype, **given)
    bn.weight[:], bn.bias[:] = p["weight"], p["bias"]
    return bn


def seen(bn):
    return digest(bn.state_dict(), bn.weight_grad, bn.bias_grad)


# Modes


def test_the_mode_says_which_statistics(rng):
    p = arrays(rng)
    bn, other = layer(p), layer(p)
    assert bn.training is True
    assert_same_bits(bn(p["x"]), other.forward(p["x"], training=True))
    assert bn.eval() is bn
    assert bn.training is False
    assert_same_bits(bn(p["x"]), other.forward(p["x"], training=False))
    assert_same_bits(bn.forward(p["x"], training=True), other.forward(p["x"], training=True))
    assert bn.train() is bn
    assert bn.training is True
    assert bn.train(False).training is False
    assert seen(bn) == seen(other)
    assert pickle.loads(pickle.dumps(bn)).training is copy.deepcopy(bn).training is False


def test_a_mode_is_checked(rng):
    bn = op.BatchNorm(4)
    with pytest.raises(TypeError, match="^mode: expected True or False, got 1$"):
        bn.train(1)
    bn.training = "yes"
    with pytest.raises(TypeError, match="^training: expected True or False, got 'yes'"):
        bn(arrays(rng)["x"])


def test_frozen_statistics_with_weights_that_train(rng, dtype):
    """dweight = sum(dy * xhat), dbias = sum(dy), dx = dy * weight / sqrt(var + eps)."""
    p = arrays(rng, dtype=dtype)
    bn = layer(p).eval()
    bn.running_mean[:], bn.running_var[:] = p["mean"], p["var"]
    state = digest(bn.running_mean, bn.running_var, bn.num_batches_tracked)
    scale = 1 / np.sqrt(bn.running_var.astype(np.float64) + 1e-5)
    x, dy = (np.moveaxis(p[name].astype(np.float64), 1, -1) for name in ("x", "dy"))
    normal = (x - bn.running_mean) * scale
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(
        np.moveaxis(bn(p["x"]), 1, -1), normal * bn.weight + bn.bias, **close
    )
    np.testing.assert_allclose(
        np.moveaxis(bn.backward(p["dy"]), 1, -1), dy * scale * bn.weight, **close
    )
    np.testing.assert_allclose(bn.weight_grad, (dy * normal).sum((0, 1)), **close)
    np.testing.assert_allclose(bn.bias_grad, dy.sum((0, 1)), **close)
    assert digest(bn.running_mean, bn.running_var, bn.num_batches_tracked) == state


# Several forwards before a backward


@pytest.mark.parametrize("training", [True, False])
def test_each_context_has_the_gradient_of_its_own_forward(rng, training):
    p, others = arrays(rng), [rng.normal(size=(k, 4)).astype("f") for k in (3, 8)]
    inputs = [p["x"], *others]
    bn, alone = layer(p, relu=True), layer(p, relu=True)
    bn(p["dy"])  # has its backward last of all
    passes = [bn.forward(x, training, context=True) for x in inputs]
    expected, sums = [], np.zeros((2, 4), np.float32)
    alone(p["dy"])
    expected_last = alone.backward(p["x"])
    statistics = bn.running_mean.copy(), bn.running_var.copy()
    for x, (y, _) in zip(inputs, passes, strict=True):
        assert_same_bits(y, alone.forward(x, training))
        expected.append((alone.backward(y), alone.weight_grad.copy(), alone.bias_grad.copy()))
    for index in (2, 0, 1):
        y, context = passes[index]
        dx = bn.backward(y, context=context, accumulate=index != 2)
        assert_same_bits(dx, expected[index][0])
        sums = sums + expected[index][1:]
        assert_same_bits(bn.weight_grad, sums[0])
        assert_same_bits(bn.bias_grad, sums[1])
    assert_same_bits(bn.backward(p["x"]), expected_last)
    assert digest(statistics) == digest((alone.running_mean, alone.running_var))


def test_a_context_has_one_backward(rng):
    p = arrays(rng)
    bn = layer(p)
    y, context = bn.forward(p["x"], context=True)
    with pytest.raises(RuntimeError, match="^backward: expected a forward before it .*, got none$"):
        bn.backward(y)
    with pytest.raises(ValueError, match="^dy: "):
        bn.backward(y[:2], context=context)
    assert repr(context) == "<context of a forward: x of shape (6, 4, 5), for a backward>"
    bn.backward(y, context=context)
    before = seen(bn)
    with pytest.raises(RuntimeError, match="no backward yet, got one that has had its backward$"):
        bn.backward(y, context=context)
    assert repr(context) == "<context of a forward: one that has had its backward>"
    assert seen(bn) == before


def test_what_is_no_context_of_this_layer(rng):
    p = arrays(rng)
    bn, other = layer(p), layer(p)
    y, context = other.forward(p["x"], context=True)
    bn(p["x"])
    before = seen(bn)
    for stranger in (bn, copy.copy(other)):
        with pytest.raises(ValueError, match="^context: expected one of this layer, got one of an"):
            stranger.backward(y, context=context)
    for wrong in (7, bn, y):
        with pytest.raises(
            TypeError, match=r"^context: expected what forward\(x, context=True\) re"
        ):
            bn.backward(y, context=wrong)
    with pytest.raises(TypeError, match="^context: expected True or False, got 1$"):
        bn.forward(p["x"], context=1)
    assert seen(bn) == before
    other.backward(y, context=context)
    bn.backward(y)


def test_an_input_that_got_another_shape(rng):
    x = arrays(rng)["x"]
    bn = op.BatchNorm(4)
    y, context = bn.forward(x, context=True)
    x.resize((3, 4, 10), refcheck=False)
    with pytest.raises(
        ValueError, match=r"^x: expected shape \(6, 4, 5\), as in forward, got \(3,"
    ):
        bn.backward(y.reshape(x.shape), context=context)
    x.resize((6, 4, 5), refcheck=False)
    bn.backward(y, context=context)


BAD_GRADS = {
    "shape": (lambda *_: np.ones(3, "f"), ValueError),
    "dtype": (lambda *_: np.ones(4), TypeError),
    "list": (lambda *_: [1.0] * 4, TypeError),
    "read-only": (lambda *_: np.broadcast_to(np.ones(1, "f"), 4), ValueError),
    "weight": (lambda bn, _: bn.weight, ValueError),
    "out": (lambda _, out: out[0, 0, :4], ValueError),
    "bias_grad": (lambda bn, _: bn.bias_grad, ValueError),
}


@pytest.mark.parametrize("case", BAD_GRADS)
def test_gradients_are_added_only_where_they_can_be(rng, case):
    """What a backward that overwrites refuses, with the same words."""
    p, out = arrays(rng), np.zeros((6, 4, 5), np.float32)
    bn, other = layer(p), layer(p)
    make, error = BAD_GRADS[case]
    messages = []
    for accumulate in (False, True):
        bn(p["x"])
        kept, bn.weight_grad = bn.weight_grad, make(bn, out)
        before = seen(bn), digest(out)
        with pytest.raises(error, match=r"^(weight_grad|bias_grad|out): expected ") as raised:
            bn.backward(p["dy"], out=out, accumulate=accumulate)
        assert (seen(bn), digest(out)) == before
        bn.weight_grad = kept
        messages.append(str(raised.value))
    with pytest.raises(TypeError, match="^accumulate: expected True or False, got 1"):
        bn.backward(p["dy"], accumulate=1)
    other(p["x"])
    assert_same_bits(bn.backward(p["dy"], accumulate=True), other.backward(p["dy"]))
    assert_same_bits(bn.weight_grad, other.weight_grad)


def test_without_parameters_there_is_nothing_to_add_to(rng):
    p = arrays(rng)
    bn = op.BatchNorm(4, affine=False)
    for accumulate in (False, True):
        bn(p["x"])
        bn.backward(p["dy"], accumulate=accumulate)
    assert bn.weight_grad is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("comm", [None, Alone()])
def test_an_interrupt_anywhere_leaves_all_or_nothing(rng, masked, comm):
    p = arrays(rng)
    mask = rng.integers(0, 2, (6, 5)).astype(bool) if masked else None

    def fresh():
        bn = layer(p, comm=comm)
        bn(p["x"])
        bn.backward(p["dy"])
        return bn, bn.forward(p["x"], mask=mask, context=True)[1]

    bn, context = fresh()
    before = seen(bn)
    bn.backward(p["dy"], context=context, accumulate=True)
    after = seen(bn)
    assert after != before
    tried = []

    def attempt():
        tried.append(fresh())
        bn, context = tried[-1]
        return lambda: bn.backward(p["dy"], context=context, accumulate=True)

    for where, _ in at_each_place(attempt):
        bn, context = tried[-1]
        found = seen(bn)
        assert found in (before, after), where
        try:
            bn.backward(p["dy"], context=context, accumulate=True)
        except RuntimeError:
            pass
        else:
            assert found == before, where
    assert len(tried) > 10


# Masks


def by_formula(x, dy, mask, weight, bias, eps=1e-5):
    """Rows of all channels: y, and the gradients of sum(dy * y), by the chain rule."""
    kept, n = x[mask], np.count_nonzero(mask)
    mean = kept.mean(axis=0)
    var = ((kept - mean) ** 2).mean(axis=0)
    scale = 1 / np.sqrt(var + eps)
    normal = (x - mean) * scale
    dnormal = dy * weight
    dvar = (dnormal * (x - mean)).sum(axis=0) * -0.5 * scale**3
    dmean = -(dnormal * scale).sum(axis=0)
    through = dmean / n + dvar * 2 * (x - mean) / n  # the mean of kept - mean is 0
    dx = dnormal * scale + np.where(mask[:, None], through, 0)
    y = normal * weight + bias
    return y, mean, var * n / (n - 1), dx, (dy * normal).sum(axis=0), dy.sum(axis=0)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    axis=st.sampled_from([0, 1, 2, -1]),
    fraction=st.sampled_from([0.0, 0.3, 0.9]),
    dy_there=st.booleans(),
    in_place=st.booleans(),
    form=st.sampled_from(["plain", "add and relu"]),
)
def test_a_mask_leaves_positions_out_of_the_statistics(
    seed, axis, fraction, dy_there, in_place, form
):
    rng = np.random.default_rng(seed)
    shape = [5, 6, 7]
    shape[axis] = 4
    p = arrays(rng, shape, np.float64)
    mask = rng.random(np.moveaxis(p["x"], axis, -1).shape[:-1]) >= fraction
    mask.flat[:2] = True
    bn = layer(p, axis=axis, relu=form != "plain", momentum=0.25)
    where = np.moveaxis(np.broadcast_to(mask[..., None], (*mask.shape, 4)), -1, axis)
    if not dy_there:
        p["dy"][~where] = 0

    def rows(array):
        return np.moveaxis(array, axis, -1).reshape(-1, 4)

    residual = rng.normal(size=shape) if form != "plain" else None
    y = bn.forward(p["x"], mask=mask, residual=residual)
    given = mask.ravel(), p["weight"], p["bias"]
    expected_y, *_ = by_formula(rows(p["x"]), rows(p["dy"]), *given)
    dy = rows(p["dy"])
    if residual is not None:
        expected_y = expected_y + rows(residual)
        dy = dy * (expected_y > 0)
        expected_y = np.maximum(expected_y, 0)
    _, mean, var, dx, dweight, dbias = by_formula(rows(p["x"]), dy, *given)
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(rows(y), expected_y, **close)
    np.testing.assert_allclose(bn.running_mean, 0.25 * mean, **close)
    np.testing.assert_allclose(bn.running_var, 0.75 + 0.25 * var, **close)
    mask[...] = True  # a forward keeps its own
    found = bn.backward(p["dy"], out=p["dy"] if in_place else None)
    if residual is not None:
        found, dresidual = found
        np.testing.assert_allclose(rows(dresidual), dy, **close)
    np.testing.assert_allclose(rows(found), dx, **close)
    np.testing.assert_allclose(bn.weight_grad, dweight, **close)
    np.testing.assert_allclose(bn.bias_grad, dbias, **close)
    if not dy_there:
        assert not found[~where].any()


def test_what_is_left_out_reaches_nothing_else(rng):
    p, mask = arrays(rng), np.ones((6, 5), bool)
    mask[1], mask[4, 2] = False, False
    results = []
    for junk in (0, np.nan, np.inf):
        x = p["x"].copy()
        x[1], x[4, :, 2] = junk, junk
        bn = layer(p)
        y = bn.forward(x, mask=mask)
        results.append(digest(y[0], y[2:4], y[4, :, :2], bn.state_dict()))
    assert results[0] == results[1] == results[2]


def test_with_running_statistics_a_mask_makes_no_difference(rng):
    p, mask = arrays(rng), np.zeros((6, 5), bool)
    bn, other = layer(p), layer(p)
    for count in (0, 1, 2):  # also where a batch would have no variance
        mask[:count] = True
        assert_same_bits(bn.forward(p["x"], False, mask=mask), other.forward(p["x"], False))
        assert_same_bits(bn.backward(p["dy"]), other.backward(p["dy"]))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True] * 6, TypeError, "mask: expected a NumPy array, got list"),
        (np.ones((6, 5)), TypeError, "mask: expected dtype bool, got float64"),
        (
            np.ones(6, bool),
            ValueError,
            r"mask: expected shape \(6, 5\), x's without the channels, ",
        ),
        (
            np.eye(6, 5) * np.eye(6, 5)[0] > 0,
            ValueError,
            "mask: expected at least 2 positions that",
        ),
        (
            np.zeros((6, 5), bool),
            ValueError,
            "mask: expected at least 2 positions that are True, g",
        ),
    ],
    ids=["list", "dtype", "shape", "one", "none"],
)
def test_a_bad_mask_changes_nothing(rng, mask, error, message):
    p = arrays(rng)
    bn, other = layer(p), layer(p)
    for one in (bn, other):
        one(p["x"])
    with pytest.raises(error, match=f"^{message}"):
        bn.forward(p["x"], mask=mask)
    with pytest.raises(TypeError, match="^x: expected a NumPy array, got list"):
        bn.forward(p["x"].tolist(), mask=mask)
    with pytest.raises(ValueError, match="^axis: "):
        op.BatchNorm(4, axis=7).forward(p["x"], mask=mask)
    assert_same_bits(bn.backward(p["dy"]), other.backward(p["dy"]))
    assert seen(bn) == seen(other)
