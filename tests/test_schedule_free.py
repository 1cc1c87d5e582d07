"""The schedule-free optimizers: the weights that they show, and what they refuse."""

import numpy as np
import pytest

import onepass as op
from helpers import SMALL_FORMATS, assert_same_bits, digest

CLASSES = [cls for cls in op.optim.registry.values() if cls.row.full_weights and cls.own_average]
N = 40


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def run(opt, param, rng, steps=8):
    for _ in range(steps):
        opt.step(rng.normal(size=param.shape).astype(param.dtype))


def test_there_are_some():
    assert {"SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"} <= {
        cls.__name__ for cls in CLASSES
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *SMALL_FORMATS])
def test_a_block_shows_the_average_and_restores_the_weights_to_the_bit(cls, dtype, rng):
    """schedulefree's eval() and train() lose some bits on the way there and back."""
    param = rng.normal(size=N).astype(dtype)
    opt = cls(param, lr=0.1)
    run(opt, param, rng)
    before, saved = param.copy(), opt.state_dict()
    with opt.averaged():
        shown = param.copy()
        assert digest(opt.state_dict()) == digest(saved)  # schedule_free#22, #48
    assert_same_bits(param, before)
    assert (shown != before).any()
    with pytest.raises(RuntimeError, match="mine"), opt.averaged():
        raise RuntimeError("mine")
    assert_same_bits(param, before)


def test_the_average_is_that_of_the_points(rng):
    """With a constant rate and no powers it is the plain mean of z."""
    param = rng.normal(size=N)
    opt = op.SGDScheduleFree(param, 0.1, 0.75)
    points = []
    for _ in range(6):
        opt.step(rng.normal(size=N))
        points.append(opt.state_dict()["state"][0]["z"])
    with opt.averaged():
        np.testing.assert_allclose(param, np.mean(points, axis=0), rtol=1e-13)


def test_the_first_step_begins_with_the_weights_of_then(cls, rng):
    """Weights may be loaded once the optimizer is made."""
    param, grads = np.zeros(N), rng.normal(size=(5, N))
    opt = cls(param, lr=0.1)
    loaded = rng.normal(size=N)
    param[...] = loaded
    other = loaded.copy()
    twin = cls(other, lr=0.1)
    for grad in grads:
        opt.step(grad)
        twin.step(grad)
    assert digest(param, opt.state_dict()) == digest(other, twin.state_dict())


def test_a_rate_that_begins_at_zero(cls, rng):
    """schedule_free#5: 0 / 0."""
    param = rng.normal(size=N)
    start = param.copy()
    opt = cls(param, lr=lambda step: 0.1 * max(0, step - 5))
    run(opt, param, rng, 5)
    assert_same_bits(param, start)
    with opt.averaged():
        np.testing.assert_allclose(param, start, rtol=1e-15)
    run(opt, param, rng, 5)
    assert np.isfinite(param).all()
    assert (param != start).all()


@pytest.mark.parametrize("average", [{"ema_decay": 0.999}, {"swa_start": 3}])
def test_a_second_average_is_refused(cls, average):
    ((name, value),) = average.items()
    words = rf"^{name}: expected None for {cls.__name__} \(it averages by itself\), got {value}$"
    with pytest.raises(ValueError, match=words):
        cls(np.ones(3), **average)
    with pytest.raises(ValueError, match=words):
        getattr(op.kernels, cls.rule)(np.ones(3), np.ones(3), step=1, **average)
    opt = cls(np.ones(3))
    opt.param_groups[0].update(average)
    with pytest.raises(ValueError, match=words):
        opt.step(np.ones(3))


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_rounded_weights_are_refused(cls, rounding):
    words = rf"^rounding: expected 'master' for {cls.__name__} .*, got '{rounding}'$"
    with pytest.raises(ValueError, match=words):
        cls(np.ones(3, np.float16), rounding=rounding)


@pytest.mark.parametrize("dtype", SMALL_FORMATS)
def test_a_kernel_has_no_master_and_refuses_weights_of_16_bits(cls, dtype):
    param = np.ones(3, dtype)
    state = [np.ones(3, np.float32) for _ in cls.row.states]
    memory = [np.array(start) for start in cls.row.memory_start]
    with pytest.raises(TypeError, match="^param: expected float32 or float64 for this rule, got "):
        getattr(op.kernels, cls.rule)(param, param.copy(), *state, *memory, step=1)
    with pytest.raises(TypeError, match=r"^param\[0\]: expected float32 or float64"):
        lists = [[array] for array in (param, param.copy(), *state, *memory)]
        getattr(op.kernels, cls.rule)(*lists, step=1)


def test_a_master_is_what_the_average_is_made_of(cls, rng):
    """A twin in float32 whose weights are the master's."""
    start = rng.normal(size=N).astype(np.float16)
    small, wide = start.copy(), start.astype(np.float32)
    opt, twin = cls(small, lr=0.1), cls(wide, lr=0.1)
    for _ in range(6):
        grad = rng.normal(size=N).astype(np.float32)
        opt.step(grad)
        twin.step(grad)
    assert_same_bits(small, wide.astype(np.float16))
    with opt.averaged(), twin.averaged():
        assert_same_bits(small, wide.astype(np.float16))


@pytest.mark.parametrize("state_format", ["bf16", "q8"])
def test_the_weights_that_are_kept_stay_in_full(cls, state_format, rng):
    param = rng.normal(size=5000).astype(np.float32)
    opt = cls(param, state_format=state_format)
    run(opt, param, rng, 2)
    entry = opt.state_dict()["state"][0]
    assert entry["z"].dtype == np.float32
    with opt.averaged():
        assert np.isfinite(param).all()


def test_momenta_that_would_leave_the_average_to_rounding(cls):
    name = "betas" if "betas" in cls.checks else "momentum"
    small = (1e-8, 0.9) if name == "betas" else 1e-8
    with pytest.raises(ValueError, match=rf"^{name}: expected .*\[0.001, 1\)"):
        cls(np.ones(3), **{name: small})


def test_a_decay_that_is_part_of_the_rule_is_not_cautious():
    words = r"^cautious_weight_decay: expected False for AdamWScheduleFree \(its decay is part"
    with pytest.raises(ValueError, match=words):
        op.AdamWScheduleFree(np.ones(3), cautious_weight_decay=True)
