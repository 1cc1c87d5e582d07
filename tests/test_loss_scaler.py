"""The scale's rule by hand and PyTorch's, and its errors. (test_torch_step.py: whole steps.)"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op


def test_rule_by_hand():
    scaler = op.LossScaler(8.0, growth_interval=2)
    opt = op.SGD(np.zeros(1), nonfinite="skip")
    scales = []
    for grad in (1.0, 1.0, 1.0, math.inf, 1.0, 1.0):
        scaler.step(opt, np.array([grad]))
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [8, 16, 16, 8, 8, 16]


def test_gradients_are_unscaled():
    w = np.zeros(1)
    scaler = op.LossScaler(1024.0)
    scaler.step(op.SGD(w, lr=1.0, nonfinite="skip"), scaler.scale(np.array([0.5])))
    assert w == -0.5


def test_stats_are_of_the_unscaled_gradients():
    w, scaler = np.zeros(2), op.LossScaler(1024.0)
    opt = op.SGD(w, lr=1.0, nonfinite="skip")
    info = scaler.step(opt, scaler.scale(np.array([3.0, 4.0])), stats=True)
    assert info.stats[0].grad_norm == 5.0
    assert scaler.step(opt, np.ones(2)).stats is None


def test_one_of_two_optimizers_decides_for_the_scale():
    scaler = op.LossScaler(8.0)
    one, two = (op.SGD(np.zeros(1), nonfinite="skip") for _ in range(2))
    assert scaler.step(one, np.array([math.nan])).skipped
    assert not scaler.step(two, np.array([1.0])).skipped
    scaler.update()
    assert scaler.get_scale() == 4


def test_the_scale_stays_a_float32():
    scaler = op.LossScaler(2.0**127, growth_interval=1)
    opt = op.SGD(np.zeros(1), nonfinite="skip")
    scaler.step(opt, np.zeros(1))
    scaler.update()
    assert scaler.get_scale() == 2.0**127


@pytest.mark.parametrize("backoff", [0.5, 0.1, 0.999, 1e-30])
def test_it_recovers_from_any_number_of_overflows(backoff):
    scaler, w = op.LossScaler(backoff_factor=backoff, growth_interval=1), np.ones(3, np.float32)
    opt = op.SGD(w, lr=1.0, nonfinite="skip")
    for _ in range(200):
        assert scaler.step(opt, np.full(3, np.inf, np.float32)).skipped
        scaler.update()
        assert scaler.get_scale() >= 2.0**-126
    assert scaler.get_scale() == 2.0**-126 or backoff == 0.999
    assert not scaler.step(opt, scaler.scale(np.ones(3, np.float32))).skipped
    np.testing.assert_allclose(w, 0, atol=1e-6)
    before = scaler.get_scale()
    scaler.update()
    assert scaler.get_scale() == 2 * before


def test_the_smallest_scale_is_one_that_a_step_takes():
    scaler, w = op.LossScaler(2.0**-126), np.ones(3, np.float32)
    scaler.step(op.SGD(w, lr=1.0, nonfinite="skip"), scaler.scale(np.ones(3, np.float32)))
    assert (w == 0).all()


def test_a_scale_that_no_step_takes_is_loaded_as_one_that_it_does():
    """PyTorch's becomes 0 in the end."""
    scaler = op.LossScaler()
    for scale in (0.0, 1e-45, 2.0**-127):
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
        assert scaler.get_scale() == 2.0**-126


@given(
    growth=st.floats(1, 100, exclude_min=True),
    backoff=st.floats(1e-3, 1, exclude_max=True),
    interval=st.integers(1, 3),
    scale=st.floats(2.0**-126, 2.0**127),
    finite=st.lists(st.booleans(), max_size=50),
)
def test_any_sequence_is_pytorchs(growth, backoff, interval, scale, finite):
    """As long as PyTorch's scale has an inverse in float32."""
    torch = pytest.importorskip("torch")
    factors = {"growth_factor": growth, "backoff_factor": backoff, "growth_interval": interval}
    ours, theirs = op.LossScaler(scale, **factors), torch.amp.GradScaler("cpu", scale, **factors)
    theirs.scale(torch.ones(()))  # makes the scale
    opt, tensor = op.SGD(np.zeros(1), nonfinite="skip"), torch.zeros(1, requires_grad=True)
    their_opt = torch.optim.SGD([tensor])
    for is_finite in finite:
        grad = 0.0 if is_finite else np.inf
        ours.step(opt, np.array([grad]))
        tensor.grad = torch.tensor([grad])
        theirs.step(their_opt)
        ours.update()
        theirs.update()
        if theirs.get_scale() < 2.0**-126:
            assert ours.get_scale() == 2.0**-126
            return
        assert ours.state_dict() == theirs.state_dict()


def test_misuse():
    scaler = op.LossScaler()
    with pytest.raises(ValueError, match="^update: expected a step since the last update"):
        scaler.update()
    w = np.ones(1)
    with pytest.raises(ValueError, match="^optimizer: expected one with nonfinite='skip', got 'pr"):
        scaler.step(op.SGD(w), np.ones(1))
    assert w == 1
    with pytest.raises(ValueError, match="^update: "):
        scaler.update()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_scale": 0.0}, "init_scale: expected a number in"),
        ({"init_scale": 1e39}, "init_scale: expected a number in"),
        ({"init_scale": 2.0**-127}, "init_scale: expected a number in"),
        ({"growth_factor": 1.0}, "growth_factor: expected a finite number > 1"),
        ({"backoff_factor": 1.0}, r"backoff_factor: expected a number in \(0, 1\)"),
        ({"growth_interval": 0}, "growth_interval: expected an integer >= 1"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        op.LossScaler(**settings)


def test_a_bad_dictionary_changes_nothing():
    scaler = op.LossScaler()
    before = scaler.state_dict()
    for bad in ({}, [], {**before, "extra": 1}, {**before, "scale": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            scaler.load_state_dict(bad)
        assert scaler.state_dict() == before


def test_state_dict_is_a_copy():
    scaler = op.LossScaler(8.0)
    scaler.state_dict()["scale"] = 1.0
    assert scaler.get_scale() == 8
