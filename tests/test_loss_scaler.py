"""The scale's rule by hand, and its errors. (test_torch_step.py: PyTorch's GradScaler.)"""

import math

import numpy as np
import pytest

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
