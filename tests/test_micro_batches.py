"""Gradients of which some are not finite, accumulated: left out, named, or added; and the scale.

What `accumulate` does with finite ones stands in test_step_options.py and test_stages.py.
"""

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, assert_same_bits, digest, shaped
from interrupting import at_each_place

SHAPES = {"w": (60, 70), "b": (40_000,), "s": ()}
BAD = [np.nan, np.inf, -np.inf]


def arrays(cls, rng, dtype=np.float32):
    return {
        name: shaped(cls, {}, np.asarray(rng.normal(size=shape)).astype(dtype))
        for name, shape in SHAPES.items()
    }


def spoiled(grads, name="b", bad=np.nan):
    grads = {key: grad.copy() for key, grad in grads.items()}
    grads[name].reshape(-1)[-1] = bad
    return grads


def mean_step(opt, batches, scaler=None):
    """The loop of the documentation."""
    n = sum(opt.accumulate(batch) for batch in batches)
    stepper = opt.step if scaler is None else lambda **how: scaler.step(opt, **how)
    return n, stepper(grad_scale=max(n, 1))


class TestByHand:
    def test_the_mean_of_the_others(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, nonfinite="skip")
        assert [opt.accumulate(np.array([g])) for g in (1.0, np.nan, 5.0)] == [True, False, True]
        info = opt.step(grad_scale=2)
        assert info == op.StepInfo(1, 1.0, 3.0)
        assert w == -3.0
        assert opt.skipped_steps == 0

    def test_all_of_them_left_out(self):
        """The step is skipped, whatever its gradients would have been; the next one begins anew."""
        w, grad = np.zeros(1), np.array([np.inf])
        opt = op.SGD(w, lr=1.0, momentum=0.5, nonfinite="skip", grads=grad)
        assert mean_step(opt, [None])[0] == 0  # the bound one
        grad[:] = 1.0
        opt.step()
        assert w == -1.0
        opt.clear_grads = True
        grad[:] = np.inf
        assert not opt.accumulate()
        assert grad == 0.0
        info = opt.step()
        assert (info.step, info.skipped, info.skip_reason) == (1, True, "nonfinite")
        assert math.isnan(info.grad_norm)
        assert (w == -1.0, opt.skipped_steps) == (True, 2)
        opt.nonfinite = "propagate"
        assert opt.step().step == 2  # the bound one, of zeros

    def test_it_is_the_optimizers_setting_when_it_is_called(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, nonfinite="skip")
        assert not opt.accumulate(np.array([np.nan]))
        opt.nonfinite = "propagate"
        assert opt.accumulate(np.array([np.inf]))
        assert not opt.step().skipped
        assert w == -np.inf

    def test_propagate_adds_it(self):
        for options, taken in ({}, True), ({"skip_grad_norm": 1.0}, False):
            w = np.zeros(1)
            opt = op.SGD(w, lr=1.0, **options)
            assert opt.accumulate(np.array([np.nan]))
            assert opt.accumulate(np.array([1.0]))
            assert opt.step().skip_reason == (None if taken else "nonfinite")
            assert np.isnan(w) == taken

    def test_a_sum_that_overflows_skips_the_step(self):
        largest = np.finfo(np.float32).max
        opt = op.SGD(np.zeros(1, np.float32), nonfinite="skip")
        for _ in "12":
            assert opt.accumulate(np.full(1, largest))
        assert opt.step().skip_reason == "nonfinite"

    def test_nothing_to_add_is_no_batch(self):
        opt = op.SGD([np.zeros(1)], lr=1.0, nonfinite="skip")
        assert opt.accumulate([None])
        assert opt.step([np.ones(1)]).step == 1


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_left_out_leaves_no_trace(optimizer, dtype, bad, where, threads, rng):
    start = arrays(optimizer, rng, dtype)
    params, twins = copy.deepcopy(start), copy.deepcopy(start)
    opt, twin = (optimizer(p, nonfinite="skip", ema_decay=0.5) for p in (params, twins))
    for _ in range(2):
        batches = [arrays(optimizer, rng, dtype) for _ in range(2)]
        assert not opt.accumulate(spoiled(batches[0], where, bad), num_threads=threads)
        for batch in batches:
            assert opt.accumulate(batch, num_threads=threads)
            assert twin.accumulate(batch)
            before = digest(opt.state_dict()["state"])
            assert not opt.accumulate(spoiled(batch, where, bad), num_threads=threads)
            assert digest(opt.state_dict()["state"]) == before
        assert opt.step(grad_scale=2) == twin.step(grad_scale=2)
        assert digest(opt) == digest(twin)


@pytest.mark.parametrize("small", [np.float16, ml_dtypes.bfloat16])
def test_gradients_in_fewer_bits(small):
    w = np.zeros(3, small)
    opt = op.SGD(w, lr=1.0, rounding="nearest", nonfinite="skip")
    bad, good = np.ones(3, small), np.full(3, 0.5, small)
    bad[1] = np.inf
    assert not opt.accumulate(bad)
    for grad in (good, good.astype(np.float32)):
        assert opt.accumulate(grad)
    opt.step(grad_scale=2)
    np.testing.assert_array_equal(w, np.full(3, -0.5, small))


def test_every_class_takes_the_mean_of_the_others(every_class, rng):
    params = arrays(every_class, rng)
    twins = copy.deepcopy(params)
    opt, twin = every_class(params, nonfinite="skip"), every_class(twins)
    for _ in range(2):
        batches = [arrays(every_class, rng) for _ in range(2)]
        n, info = mean_step(opt, [spoiled(batches[0]), *batches])
        sums = {name: np.asarray(grad + batches[1][name]) for name, grad in batches[0].items()}
        assert (n, info.skip_reason) == (2, None)
        twin.step(sums, grad_scale=2)
        assert_same_bits(params["b"], twins["b"])
        assert digest(params, opt.state_dict()["state"]) == digest(
            twins, twin.state_dict()["state"]
        )


class TestRaise:
    @pytest.mark.parametrize("where", SHAPES)
    def test_it_names_the_array_and_the_batch(self, optimizer, where, rng):
        params = arrays(optimizer, rng)
        opt = optimizer(params, nonfinite="raise", clear_grads=True)
        for number in (1, 2):
            bad = spoiled(arrays(optimizer, rng), where)
            before = digest(opt, bad)
            words = rf"^grads\['{where}'\]: expected finite values, got an infinity or NaN in "
            with pytest.raises(ValueError, match=f"{words}micro-batch {number} since the last ste"):
                opt.accumulate(bad)
            assert digest(opt, bad) == before
            opt.accumulate(arrays(optimizer, rng))
        opt.step()
        with pytest.raises(ValueError, match="micro-batch 1 since the last step"):
            opt.accumulate(spoiled(arrays(optimizer, rng)))

    def test_what_was_left_out_counts(self):
        opt = op.SGD([np.zeros(1), np.zeros(1)], nonfinite="skip")
        opt.accumulate([None, np.array([np.nan])])
        opt.accumulate([None, np.array([1.0])])
        opt.nonfinite = "raise"
        with pytest.raises(ValueError, match=r"^grads\[1\]: .* in micro-batch 3 since"):
            opt.accumulate([None, np.array([np.nan])])

    def test_the_first_call_leaves_no_sums(self):
        opt = op.SGD(np.zeros(1), nonfinite="raise")
        with pytest.raises(ValueError, match="micro-batch 1"):
            opt.accumulate(np.array([np.nan]))
        assert opt.state_dict()["state"] == {}
        assert opt.step(np.array([1.0])).step == 1  # no call of accumulate has to be stepped first


class TestBetweenThemAndTheStep:
    """What was left out is remembered like what was added."""

    def test_a_step_that_is_given_gradients_is_an_error(self):
        opt = op.SGD(np.zeros((2, 2)), nonfinite="skip")
        opt.accumulate(np.full((2, 2), np.nan))
        before = digest(opt)
        with pytest.raises(ValueError, match="^grads: expected none after accumulate, got some"):
            opt.step(np.ones((2, 2)))
        with pytest.raises(ValueError, match="^grads: expected none after accumulate, got some"):
            opt.step_rows((np.array([0]), np.ones((1, 2))))
        assert digest(opt) == before
        opt.discard_accumulated()
        assert opt.step(np.ones((2, 2))).step == 1

    @pytest.mark.parametrize("calls", [(True, False), (False, False), (True, True, False), (True,)])
    def test_it_is_saved(self, optimizer, calls, rng, tmp_path):
        """Whatever copies and files are made there, the run goes on as the one left alone."""
        start = arrays(optimizer, rng)
        batch = arrays(optimizer, rng)
        opt = optimizer(start, nonfinite="skip")
        for is_good in calls:
            assert opt.accumulate(batch if is_good else spoiled(batch)) == is_good
        counts = {"gathered": sum(calls), "left_out": len(calls) - sum(calls)}
        saved = opt.state_dict()["step_options"]
        assert {name: saved.get(name, 0) for name in counts} == counts
        opt.save(tmp_path / "run.npz")
        fresh = [optimizer(copy.deepcopy(start), nonfinite="skip") for _ in "12"]
        fresh[0].load(tmp_path / "run.npz")
        fresh[1].load_state_dict(opt.state_dict())
        into_itself = copy.deepcopy(opt)
        into_itself.load_state_dict(into_itself.state_dict())
        runs = [*fresh, into_itself, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt]
        for run in runs:
            assert digest(run.state_dict()) == digest(opt.state_dict())
        for run in runs:
            scaler = op.LossScaler(8.0)
            run.nonfinite = "raise"
            with pytest.raises(ValueError, match=f"in micro-batch {len(calls) + 1} since"):
                run.accumulate(spoiled(batch))
            run.nonfinite = "skip"
            info = scaler.step(run)
            assert info.skip_reason == (None if any(calls) else "nonfinite")
            scaler.update()
            assert scaler.get_scale() == (8.0 if all(calls) else 4.0)
            assert {"gathered", "left_out"}.isdisjoint(run.state_dict()["step_options"])
        assert len({digest(run) for run in runs}) == 1

    def test_a_file_from_before_they_were_counted(self):
        opt = op.SGD(np.zeros(1), lr=1.0)
        opt.accumulate(np.array([1.0]))
        saved = opt.state_dict()
        del saved["step_options"]["gathered"]
        w = np.zeros(1)
        other = op.SGD(w, lr=1.0)
        other.load_state_dict(saved)
        other.step()
        assert w == -1.0

    @pytest.mark.parametrize(
        ("gathered", "counts", "words"),
        [
            (1, {"gathered": 0}, "step_options: gathered: expected a count beside what was acc"),
            (0, {"gathered": 2}, "step_options: gathered: expected a count beside what was acc"),
            (0, {"left_out": -1}, "step_options: left_out: expected "),
            (1, {"gathered": 1.5}, "step_options: gathered: expected "),
        ],
    )
    def test_counts_that_make_no_sense(self, gathered, counts, words):
        opt = op.SGD(np.zeros(1), lr=1.0)
        for _ in range(gathered):
            opt.accumulate(np.array([1.0]))
        saved, before = opt.state_dict(), digest(opt)
        saved["step_options"].update(counts)
        with pytest.raises(ValueError, match=f"^{words}"):
            opt.load_state_dict(saved)
        assert digest(opt) == before

    def test_a_group_that_is_added(self):
        opt = op.SGD([np.zeros(1)], lr=1.0, nonfinite="skip")
        opt.accumulate([np.array([np.nan])])
        opt.add_param_group({"params": [np.zeros(2)]})
        assert opt.step().skip_reason == "nonfinite"

    def test_other_arrays_that_a_step_asks_for_wait(self):
        """A setting that needs another array, and a step of which nothing is left."""
        opt = op.SGD(np.zeros(4200, np.float32), momentum=0.9, nonfinite="skip")
        opt.step(np.ones(4200, np.float32))
        opt.param_groups[0].update(ema_decay=0.5, state_format="bf16")
        opt.accumulate(np.full(4200, np.nan, np.float32))
        assert opt.step().skipped
        assert opt.skipped_steps == 1
        assert opt.step(np.ones(4200, np.float32)).step == 2


def test_an_interrupt_adds_a_batch_whole_or_not_at_all(rng):
    batch, runs = arrays(RICHEST, rng), []

    class Run:
        def __init__(self):
            self.params = {name: np.zeros_like(grad) for name, grad in batch.items()}
            self.opt = RICHEST(self.params, nonfinite="skip", clear_grads=True)
            self.opt.accumulate({**copy.deepcopy(batch), "s": None})
            self.batches = [copy.deepcopy(batch), spoiled(batch), copy.deepcopy(batch)]

        def whole(self):
            return digest(self.params, self.opt.state_dict(), self.batches)

        def take(self, n):
            for grads in self.batches[:n]:
                self.opt.accumulate(grads)
            return self.whole()

    possible = [Run().take(n) for n in range(4)]
    assert len(set(possible)) == 4

    def attempt():
        runs.append(Run())
        return lambda: runs[-1].take(3)

    for where, _ in at_each_place(attempt):
        assert runs.pop().whole() in possible, where


class TestLossScaler:
    def test_the_mean_of_scaled_batches(self):
        w = np.zeros(1, np.float32)
        opt, scaler = op.SGD(w, lr=1.0, nonfinite="skip"), op.LossScaler(4.0)
        batches = [scaler.scale(np.full(1, g, np.float32)) for g in (1, 3)]
        n, info = mean_step(opt, batches, scaler)
        assert (n, w, info.grad_norm) == (2, -2, 2.0)

    @pytest.mark.parametrize("overflows", [0, 1, 2, 3])
    def test_the_scale_falls_while_the_others_step(self, overflows):
        w = np.zeros(1)
        opt, scaler = op.SGD(w, lr=1.0, nonfinite="skip"), op.LossScaler(4.0, growth_interval=1)
        batches = [np.array([np.inf])] * overflows + [scaler.scale(np.ones(1))] * (3 - overflows)
        n, info = mean_step(opt, batches, scaler)
        assert n == 3 - overflows
        assert info.skip_reason == ("nonfinite" if overflows == 3 else None)
        assert w == (0.0 if overflows == 3 else -1.0)
        scaler.update()
        assert scaler.get_scale() == (2.0 if overflows else 8.0)
        assert not scaler.step(opt, scaler.scale(np.ones(1))).skipped  # nothing is left behind
        scaler.update()
        assert scaler.get_scale() == (4.0 if overflows else 16.0)

    def test_a_spike_is_no_overflow(self):
        opt = op.SGD(np.zeros(1), nonfinite="skip", skip_grad_norm=10.0)
        scaler = op.LossScaler(4.0, growth_interval=2)
        assert scaler.step(opt, scaler.scale(np.array([11.0]))).skip_reason == "grad_norm"
        scaler.update()
        assert scaler.get_scale() == 4.0
        assert scaler.step(opt, scaler.scale(np.array([9.0]))).skip_reason is None
        scaler.update()
        assert scaler.get_scale() == 8.0
        assert scaler.step(opt, np.array([np.inf])).skip_reason == "nonfinite"
        scaler.update()
        assert scaler.get_scale() == 4.0

    def test_one_of_two_optimizers_decides_for_the_scale(self):
        scaler = op.LossScaler(8.0)
        one, two = (op.SGD(np.zeros(1), nonfinite="skip") for _ in range(2))
        one.accumulate(np.array([np.nan])), one.accumulate(np.ones(1))
        assert not scaler.step(one).skipped
        assert not scaler.step(two, np.ones(1)).skipped
        scaler.update()
        assert scaler.get_scale() == 4.0

    def test_a_step_that_raises_forgets_nothing(self):
        opt, scaler = op.SGD(np.zeros(1), nonfinite="skip"), op.LossScaler(8.0)
        opt.accumulate(np.array([np.nan]))
        for grads, scale in ((np.ones(1), 1.0), (None, 0.0), (None, "1")):
            with pytest.raises((TypeError, ValueError), match="^grads: |^grad_scale: "):
                scaler.step(opt, grads, grad_scale=scale)
        with pytest.raises(ValueError, match="^update: "):
            scaler.update()
        assert scaler.step(opt).skip_reason == "nonfinite"
        scaler.update()
        assert scaler.get_scale() == 4.0

    def test_a_product_that_no_step_takes(self):
        opt = op.SGD(np.zeros(1), nonfinite="skip")
        for scale, other in ((2.0**127, 2.0), (2.0**-126, 0.5)):
            words = r"^grad_scale: expected a number in \[.*\] also when multiplied by the scale, "
            with pytest.raises(ValueError, match=words):
                op.LossScaler(scale).step(opt, np.ones(1), grad_scale=other)
        assert opt.state_dict()["state"] == {}

    @pytest.mark.parametrize(
        ("start", "grad", "n", "end"),
        [(2.0**120, 0.0, 4.0, 2.0**125), (2.0**-120, np.inf, 0.25, 2.0**-124)],
    )
    def test_the_scale_stays_where_such_steps_can_divide_by_it(self, start, grad, n, end):
        """Up to the largest product with 4, down to the smallest with a quarter."""
        opt, scaler = op.SGD(np.zeros(1), nonfinite="skip"), op.LossScaler(start, growth_interval=1)
        for _ in range(20):
            scaler.step(opt, np.array([grad]), grad_scale=n)
            scaler.update()
        assert scaler.get_scale() == end
        scaler.step(opt, np.array([grad]), grad_scale=n)

    def test_float16_gradients_find_their_scale(self):
        """Batches in float16, of which some overflow: every step takes the mean of the rest.

        The gradients are 1, 1 and 64 times the weight, 1. The largest number of float16 is 65504:
        with a scale of 2**10 or more the third overflows, and with 2**16 or more all do.
        """
        w = np.ones(1, np.float32)
        opt, scaler = op.SGD(w, lr=1e-6, nonfinite="skip"), op.LossScaler(2.0**18)
        seen = []
        for _ in range(12):
            with np.errstate(over="ignore"):
                batches = [scaler.scale(w * g).astype(np.float16) for g in (1, 1, 64)]
            n, info = mean_step(opt, batches, scaler)
            scaler.update()
            seen.append((n, info.skipped, info.grad_norm))
        assert [n for n, *_ in seen] == [0] * 3 + [2] * 6 + [3] * 3
        assert all(skipped == (n == 0) for n, skipped, _ in seen)
        for n, _, norm in seen[3:]:
            assert norm == pytest.approx(1 if n == 2 else 22, rel=1e-3)
        assert scaler.get_scale() == 512.0


@given(
    calls=st.lists(
        st.lists(st.sampled_from([0.5, -2.0, math.nan, math.inf]), max_size=4), max_size=6
    ),
    skip_grad_norm=st.none() | st.just(1.0),
)
def test_any_sequence(calls, skip_grad_norm):
    """Against plain Python: sums of what is finite, and what becomes of step and scale."""
    w, twin = np.zeros(1), np.zeros(1)
    opt = op.SGD(w, lr=1.0, nonfinite="skip", skip_grad_norm=skip_grad_norm)
    plain = op.SGD(twin, lr=1.0)
    scaler = op.LossScaler(2.0, growth_interval=1)
    scale, steps, skipped = 2.0, 0, 0
    for values in calls:
        if not values:
            continue
        n, info = mean_step(opt, [scaler.scale(np.array([g])) for g in values], scaler)
        scaler.update()
        good = [g for g in values if math.isfinite(g)]
        reason = None if good else "nonfinite"
        if good and abs(sum(good)) / len(good) > (skip_grad_norm or math.inf):
            reason = "grad_norm"
        if reason is None:
            plain.step(np.array([scale * sum(good)]), grad_scale=scale * len(good))
        steps += reason is None
        skipped += reason is not None
        scale *= 2.0 if len(good) == len(values) else 0.5
        assert (n, info.skip_reason, info.step) == (len(good), reason, steps)
        assert (w == twin, opt.skipped_steps, scaler.get_scale()) == (True, skipped, scale)
