"""Clipping, skipping, averaging, binding and accumulating, as their users see them."""

import copy
import math
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import SMALL_FORMATS, assert_same_bits, digest, set_in_place

BAD = [np.nan, np.inf, -np.inf]


def arrays(*sizes, value=1.0, dtype=np.float32):
    return [np.full(size, value, dtype) for size in sizes]


class TestClipping:
    def test_by_norm_by_hand(self):
        """Norm 5, limit 2.5: half of everything (but for PyTorch's 1e-6)."""
        w = [np.zeros(1), np.zeros(1)]
        info = op.SGD(w, lr=1.0, max_grad_norm=2.5).step([np.array([3.0]), np.array([-4.0])])
        assert info == op.StepInfo(1, 1.0, 5.0, True, False)
        np.testing.assert_allclose(np.ravel(w), [-1.5, 2.0], rtol=3e-7)

    def test_below_the_limit_nothing_happens(self, optimizer, rng):
        grad = rng.normal(size=100)
        a, b = np.ones(100), np.ones(100)
        limit = 1.001 * math.sqrt(np.square(grad).sum())
        assert not optimizer(a, max_grad_norm=limit).step(grad).clipped
        optimizer(b).step(grad)
        assert_same_bits(a, b)

    def test_an_infinite_limit_measures_and_clips_nothing(self, optimizer):
        a, b = np.ones(2), np.ones(2)
        for grad in (np.array([3.0, 4.0]), np.array([np.inf, 1.0])):
            info = optimizer(a, max_grad_norm=math.inf).step(grad)
            assert info.grad_norm == (5.0 if grad[0] == 3 else math.inf)
            assert not info.clipped
            optimizer(b).step(grad)
            assert_same_bits(a, b)

    def test_by_value_differs_by_group(self):
        w = arrays(3, 3)
        groups = [{"params": w[0], "max_grad_value": 0.5}, {"params": w[1]}]
        op.SGD(groups, lr=1.0).step([np.array([-2, 0.25, 2], np.float32)] * 2)
        np.testing.assert_array_equal(w[0], [1.5, 0.75, 0.5])
        np.testing.assert_array_equal(w[1], [3, 0.75, -1])

    def test_limits_may_be_schedules_and_may_be_set(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, max_grad_norm=lambda step: 1.0 + step)
        for norm in (1, 2):
            before = w.copy()
            opt.step(np.array([-100.0]))
            assert w - before == pytest.approx(norm)
        opt.max_grad_norm = None
        opt.param_groups[0]["max_grad_value"] = 7.0
        before = w.copy()
        assert opt.step(np.array([-100.0])).grad_norm is None
        assert w - before == pytest.approx(7)

    def test_a_schedule_that_gives_nonsense(self, optimizer):
        opt = optimizer(np.ones(2), max_grad_norm=lambda _: -1.0)
        with pytest.raises(ValueError, match="^max_grad_norm: expected a number > 0, got -1.0"):
            opt.step(np.ones(2))
        assert opt.state_dict()["state"] == {}

    def test_none_counts_for_nothing(self, optimizer):
        opt = optimizer([np.ones(2), np.ones(2)], max_grad_norm=1.0)
        assert opt.step([np.array([3.0, 4.0]), None]).grad_norm == 5.0
        assert opt.step([None, None]).grad_norm == 0.0


class TestNonfinite:
    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("position", [0, 1, 2])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_skip_leaves_everything_and_counts(self, optimizer, dtype, bad, position, threads):
        params = arrays(40_000, 7, 300, dtype=dtype)
        opt = optimizer(params, nonfinite="skip", ema_decay=0.9, max_grad_norm=1.0)
        grads = arrays(40_000, 7, 300, value=0.5, dtype=dtype)
        opt.step(grads)
        before = digest(opt.state_dict()["state"], params)
        grads[position][-1] = bad
        info = opt.step(grads, num_threads=threads)
        assert info.skipped
        assert not info.clipped
        assert info.step == 1
        assert not math.isfinite(info.grad_norm)
        assert opt.skipped_steps == 1
        assert opt.state_dict()["step_options"]["skipped_steps"] == 1
        assert digest(opt.state_dict()["state"], params) == before
        grads[position][-1] = 0.5
        info = opt.step(grads)
        assert (info.step, info.skipped, opt.skipped_steps) == (2, False, 1)

    @pytest.mark.parametrize("bad", BAD)
    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_raise_changes_nothing_and_names_the_culprit(self, optimizer, dtype, bad, position):
        params = dict(zip("abc", arrays(40_000, 7, 300, dtype=dtype), strict=True))
        opt = optimizer(params, nonfinite="raise", clear_grads=True, ema_decay=0.9)
        grads = dict(zip("abc", arrays(40_000, 7, 300, value=0.5, dtype=dtype), strict=True))
        opt.step({name: grad.copy() for name, grad in grads.items()})
        grads["abc"[position]][0] = bad
        before = digest(opt, grads)
        culprit = rf"^grads\['{'abc'[position]}'\]: expected finite values"
        with pytest.raises(ValueError, match=culprit):
            opt.step(grads)
        assert digest(opt, grads) == before

    def test_the_culprit_is_named_also_behind_one_without_a_gradient(self, optimizer):
        opt = optimizer(arrays(3, 3, 3), nonfinite="raise")
        with pytest.raises(ValueError, match=r"^grads\[2\]: expected finite values"):
            opt.step([None, *arrays(3), *arrays(3, value=np.inf)])

    def test_propagate_is_numpys(self):
        w = np.ones(3)
        op.SGD(w, lr=1.0, nonfinite="propagate").step(np.array([np.nan, np.inf, 1.0]))
        np.testing.assert_array_equal(w, [np.nan, -np.inf, 0.0])

    def test_a_skipped_step_zeroes_the_gradients(self, optimizer, dtype):
        grads = arrays(40_000, 3, dtype=dtype)
        grads[1][1] = np.nan
        opt = optimizer(arrays(40_000, 3, dtype=dtype), nonfinite="skip", clear_grads=True)
        assert opt.step(grads).skipped
        assert not any(grad.any() for grad in grads)

    def test_the_largest_numbers_are_finite(self, optimizer, dtype):
        grad = np.full(1000, np.finfo(dtype).max, dtype)
        assert not optimizer(np.ones(1000, dtype), nonfinite="skip").step(grad).skipped


class TestAverage:
    def run(self, steps=7, **options):
        rng = np.random.default_rng(1)
        w = rng.normal(size=50)
        opt = op.Adam(w, lr=0.1, **options)
        history = [w.copy()]
        for _ in range(steps):
            opt.step(rng.normal(size=50))
            history.append(w.copy())
        with opt.averaged():
            return opt, w, history, w.copy()

    def test_exponential(self):
        *_, history, average = self.run(ema_decay=0.8)
        expected = history[1]
        for weights in history[2:]:
            expected = 0.8 * expected + 0.2 * weights
        np.testing.assert_allclose(average, expected, rtol=1e-13)

    def test_warm_up(self):
        *_, history, average = self.run(ema_decay=0.3, ema_warmup=True)
        expected = history[1]
        for t, weights in enumerate(history[2:], start=2):
            decay = min(0.3, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * weights
        np.testing.assert_allclose(average, expected, rtol=1e-13)

    @pytest.mark.parametrize("start", [1, 4, 7])
    def test_stochastic_weight_averaging_is_the_mean(self, start):
        *_, history, average = self.run(swa_start=start)
        np.testing.assert_allclose(average, np.mean(history[start:], axis=0), rtol=1e-13)

    def test_before_its_start_it_is_the_weights(self):
        *_, history, average = self.run(swa_start=8)
        assert_same_bits(average, history[-1])

    def test_the_block_restores_the_parameters_also_after_an_error(self):
        opt, w, history, average = self.run(ema_decay=0.8)
        assert_same_bits(w, history[-1])
        with pytest.raises(KeyboardInterrupt), opt.averaged():
            assert_same_bits(w, average)
            raise KeyboardInterrupt
        assert_same_bits(w, history[-1])
        with pytest.raises(ValueError, match="^step: expected after the block"), opt.averaged():
            opt.step(np.ones(50))
        with pytest.raises(ValueError, match="^averaged: expected after"), opt.averaged():
            opt.averaged()
        assert_same_bits(w, history[-1])

    def test_groups_may_have_none(self):
        w = arrays(3, 3)
        opt = op.SGD([{"params": w[0], "ema_decay": 0.5}, {"params": w[1]}], lr=1.0)
        opt.step(arrays(3, 3))
        opt.step(arrays(3, 3))
        with opt.averaged():
            np.testing.assert_array_equal(np.concatenate(w), [-0.5] * 3 + [-1.0] * 3)
        assert set(opt.state_dict()["state"]) == {0, 1}
        assert "average" not in opt.state_dict()["state"][1]

    def test_none_to_show(self, optimizer):
        with pytest.raises(ValueError, match="^ema_decay: expected it, or swa_start, for averaged"):
            optimizer(np.ones(3)).averaged()

    def test_a_parameter_that_is_left_alone_leaves_its_average_alone(self, optimizer):
        w = arrays(3, 3)
        opt = optimizer(w, ema_decay=0.5)
        opt.step(arrays(3, 3))
        average = w[1].copy()
        w[1][:] = 9
        opt.step([*arrays(3), None])
        with opt.averaged():
            assert_same_bits(w[1], average)
        np.testing.assert_array_equal(w[1], 9)

    def test_before_the_first_step_it_is_the_parameter(self, optimizer):
        w = arrays(3, 3)
        opt = optimizer(w, ema_decay=0.5)
        w[1][:] = 9  # loaded after the optimizer was made
        opt.step([*arrays(3), None])
        with opt.averaged():
            np.testing.assert_array_equal(w[1], 9)
        opt.step(arrays(3, 3))
        now = w[1].copy()
        with opt.averaged():
            assert_same_bits(w[1], now)

    def test_what_was_not_finite_before_it_began_is_forgotten(self):
        w = np.array([3e38, np.nan], np.float32)
        opt = op.SGD(w, lr=1.0, swa_start=2)
        opt.step(np.zeros(2, np.float32))
        w[:] = -3e38, 1
        opt.step(np.zeros(2, np.float32))
        with opt.averaged():
            np.testing.assert_array_equal(w, np.array([-3e38, 1], np.float32))

    def test_a_block_is_for_one_use(self):
        w = np.zeros(2)
        opt = op.SGD(w, lr=1.0, ema_decay=0.5)
        opt.step(np.ones(2))
        block, other = opt.averaged(), opt.averaged()
        with pytest.raises(ValueError, match="^block: expected a new one"), block:
            pass  # the other one outdated it
        opt.step(np.ones(2))
        with pytest.raises(ValueError, match="^block: expected a new one"), other:
            pass  # the step did
        block = opt.averaged()
        with block:
            pass
        with pytest.raises(ValueError, match="^block: expected a new one"), block:
            pass
        np.testing.assert_array_equal(w, -2)

    def test_no_copy_is_made_inside_a_block(self):
        opt = op.SGD(np.zeros(2), lr=1.0, ema_decay=0.5)
        with opt.averaged(), pytest.raises(ValueError, match="^copy: expected after the block"):
            copy.deepcopy(opt)

    def test_switched_off_and_on_it_begins_anew(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, ema_decay=0.5)
        opt.step(np.ones(1))
        opt.param_groups[0]["ema_decay"] = None
        opt.step(np.ones(1))
        with pytest.raises(ValueError, match="^ema_decay: expected it"):
            opt.averaged()
        opt.param_groups[0]["ema_decay"] = 0.5
        opt.step(np.ones(1))
        opt.step(np.ones(1))
        with opt.averaged():
            assert w == -3.5

    def test_a_schedule_may_leave_it_out(self):
        """As if it were switched off for these steps."""
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, ema_decay=lambda step: 0.5 if step in (1, 2, 5) else None)
        shown = []
        for _ in range(6):
            opt.step(np.ones(1))
            with opt.averaged():
                shown.append(float(w[0]))
        assert shown == [-1, -2, -2.5, -4, -5, -6]

    def test_a_schedule_may_switch_it_on_for_the_next_step(self):
        w = np.zeros(1)

        def lr(step):
            opt.param_groups[0]["ema_decay"] = 0.5
            return 1.0

        opt = op.SGD(w, lr=lr)
        for _ in range(3):
            opt.step(np.ones(1))
        with opt.averaged():
            assert w == -2.5

    def test_a_mean_that_starts_late_counts_what_it_has_seen(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0)
        for _ in range(10):
            opt.step(np.ones(1))
        opt.param_groups[0]["swa_start"] = 3
        for _ in range(3):
            opt.step(np.ones(1))
        with opt.averaged():
            assert w == -12

    def test_it_goes_on_when_another_option_changes(self):
        """Switching coupled decay or momentum on chooses another kernel and more state."""
        rng = np.random.default_rng(1)
        w = rng.normal(size=20)
        opt = op.SGD(w, lr=0.1, ema_decay=0.5)
        opt.step(rng.normal(size=20))
        expected = w.copy()
        for setting in ({}, {"weight_decay": 0.1}, {"momentum": 0.9}, {"weight_decay": 0.0}):
            opt.param_groups[0].update(setting)
            opt.step(rng.normal(size=20))
            expected = 0.5 * expected + 0.5 * w
        with opt.averaged():
            np.testing.assert_allclose(w, expected, rtol=1e-13)

    def test_an_optimizer_that_has_shown_it_can_be_copied(self, optimizer):
        opt = optimizer(np.ones(3), ema_decay=0.5)
        opt.step(np.ones(3))
        with opt.averaged():
            pass
        assert digest(pickle.loads(pickle.dumps(opt))) == digest(copy.deepcopy(opt)) == digest(opt)

    def test_switched_on_it_begins_as_the_weights(self):
        w = np.zeros(2)
        opt = op.SGD(w, lr=1.0)
        opt.step(np.array([1.0, 2.0]))
        opt.param_groups[0]["ema_decay"] = 0.75
        opt.step(np.array([4.0, 4.0]))
        opt.step(np.array([4.0, 4.0]))
        with opt.averaged():
            np.testing.assert_array_equal(w, [-6.0, -7.0])


class TestBind:
    def test_reads_what_the_arrays_hold_now(self, optimizer):
        grads, w = arrays(4, 3), arrays(4, 3)
        opt = optimizer(w)
        opt.bind(grads)
        twin, v = optimizer(arrays(4, 3)), None
        v = twin.param_groups[0]["params"]
        for value in (1.0, -3.0, 0.5):
            for grad in grads:
                grad[...] = value
            opt.step()
            twin.step(arrays(4, 3, value=value))
        for a, b in zip(w, v, strict=True):
            assert_same_bits(a, b)

    def test_given_gradients_come_first(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, grads=np.ones(1))
        opt.step(np.full(1, 10.0))
        opt.step()
        assert w == -11

    def test_none_is_left_alone(self, optimizer):
        w = arrays(3, 3)
        opt = optimizer(w, grads=[None, np.ones(3, np.float32)])
        opt.step()
        assert_same_bits(w[0], np.ones(3, np.float32))
        assert not (w[1] == 1).any()

    def test_the_last_ones_bound_count(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, grads=np.ones(1))
        opt.step()
        opt.bind(np.full(1, 10.0))
        opt.step()
        assert w == -11

    def test_clear_grads_may_be_switched_on(self, optimizer):
        grad = np.ones(3)
        opt = optimizer(np.ones(3), grads=grad)
        opt.step()
        assert grad.all()
        opt.clear_grads = True
        opt.step()
        assert not grad.any()

    def test_a_smaller_array_is_found(self, optimizer):
        """It shrinks in place: the data stay where they are."""
        grads = arrays(4, 3)
        opt = optimizer(arrays(4, 3), grads=grads)
        opt.step()
        grads[0].resize(2, refcheck=False)
        with pytest.raises(ValueError, match=r"^grads\[0\]: expected .* shape \(4,\), got \(2,\)"):
            opt.step()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda array: set_in_place(array, "dtype", ">f4"), "native byte order"),
            (lambda array: array.setflags(write=False), "writable"),
        ],
    )
    @pytest.mark.parametrize("which", [0, 1])
    def test_each_change_is_found_alone(self, optimizer, change, words, which):
        w, g = np.ones(3, np.float32), np.ones(3, np.float32)
        opt = optimizer(w, grads=g, clear_grads=True)
        opt.step()
        before = (w.tobytes(), g.tobytes())
        change((w, g)[which])
        with pytest.raises((TypeError, ValueError), match=words):
            opt.step()
        assert (w.tobytes(), g.tobytes()) == before

    def test_an_array_that_changed_since_is_found(self, optimizer):
        grads, w = arrays(4, 3), arrays(4, 3)
        opt = optimizer(w, grads=grads)
        opt.step()
        for array, name in ((w[1], "params"), (grads[0], "grads")):
            shape = array.shape
            array.resize(100, refcheck=False)
            before = digest(opt)
            if name == "grads":
                with pytest.raises(ValueError, match=r"^grads\[0\]: expected .* shape"):
                    opt.step()
            else:
                with pytest.raises(ValueError, match=r"^grads\[1\]: expected .* shape"):
                    opt.step()
            assert digest(opt) == before
            array.resize(shape, refcheck=False)
        w[0].flags.writeable = False
        with pytest.raises(ValueError, match=r"^params\[0\]: expected a writable array"):
            opt.step()
        with pytest.raises(ValueError, match=r"^params\[0\]: expected a writable array"):
            opt.step()
        w[0].flags.writeable = True
        assert opt.step().step == 2

    def test_must_lie_as_the_parameters_do(self, optimizer):
        opt = optimizer([np.ones((3, 4))])
        odd = np.zeros(8 * 12 + 1, np.uint8)[1:].view(np.float64).reshape(3, 4)
        for grad in (np.asfortranarray(np.ones((3, 4))), np.ones((3, 8))[:, ::2], odd):
            with pytest.raises(ValueError, match=r"^grads\[0\]: expected C order, as its param"):
                opt.bind([grad])
        with pytest.raises(ValueError, match="^grads: expected a sequence of 1"):
            opt.bind([])
        with pytest.raises(
            ValueError, match="^grads: expected gradients, got none, and none are bound"
        ):
            opt.step()

    def test_a_failed_bind_keeps_the_one_before(self):
        w, grad = np.zeros(1), np.ones(1)
        opt = op.SGD(w, lr=1.0, grads=grad)
        with pytest.raises(TypeError, match="^grads: expected"):
            opt.bind(np.ones(1, complex))
        opt.step()
        assert w == -1

    def test_follows_new_settings_and_loaded_state(self, case):
        cls, options = case
        grads, w = arrays(4, 3), arrays(4, 3)
        opt = cls(w, **options, grads=grads)
        opt.step()
        saved, weights = opt.state_dict(), [a.copy() for a in w]
        for _ in range(2):
            opt.param_groups[0]["weight_decay"] = 0.3
            opt.clear_grads = False
            opt.step()
            after = digest(opt)
            opt.load_state_dict(saved)
            for a, b in zip(w, weights, strict=True):
                a[...] = b
            opt.param_groups[0]["weight_decay"] = 0.3
            opt.step()
            assert digest(opt) == after
            opt.load_state_dict(saved)
            for a, b in zip(w, weights, strict=True):
                a[...] = b

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_have_their_own(self, optimizer, clone):
        grads, w = arrays(4, 3), arrays(4, 3)
        opt = optimizer(w, grads=grads, ema_decay=0.5)
        opt.step()
        twin = clone(opt)
        before = digest(opt)
        twin.step()
        assert digest(opt) == before
        opt.step()
        assert digest(opt) == digest(twin)


class TestSettingsThatChange:
    def test_a_bound_step_counts_for_each_parameter(self, optimizer):
        """Where some had no gradient, in the bound ones or in others between."""
        bound, w = [None, np.ones(2)], [np.ones(2), np.ones(2)]
        opt = optimizer(w, lr=0.1, grads=bound)
        other = [np.ones(2), np.ones(2)]
        twin = optimizer(other, lr=0.1)
        for _ in range(4):
            opt.step()
            twin.step([None, np.ones(2)])
        opt.bind([np.ones(2), np.ones(2)])
        for grads in (None, [np.ones(2), None], None, [None, np.ones(2)], None):
            opt.step(grads)
            twin.step(grads or [np.ones(2), np.ones(2)])
        assert digest(opt) == digest(twin)

    def test_saving_between_two_changes(self, case):
        """A setting changed, saved, and changed back is as it was."""
        cls, options = case
        a, b = np.ones(3), np.ones(3)
        opt, twin = cls(a, **options), cls(b, **options)
        for which in (opt, twin):
            which.step(np.full(3, 0.5))
            group = which.param_groups[0]
            before = dict(group)
            group["weight_decay"] = 0.5 - group["weight_decay"]
            if which is opt:
                which.state_dict()
            group.update(before)
            which.step(np.full(3, 0.5))
        assert_same_bits(a, b)

    @pytest.mark.parametrize("kind", [list, np.array])
    def test_a_pair_is_taken_when_it_is_assigned(self, kind):
        """What becomes of the list or array afterwards is none of the optimizer's business."""
        opt = op.Adam(np.ones(3))
        opt.param_groups[0]["betas"] = betas = kind([0.0, 0.5])
        betas[0] = 0.9
        opt.step(np.array([1.0, -2.0, 3.0]))
        assert opt.param_groups[0]["betas"] == (0.0, 0.5)
        assert opt.state_dict()["param_groups"][0]["betas"] == (0.0, 0.5)
        np.testing.assert_array_equal(opt.state_dict()["state"][0]["exp_avg"], [1.0, -2.0, 3.0])

    def test_none_unbinds(self, optimizer):
        for params in (np.ones(2), [np.ones(2)]):
            opt = optimizer(params)
            opt.bind(np.ones(2) if isinstance(params, np.ndarray) else [np.ones(2)])
            opt.bind(None)
            with pytest.raises(
                ValueError, match="^grads: expected gradients, got none, and none are bound"
            ):
                opt.step()


class TestZeroGrad:
    def test_accumulating_uses_them_up(self):
        w, grad = np.zeros(1), np.zeros(1)
        opt = op.SGD(w, lr=1.0, grads=grad, clear_grads=True)
        for _ in range(2):
            grad += 1
            opt.accumulate()
            assert grad == 0
        opt.step()
        assert w == -2

    def test_must_be_writable_and_lie_as_the_parameter(self, optimizer):
        opt = optimizer([np.ones((3, 4))], clear_grads=True)
        before = digest(opt)
        locked = np.ones((3, 4))
        locked.flags.writeable = False
        with pytest.raises(ValueError, match=r"^grads\[0\]: expected a writable array"):
            opt.step([locked])
        with pytest.raises(ValueError, match=r"^grads\[0\]: expected C order"):
            opt.step([np.asfortranarray(np.ones((3, 4)))])
        with pytest.raises(TypeError, match=r"^grads\[0\]: expected a NumPy array"):
            opt.step([1.0])
        assert digest(opt) == before

    def test_two_parameters_cannot_share_one(self, optimizer):
        opt = optimizer(arrays(3, 3), clear_grads=True)
        grad = np.ones(3, np.float32)
        with pytest.raises(ValueError, match=r"^grads\[.\]: expected memory of its own"):
            opt.step([grad, grad])


class TestAccumulate:
    def test_the_mean_of_two_batches(self):
        w = np.zeros(2)
        opt = op.SGD(w, lr=1.0)
        opt.accumulate(np.array([1.0, 2.0]))
        opt.accumulate(np.array([3.0, 6.0]))
        assert_same_bits(w, np.zeros(2))
        opt.step(grad_scale=2)
        np.testing.assert_array_equal(w, [-2.0, -4.0])
        opt.accumulate(np.array([1.0, 1.0]))  # from zero again
        opt.step()
        np.testing.assert_array_equal(w, [-3.0, -5.0])

    def test_bound_gradients(self):
        w, grad = np.zeros(1), np.ones(1)
        opt = op.SGD(w, lr=1.0, grads=grad)
        opt.accumulate()
        grad[:] = 10
        opt.accumulate()
        opt.step()
        assert w == -11
        opt.step()  # nothing gathered: the bound ones
        assert w == -21
        opt.accumulate()
        opt.bind(np.full(1, 100.0))
        opt.step()  # what was gathered comes first
        assert w == -31
        opt.step()
        assert w == -131

    def test_a_parameter_without_gradients_is_left_alone(self, optimizer):
        opt = optimizer(arrays(3, 3))
        opt.accumulate([None, np.ones(3, np.float32)])
        opt.step()
        assert list(opt.state_dict()["state"]) == [1]
        opt.accumulate([np.ones(3, np.float32), None])
        opt.step()
        steps = {key: entry["step"] for key, entry in opt.state_dict()["state"].items()}
        assert steps == {0: 1, 1: 1}

    def test_a_bad_gradient_changes_nothing(self, optimizer):
        opt = optimizer(arrays(3, 3))
        opt.accumulate(arrays(3, 3))
        before = digest(opt)
        with pytest.raises(ValueError, match=r"^grads\[1\]: expected the parameter's shape"):
            opt.accumulate(arrays(3, 4))
        with pytest.raises(
            ValueError, match="^grads: expected gradients, got none, and none are bound"
        ):
            opt.accumulate()
        with pytest.raises(ValueError, match="^grads: expected none after accumulate, got some"):
            opt.step(arrays(3, 3))
        assert digest(opt) == before

    def test_what_is_not_finite_can_be_discarded(self, optimizer):
        opt = optimizer(arrays(3))
        before = digest(opt)
        opt.accumulate(arrays(3, value=np.nan))
        opt.nonfinite = "raise"
        with pytest.raises(ValueError, match="finite"):
            opt.step()
        opt.nonfinite = "propagate"
        opt.discard_accumulated()
        assert digest(opt) == before
        opt.accumulate(arrays(3))
        assert opt.step().step == 1

    def test_a_skipped_step_drops_them(self, optimizer):
        opt = optimizer(arrays(3), nonfinite="skip")
        opt.accumulate(arrays(3, value=np.nan))
        assert opt.step().skipped
        assert opt.step(arrays(3)).step == 1
        opt.accumulate(arrays(3))
        assert not opt.step().skipped


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm: expected a number > 0, got 0.0"),
        ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm: expected a number > 0, got nan"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm: expected a number > 0, got '1'"),
        ({"max_grad_value": -1.0}, ValueError, "max_grad_value: expected a finite number > 0"),
        ({"max_grad_value": math.inf}, ValueError, "max_grad_value: expected a finite number"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite: expected one of 'propagate', 'skip', "),
        ({"clear_grads": 1}, TypeError, "clear_grads: expected True or False, got 1"),
        ({"ema_decay": 1.5}, ValueError, r"ema_decay: expected a number in \[0, 1\], got 1.5"),
        ({"ema_warmup": True}, ValueError, "ema_warmup: expected False without ema_decay"),
        (
            {"swa_start": 0},
            ValueError,
            r"swa_start: expected an integer in \[1, 9007199254740992\), got 0",
        ),
        (
            {"swa_start": 1.5},
            TypeError,
            r"swa_start: expected an integer in \[1, 9007199254740992\), got 1.5",
        ),
        ({"swa_start": 3, "ema_decay": 0.9}, ValueError, "swa_start: expected None with ema"),
        ({"clip": 1.0}, TypeError, "clip: expected one of the hyperparameters"),
    ],
)
def test_options_that_make_no_sense(optimizer, options, error, words):
    with pytest.raises(error, match=f"^{words}"):
        optimizer(np.ones(3), **options)
    opt = optimizer(np.ones(3))
    (name, value), *_ = options.items()
    if name in ("max_grad_norm", "nonfinite", "clear_grads"):
        with pytest.raises(error, match=f"^{words}"):
            setattr(opt, name, value)
    elif name != "clip":  # by the assignment, or where it is about two of them by the step
        with pytest.raises(error, match=f"^{words}"):
            opt.param_groups[0].update(options)
            opt.step(np.ones(3))


def test_repr_shows_what_is_set(optimizer):
    text = repr(optimizer(np.ones(3), max_grad_norm=2.0, ema_decay=0.9))
    assert "max_grad_norm=2.0" in text
    assert "ema_decay=0.9" in text
    assert "swa_start" not in text
    assert "clear_grads" not in text
    groups = [{"params": np.ones(3), "swa_start": 5}, {"params": np.ones(3)}]
    text = repr(optimizer(groups, nonfinite="skip"))
    assert text.count("swa_start=5") == 1
    assert "nonfinite='skip'" in text


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-40, 1e40, math.nan, math.inf, "2", True])
def test_grad_scale_that_makes_no_sense(optimizer, scale):
    opt = optimizer(np.ones(3))
    with pytest.raises((ValueError, TypeError), match=r"^grad_scale: expected a number in \["):
        opt.step(np.ones(3), grad_scale=scale)
    assert opt.state_dict()["state"] == {}


class TestPack:
    def test_structure_memory_and_values(self):
        tree = {"a": np.ones((2, 3)), "b": [np.zeros(()), (np.arange(4.0),)]}
        flat, views = op.pack(tree)
        assert flat.ctypes.data % 64 == 0
        np.testing.assert_array_equal(flat, [1] * 6 + [0, 0, 1, 2, 3])
        assert views["a"].shape == (2, 3)
        assert views["b"][0].shape == ()
        flat += 1
        np.testing.assert_array_equal(views["b"][1][0], [1, 2, 3, 4])
        np.testing.assert_array_equal(tree["a"], 1)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, *SMALL_FORMATS])
    def test_stepping_the_vector_is_stepping_the_arrays(self, case, dtype, rng):
        cls, options = case
        tree = [rng.normal(size=shape).astype(dtype) for shape in [(30,), (4, 5), (1,)]]
        flat, views = op.pack(tree)
        flat_grad, grads = op.pack([rng.normal(size=a.shape).astype(dtype) for a in tree])
        one, many = cls(flat, **options), cls(tree, **options)
        for _ in range(3):
            one.step(flat_grad)
            many.step(grads)
        measures = cls.row.measures({**cls.defaults, **options})
        if measures:  # the vector is another array, with a norm of its own
            assert any((v != a).any() for v, a in zip(views, tree, strict=True))
            return
        for view, array in zip(views, tree, strict=True):
            assert_same_bits(view, array)

    @pytest.mark.parametrize(
        ("tree", "error", "words"),
        [
            ([], ValueError, "params: expected at least one array, got none"),
            ([np.ones(1), np.ones(1, np.float32)], TypeError, r"params\[1\]: expected dtype f"),
            ([np.ones(1, int)], TypeError, r"params\[0\]: expected dtype float32, float64, .* int"),
            ([np.ones(1, ">f4")], TypeError, r"params\[0\]: expected dtype float32, .* got >f4"),
            ({"a": 1.0}, TypeError, r"params\['a'\]: expected a NumPy array, got float"),
            ([np.ma.ones(3)], TypeError, r"params\[0\]: expected a NumPy array, got Masked"),
        ],
    )
    def test_bad_input(self, tree, error, words):
        with pytest.raises(error, match=f"^{words}"):
            op.pack(tree)
