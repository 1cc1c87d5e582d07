"""What enters the average of the weights, and in what it is kept, by arithmetic.

That the kernels do the same as NumPy is in test_stages.py; beside all other options, in
test_pairs.py.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, accepts, assert_same_bits, digest


def walk(opt, param, steps, first=1):
    """Plain descent along the squares: after step t the weight is t * t."""
    for t in range(first, first + steps):
        opt.step(np.full_like(param, 1.0 - 2 * t))
        assert (param == t * t).all()


def shown(opt, param):
    with opt.averaged():
        return param.copy()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("every", [1, 4, 10])
@pytest.mark.parametrize("start", [1, 3, 10])
def test_the_mean_is_that_of_the_steps_that_enter(start, every, dtype):
    w = np.zeros(1, np.float32)
    opt = op.SGD(w, lr=1.0, swa_start=start, average_every=every, average_dtype=dtype)
    for t in range(1, 42):
        walk(opt, w, 1, first=t)
        entered = [s * s for s in range(start, t + 1, every)] or [t * t]
        np.testing.assert_allclose(shown(opt, w), np.mean(entered), rtol=1e-6)


@pytest.mark.parametrize("warmup", [False, True])
def test_an_average_of_every_third_step(warmup):
    w, decay = np.zeros(1), 0.75
    opt = op.SGD(w, lr=1.0, ema_decay=decay, ema_warmup=warmup, average_every=3)
    average, entered = np.nan, 0
    for t in range(1, 30):
        walk(opt, w, 1, first=t)
        if t < 3:
            average = t * t  # as long as nothing has entered
        elif t % 3 == 0:
            entered += 1
            beta = min(decay, (1 + entered) / (10 + entered)) if warmup else decay
            average = t * t if entered == 1 else beta * average + (1 - beta) * t * t
        np.testing.assert_allclose(shown(opt, w), average, rtol=1e-14)


def test_the_name_that_others_give_it():
    opt = op.SGD(np.zeros(1), lr=1.0, swa_start=10, swa_every=7)
    assert opt.param_groups[0]["average_every"] == 7
    groups = op.SGD([{"params": np.zeros(1), "swa_start": 10, "swa_every": 7}], lr=1.0)
    assert groups.param_groups[0]["average_every"] == 7


@pytest.mark.parametrize("warmup", [False, True])
def test_a_decay_of_1_means_not_now(warmup):
    w = np.zeros(1)
    decays = [0.5 if t % 10 == 9 else 1.0 for t in range(30)]
    opt = op.SGD(w, lr=1.0, ema_decay=lambda t: decays[t], ema_warmup=warmup)
    walk(opt, w, 30)
    betas = [min(0.5, (1 + t) / (10 + t)) if warmup else 0.5 for t in (10, 20, 30)]
    average = 1.0  # the weight after the first step
    for t, beta in zip((10, 20, 30), betas, strict=True):
        average = beta * average + (1 - beta) * t * t
    np.testing.assert_allclose(shown(opt, w), average, rtol=1e-14)


def test_an_average_that_is_left_alone_keeps_its_bits(optimizer, rng):
    """Subnormal numbers stay too, and NaN does not come in."""
    if not accepts(optimizer, {"ema_decay": 0.5}):
        pytest.skip("it has an average of its own")
    opt = optimizer(w := np.ones(300, np.float32), lr=0.1, ema_decay=lambda t: float(t > 0))
    opt.step(rng.normal(size=300).astype(np.float32))
    before = opt.state_dict()["state"][0]["average"]
    for _ in range(70):
        opt.step(np.full_like(w, np.nan))
    assert_same_bits(opt.state_dict()["state"][0]["average"], before)


class TestFloat32:
    def test_it_is_pytorchs_averaged_model(self, rng):
        torch = pytest.importorskip("torch")
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        w = rng.normal(size=1000).astype(np.float32)
        model = torch.nn.ParameterList([torch.from_numpy(w)])
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        opt = op.SGD(w, lr=0.1, ema_decay=0.99, average_dtype="float32")
        for _ in range(20):
            opt.step(rng.normal(size=1000).astype(np.float32))
            average.update_parameters(model)  # it reads the same memory
        got = opt.state_dict()["state"][0]["average"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, average.module[0].detach().numpy(), rtol=3e-7, atol=3e-7)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_what_it_is_kept_in(self, dtype):
        opt = op.SGD(np.ones(5, dtype), lr=0.1, ema_decay=0.5, average_dtype="float32")
        opt.step(np.ones(5, dtype))
        kept = opt.state_dict()["state"][0]["average"].dtype
        assert kept == (np.float64 if dtype == np.float64 else np.float32)

    def test_changing_it_rounds_what_is_there(self, rng):
        w = rng.normal(size=500).astype(np.float32)
        opt = op.SGD(w, lr=0.1, ema_decay=0.9)
        for _ in range(3):
            opt.step(w * np.float32(0.1))
        before = opt.state_dict()["state"][0]["average"]
        opt.param_groups[0]["average_dtype"] = "float32"
        opt.param_groups[0]["ema_decay"] = 1.0  # the next step leaves it alone
        opt.step(w * np.float32(0.1))
        assert_same_bits(opt.state_dict()["state"][0]["average"], before.astype(np.float32))

    @pytest.mark.parametrize("first", ["float64", "float32"])
    @pytest.mark.parametrize("then", ["float64", "float32"])
    def test_a_checkpoint_of_either_goes_on_in_either(self, first, then, tmp_path, rng):
        """As the run itself does whose setting is changed."""
        grads = [rng.normal(size=5000).astype(np.float32) for _ in range(6)]
        w = rng.normal(size=5000).astype(np.float32)
        opt = RICHEST(w, lr=0.1, ema_decay=0.9, average_dtype=first)
        for grad in grads[:3]:
            opt.step(grad)
        opt.save(tmp_path / "run.npz")
        other = w.copy()
        loaded = RICHEST(other, lr=0.1, ema_decay=0.9, average_dtype=then)
        loaded.load(tmp_path / "run.npz")
        assert loaded.param_groups[0]["average_dtype"] == first
        for each in (opt, loaded):
            each.param_groups[0]["average_dtype"] = then
            for grad in grads[3:]:
                each.step(grad)
        assert digest(w, opt.state_dict()) == digest(other, loaded.state_dict())
        assert opt.state_dict()["state"][0]["average"].dtype == then


@pytest.mark.parametrize("through_a_file", [False, True])
class TestChangedInARun:
    """The weights that have entered stay in, and count."""

    def make(self, w, **options):
        return op.SGD(w, lr=1.0, **options)

    def change(self, opt, w, options, through_a_file, **change):
        if through_a_file:
            saved = opt.state_dict()
            opt = self.make(w, **options)
            opt.load_state_dict(saved)
        opt.param_groups[0].update(change)
        return opt

    def test_an_average_waits_for_the_next_that_enters(self, through_a_file):
        w, options = np.zeros(1), {"ema_decay": 0.75}
        opt = self.make(w, **options)
        walk(opt, w, 7)
        average = 1.0
        for t in range(2, 8):
            average = 0.75 * average + 0.25 * t * t
        opt = self.change(opt, w, options, through_a_file, average_every=10)
        walk(opt, w, 2, first=8)
        np.testing.assert_allclose(shown(opt, w), average, rtol=1e-14)
        walk(opt, w, 1, first=10)
        np.testing.assert_allclose(shown(opt, w), 0.75 * average + 25, rtol=1e-14)

    def test_a_mean_is_of_all_that_have_entered(self, through_a_file):
        w, options = np.zeros(1), {"swa_start": 1, "average_every": 5}
        opt = self.make(w, **options)
        walk(opt, w, 10)  # 1 and 6 have entered
        opt = self.change(opt, w, options, through_a_file, average_every=1)
        walk(opt, w, 1, first=11)
        np.testing.assert_allclose(shown(opt, w), (1 + 36 + 121) / 3, rtol=1e-14)

    def test_a_file_that_does_not_say_it(self, through_a_file):
        w, options = np.zeros(1), {"swa_start": 3, "average_every": 4}
        opt = self.make(w, **options)
        walk(opt, w, 12)  # 3, 7 and 11 have entered
        saved = opt.state_dict()
        assert saved["state"][0].pop("entered") == 3
        opt = self.make(w, **options)
        opt.load_state_dict(saved)
        opt = self.change(opt, w, options, through_a_file, average_every=1)
        walk(opt, w, 1, first=13)
        np.testing.assert_allclose(shown(opt, w), (9 + 49 + 121 + 169) / 4, rtol=1e-14)


def test_more_has_entered_than_could():
    w = np.zeros(1)
    opt = op.SGD(w, lr=1.0, ema_decay=0.5)
    walk(opt, w, 3)
    saved = opt.state_dict()
    saved["state"][0]["entered"] = 4
    with pytest.raises(ValueError, match=r"state\[0\]\['entered'\]: expected at most 3, got 4"):
        opt.load_state_dict(saved)


@given(
    every=st.integers(1, 5),
    start=st.none() | st.integers(1, 8),
    changes=st.lists(st.booleans(), min_size=1, max_size=20),
)
@settings(max_examples=40)
def test_switched_on_and_off(every, start, changes):
    """An average that was off begins anew; where it is a mean, with the next step that enters."""
    option = {"ema_decay": 0.5} if start is None else {"swa_start": start}
    w = np.zeros(1)
    opt = op.SGD(w, lr=1.0, **option, average_every=every)
    off = dict.fromkeys(option)
    first = every if start is None else start
    entered: list[int] = []
    for t, is_on in enumerate(changes, start=1):
        opt.param_groups[0].update(
            {**(option if is_on else off), "average_every": 1 + (every - 1) * is_on}
        )
        walk(opt, w, 1, first=t)
        if not is_on:
            entered = []
            continue
        if t >= first and (t - first) % every == 0:
            entered.append(t * t)
        if start is None and entered:
            expected = float(entered[0])
            for square in entered[1:]:
                expected = (expected + square) / 2
        else:
            expected = np.mean(entered) if entered else t * t
        np.testing.assert_allclose(shown(opt, w), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average_every": 2}, "average_every: expected 1 without ema_decay or swa_start, got 2"),
        ({"average_every": 0, "swa_start": 1}, "average_every: expected an integer in"),
        ({"average_dtype": "float16"}, "average_dtype: expected one of 'float64', 'float32', got"),
        ({"ema_decay": 1.1}, r"ema_decay: expected a number in \[0, 1\], got 1.1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        op.SGD(np.zeros(1), lr=0.1, **options)
