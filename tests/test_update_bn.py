"""Running statistics anew, for weights that no batch has been through."""

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import arrays
from helpers import assert_same_bits, digest
from interrupting import at_each_place


def test_running_statistics_anew_are_the_plain_average(rng):
    """Those of the averaged weights, in two layers of a network in NumPy."""
    batches = rng.normal(size=(3, 8, 4))
    first, second = op.BatchNorm(4, dtype=np.float64), op.BatchNorm(4, dtype=np.float64)
    first(batches[0])
    second(batches[0])
    first.eval()
    second.momentum = None
    w = np.diag([1.0, 2.0, 3.0, 4.0])
    opt = op.SGD([w], lr=1.0, swa_start=1)
    for _ in range(2):
        opt.step([-np.eye(4)])
    with opt.averaged():
        shown = w.copy()
        op.update_bn([first, second, first], batches, lambda x: second(first(x) @ w))
    inner = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) @ shown for x in batches]
    for bn, inputs in ((first, batches), (second, inner)):
        np.testing.assert_allclose(bn.running_mean, np.mean(inputs, axis=(0, 1)), atol=1e-13)
        expected = np.mean([np.var(x, axis=0, ddof=1) for x in inputs], axis=0)
        np.testing.assert_allclose(bn.running_var, expected, rtol=1e-12)
        assert bn.num_batches_tracked == 3
    assert (first.training, second.training) == (False, True)
    assert (first.momentum, second.momentum) == (0.1, None)


def test_one_layer_and_functions_for_batches(rng):
    batches = rng.normal(size=(3, 8, 4))
    bn, other = op.BatchNorm(4, dtype=np.float64), op.BatchNorm(4, dtype=np.float64, momentum=None)
    untracked = op.BatchNorm(4, track_running_stats=False, dtype=np.float64)
    for x in batches:
        other(x)
    op.update_bn(bn, batches, bn)
    assert digest(bn.state_dict()) == digest(other.state_dict())
    op.update_bn((bn, untracked), (lambda x=x: bn(untracked(x)) for x in batches))
    assert bn.num_batches_tracked == 3


def test_a_backward_that_waits_is_still_there(rng):
    p = arrays(rng)
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    bn(p["x"])
    other(p["x"])
    op.update_bn(bn, [p["dy"]], bn)
    assert_same_bits(bn.backward(p["dy"]), other.backward(p["dy"]))


def fails(_):
    raise OSError("the file is gone")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda bn, x: (bn, [x, x[:, :3]], bn), ValueError, "x: expected 4 channels on axis 1"),
        (lambda bn, x: (bn, map(fails, [x]), bn), OSError, "the file is gone"),
        (lambda bn, _: (bn, [], bn), ValueError, "batches: expected at least one, got none"),
        (
            lambda bn, x: (bn, [x]),
            TypeError,
            "batches: expected functions, as there is no forward ",
        ),
        (lambda bn, _: (bn, 7, bn), TypeError, "batches: expected an iterable, got int"),
        (lambda bn, x: (bn, [x], 7), TypeError, "forward: expected a function of a batch, got int"),
        (
            lambda bn, x: ([bn, 3], [x], bn),
            TypeError,
            r"layers\[1\]: expected a BatchNorm, got int",
        ),
        (lambda bn, x: (3, [x], bn), TypeError, "layers: expected BatchNorm layers, got int"),
        (
            lambda bn, x: (bn, [x], lambda x: bn.forward(x, training=False)),
            ValueError,
            "forward: expected it to run every layer in the layer's own mode",
        ),
    ],
)
def test_an_update_that_fails_changes_nothing(rng, given, error, message):
    x = arrays(rng)["x"]
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    for one in (bn, other):
        one.forward(x)
        one.eval()
    with pytest.raises(error, match=f"^{message}"):
        op.update_bn(*given(bn, x))
    assert (bn.training, bn.momentum) == (False, 0.1)
    assert digest(bn.state_dict()) == digest(other.state_dict())
    assert_same_bits(bn.backward(x), other.backward(x))


def test_an_interrupt_in_an_update(rng):
    p = arrays(rng)

    def fresh():
        bn = op.BatchNorm(4)
        bn(p["x"])
        return bn.eval()

    done = fresh()
    before = digest(done.state_dict())
    op.update_bn(done, [p["x"], p["dy"]], done)
    allowed = {before, digest(done.state_dict())}
    tried = []

    def attempt():
        tried.append(fresh())
        return lambda: op.update_bn(tried[-1], [p["x"], p["dy"]], tried[-1])

    for where, _ in at_each_place(attempt, at_most=1):
        bn = tried[-1]
        assert digest(bn.state_dict()) in allowed, where
        assert (bn.training, bn.momentum) == (False, 0.1), where
    assert len(tried) > 20
