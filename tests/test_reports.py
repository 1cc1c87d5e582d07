"""Faults that were reported of other libraries' optimizers: none of them is here."""

import numpy as np
import pytest

import onepass as op
from helpers import accepts, assert_same_bits, digest, fresh_state, shaped

DECOUPLED = [
    pytest.param(
        cls, {name: True for name in cls.checks if name in ("decoupled_weight_decay", "no_prox")}
    )
    for cls in op.optim.registry.values()
    if "decoupled_weight_decay" in cls.checks
]


@pytest.mark.parametrize(("cls", "settings"), DECOUPLED)
class TestDecoupledDecay:
    """bitsandbytes#1992 (it was coupled), #2010 and #2040 (the step decayed too)."""

    def test_without_a_gradient_the_weights_shrink_and_nothing_else(self, cls, settings, dtype):
        w = shaped(cls, settings, np.array([1.5, -2.25, 3.0], dtype))
        shrunk = w * dtype(1 - 0.125 * 0.5)
        opt = cls(w, lr=0.125, weight_decay=0.5, **settings)
        opt.step(np.zeros_like(w))
        assert_same_bits(w, shrunk)
        if not cls.row.start_values(cls.defaults)[0]:
            state = opt.state_dict()["state"][0]
            for name in {"exp_avg", "momentum_buffer"} & state.keys():
                assert not state[name].any()

    def test_the_step_is_that_of_the_smaller_weights(self, cls, settings, dtype, rng):
        w = shaped(cls, settings, rng.normal(size=50).astype(dtype))
        smaller = w * dtype(0.5)
        both = cls(w, lr=1.0, weight_decay=0.5, **settings)
        plain = cls(smaller, lr=1.0, weight_decay=0.0, **settings)
        for opt in (both, plain):
            opt.step(100 * np.arange(50).astype(dtype).reshape(w.shape))
        assert_same_bits(w, smaller)


def run(cls, settings, steps=8, n=40):
    rng = np.random.default_rng(3)
    w = shaped(cls, settings, rng.normal(size=n))
    opt = cls(w, **settings)
    for _ in range(steps):
        grad = rng.normal(size=w.shape)
        grad[w > 0] += w[w > 0] - 3  # these go on in one direction: a rate that is found grows
        opt.step(grad)
    return digest(w, opt.state_dict()["state"])


def test_every_setting_counts(every_class):
    """bitsandbytes#1998, #2088, pytorch_optimizer#518, pytorch#92551: taken, and not used.

    Each changes what eight steps come to, in one of the cases at least.
    """
    tried, counted = set(), set()
    for case in every_class.cases:
        for name in case:
            without = {key: value for key, value in case.items() if key != name}
            if not accepts(every_class, without):
                continue
            decides = name in ("decoupled_weight_decay", "no_prox", "decouple")
            decay = {"weight_decay": 0.1} if decides else {}
            tried.add(name)
            if run(every_class, {**case, **decay}) != run(every_class, {**without, **decay}):
                counted.add(name)
    assert counted == tried


def test_the_gradient_may_be_overwritten_after_the_step(every_class, rng):
    """pytorch-image-models#2786: the last gradient was kept by reference."""
    start = shaped(every_class, {}, rng.normal(size=30))
    grads = rng.normal(size=(4, *start.shape))
    w, v, reused = start.copy(), start.copy(), np.empty_like(start)
    first, second = every_class(w), every_class(v)
    for grad in grads:
        first.step(grad.copy())
        reused[...] = grad
        second.step(reused)
        reused[...] = np.nan
    assert_same_bits(v, w)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gradients_of_zero_leave_finite_weights(every_class, dtype):
    """optax#1755: epsilon vanishes in float16, and 0 / 0 is left."""
    w = shaped(every_class, {}, np.array([0, 1, -2, 60_000], dtype))
    start = w.copy()
    plain = {"lambd": 0.0} if "lambd" in every_class.checks else {}  # ASGD's decay of the weights
    opt = every_class(w, weight_decay=0.0, **plain)
    for _ in range(3):
        opt.step(np.zeros_like(w))
    if every_class.row.start_values(every_class.defaults)[0]:  # an average that begins elsewhere
        assert np.isfinite(w).all()
    else:
        assert_same_bits(w, start)


def test_weights_of_zero_move(every_class):
    """cybertronai/pytorch-lamb#6."""
    w = shaped(every_class, {}, np.zeros(3))
    opt = every_class(w)
    for _ in range(5):  # some wait until they have seen enough
        opt.step(np.ones_like(w))
    assert w.all()


def test_steps_beyond_those_of_float32(every_class, rng):
    """pytorch/ao#4915: counters that stop. At 2**24 + 1 steps, and where powers are 0."""
    w, grad = shaped(every_class, {}, rng.normal(size=20)), rng.normal(size=20)
    grad = grad.reshape(w.shape)
    fresh = fresh_state(every_class, {}, w)
    state = [a if a is None or np.ndim(a) == 0 else np.abs(grad) for a in fresh]
    for step in (2**24 + 1, 2**31 + 1):
        param, arrays = w.copy(), [a if a is None else a.copy() for a in state]
        getattr(op.kernels, every_class.rule)(param, grad, *arrays, step=step)
        expected = every_class.reference_step(w, grad, *state, step=step)
        assert_same_bits(param, expected[0])
        assert np.isfinite(param).all()


def test_the_epsilon_of_adabelief_accumulates():
    """AdaBelief#18, #57: after n gradients of 0 its average is a geometric sum."""
    w, n = np.ones(2), 7
    opt = op.AdaBelief(w, betas=(0.9, 0.75), eps_root=2.0**-10)
    for _ in range(n):
        opt.step(np.zeros(2))
    expected = 2.0**-10 * (1 - 0.75**n) / 0.25
    found = opt.state_dict()["state"][0]["exp_avg_var"]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_the_first_step_of_rprop_is_lr():
    """optax#1725: its update was one step old."""
    w = np.array([0.0, 0.0])
    opt = op.Rprop(w, lr=0.125, etas=(0.5, 2.0))
    for grad, expected in (
        ([3.0, -1e-9], [-0.125, 0.125]),
        ([3.0, -1e-9], [-0.375, 0.375]),  # twice as far
        ([-3.0, -1e-9], [-0.375, 0.875]),  # the first has changed its sign: it stays
        ([-3.0, -1e-9], [-0.25, 1.875]),  # and goes on by half of its last step
    ):
        opt.step(np.array(grad))
        assert_same_bits(w, np.array(expected))


def test_an_lr_outside_the_steps_of_rprop():
    """It is brought between them, and later means nothing."""
    w = np.zeros(1)
    opt = op.Rprop(w, lr=100.0, step_sizes=(1e-6, 2.0))
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.0
    opt.step(np.ones(1))
    assert w == -4


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_warm_up_of_no_step_or_one_is_none(warmup):
    """bitsandbytes#1382: 0 divided by zero. In the first step all of it is done."""
    settings = {"alpha_warmup": warmup, "beta3_warmup": warmup}
    assert run(op.AdEMAMix, settings) == run(op.AdEMAMix, {})
