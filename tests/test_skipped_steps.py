"""Steps that are left out because their gradients' norm is too large: skip_grad_norm.

test_stages.py has it beside all other stages, against the reference, and test_pairs.py beside every
other option.
"""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import MOST, accepts, assert_same_bits, digest, fresh_state, moves_rows, shaped
from onepass.optim import _reference

N = 4200  # large enough for 8-bit state
SPIKE = 1e6


def arrays(cls, rng, dtype=np.float32, shapes=((60, 70), (N,), ())):
    """Parameters or gradients that such a class takes, of norm about 90."""
    return [shaped(cls, {}, np.asarray(rng.normal(size=shape)).astype(dtype)) for shape in shapes]


def spiked(grads):
    return [grads[0] * grads[0].dtype.type(SPIKE), *grads[1:]]


class TestByHand:
    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_above_the_limit_and_no_less(self, scale):
        """Norm 5 over two arrays, unscaled: 5 lets it pass, the number below does not."""
        grads = [np.array([3.0 * scale]), np.array([-4.0 * scale])]
        for limit, is_taken in ((5.0, True), (math.nextafter(5.0, 0.0), False)):
            w = [np.zeros(1), np.zeros(1)]
            opt = op.SGD(w, lr=1.0, skip_grad_norm=limit)
            info = opt.step(grads, grad_scale=scale)
            reason = None if is_taken else "grad_norm"
            expected = op.StepInfo(is_taken, 1.0, 5.0, False, not is_taken, None, reason)
            assert info == expected
            assert opt.skipped_steps == (not is_taken)
            assert np.ravel(w).tolist() == ([-3.0, 4.0] if is_taken else [0.0, 0.0])

    def test_it_looks_at_the_norm_before_clipping(self):
        for name, c in itertools.product(("max_grad_norm", "max_grad_norm_each"), (1.0, 100.0)):
            w = np.zeros(1)
            info = op.SGD(w, lr=1.0, skip_grad_norm=10.0, **{name: c}).step(np.array([11.0]))
            assert (info.skip_reason, info.grad_norm, info.clipped) == ("grad_norm", 11.0, False)
            assert w == 0
        info = op.SGD(w, skip_grad_norm=10.0, max_grad_norm=1.0).step(np.array([9.0]))
        assert (info.skipped, info.clipped, info.grad_norm) == (False, True, 9.0)

    def test_one_norm_over_dtypes_and_groups(self):
        """3, 4, 12: norm 13."""
        grads = [[np.array([3, -4], np.float32)], [np.array([12.0])]]
        for limit, reason in ((13.0, None), (12.9, "grad_norm")):
            params = [np.zeros(2, np.float32), np.zeros(1)]
            opt = op.SGD([{"params": [p]} for p in params], skip_grad_norm=limit)
            assert opt.step(grads).skip_reason == reason
            assert any(p.any() for p in params) == (reason is None)

    def test_a_step_info_that_serves_again(self):
        """The object of the last call is filled anew where nobody keeps it."""
        opt = op.SGD(np.zeros(1), skip_grad_norm=2.0, nonfinite="skip")
        seen = [opt.step(np.array([g])).skip_reason for g in (1.0, 3.0, 1.0, math.nan, 3.0, 1.0)]
        assert seen == [None, "grad_norm", None, "nonfinite", "grad_norm", None]
        assert op.StepInfo(1, 0.1).skip_reason is None


@pytest.mark.parametrize("options", [{}, MOST, {"swa_start": 1, "lookahead_every": 2}], ids=str)
def test_a_run_with_spikes_is_the_run_without_them(every_class, options, rng):
    """Weights, state, memory, averages, counters: as if the step had not been asked for."""
    if not accepts(every_class, options):
        options = {}
    start, calls = arrays(every_class, rng), [arrays(every_class, rng) for _ in range(4)]
    params, twins = copy.deepcopy(start), copy.deepcopy(start)
    opt = every_class(params, skip_grad_norm=1000.0, **options)
    twin = every_class(twins, skip_grad_norm=1000.0, **options)
    for step, grads in enumerate(calls, start=1):
        before = twin.step(grads)
        assert before == opt.step(grads)
        info = opt.step(spiked(grads))
        assert (info.step, info.lr, info.d) == (step, before.lr, before.d)
        assert (info.skipped, info.skip_reason, info.clipped) == (True, "grad_norm", False)
        assert opt.skipped_steps == step
        saved, other = opt.state_dict(), twin.state_dict()
        assert saved["step_options"].pop("skipped_steps") == step
        assert other["step_options"].pop("skipped_steps") == 0
        assert digest(params, saved) == digest(twins, other)


class TestNotFinite:
    """What is not finite is left out beside a limit, unless nonfinite makes it an error."""

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
    def test_it_is_left_out(self, optimizer, dtype, bad, nonfinite, rng):
        params = arrays(optimizer, rng, dtype)
        opt = optimizer(params, skip_grad_norm=1e30, nonfinite=nonfinite)
        grads = arrays(optimizer, rng, dtype)
        grads[1][7] = bad
        before = digest(params, opt.state_dict()["state"])
        info = opt.step(grads)
        assert (info.step, info.skipped, info.skip_reason) == (0, True, "nonfinite")
        assert not math.isfinite(info.grad_norm)
        assert opt.skipped_steps == 1
        assert digest(params, opt.state_dict()["state"]) == before

    def test_it_is_an_error(self, optimizer, rng):
        params = arrays(optimizer, rng)
        opt = optimizer(params, skip_grad_norm=1.0, nonfinite="raise")
        before = digest(opt)
        with pytest.raises(ValueError, match=r"^grads\[2\]: expected finite values, got an inf"):
            opt.step([None, None, np.array(np.inf, np.float32)])
        assert digest(opt) == before
        assert opt.step(arrays(optimizer, rng)).skip_reason == "grad_norm"

    def test_without_a_limit_it_spreads(self):
        w = np.zeros(1)
        info = op.SGD(w, max_grad_norm=1.0).step(np.array([np.nan]))
        assert info.skip_reason is None
        assert np.isnan(w)

    @pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
    def test_finite_gradients_whose_norm_is_not(self, nonfinite):
        """The norm of four numbers of 1.5e308 is 3e308: infinite, and above every limit."""
        w = np.zeros(4)
        largest = np.finfo(np.float64).max
        opt = op.SGD(w, skip_grad_norm=largest, nonfinite=nonfinite)
        info = opt.step(np.full(4, 1.5e308))
        assert (info.grad_norm, info.skip_reason) == (math.inf, "grad_norm")
        assert not w.any()


class TestSettings:
    def test_it_may_be_a_schedule_and_may_say_not_now(self):
        w = np.zeros(1)
        limits = [None, 1.0, 3.0, None]
        opt = op.SGD(w, lr=1.0, skip_grad_norm=lambda step: limits[step])
        assert [opt.step(np.array([g])).skip_reason for g in (9.0, 2.0, 1.0, 4.0, 3.0, 9.0)] == [
            *(None, "grad_norm", None, "grad_norm", None, None)
        ]
        assert w == -22

    def test_a_schedule_that_gives_nonsense(self, optimizer):
        opt = optimizer(np.ones((2, 2)), skip_grad_norm=lambda _: 0.0)
        with pytest.raises(ValueError, match="^skip_grad_norm: expected a finite number > 0"):
            opt.step(np.ones((2, 2)))
        assert opt.state_dict()["state"] == {}

    def test_it_may_be_set_between_steps(self):
        w = np.zeros(1)
        opt = op.SGD(w, lr=1.0, skip_grad_norm=1.0)
        assert opt.step(np.array([2.0])).skipped
        opt.skip_grad_norm = 2
        assert opt.skip_grad_norm == 2.0
        assert not opt.step(np.array([2.0])).skipped
        opt.skip_grad_norm = None
        assert opt.step(np.array([1e9])).grad_norm is None
        assert "skip_grad_norm" not in repr(opt)
        opt.skip_grad_norm = 0.5
        assert "skip_grad_norm=0.5" in repr(opt)

    @pytest.mark.parametrize("bad", [0, 0.0, -1.0, math.inf, math.nan, "1", True, [1.0]])
    def test_values_that_make_no_sense(self, bad):
        error = ValueError if isinstance(bad, int | float) and bad is not True else TypeError
        words = "^skip_grad_norm: expected a finite number > 0, got"
        opt = op.SGD(np.ones(2))
        with pytest.raises(error, match=words):
            op.SGD(np.ones(2), skip_grad_norm=bad)
        with pytest.raises(error, match=words):
            opt.skip_grad_norm = bad
        with pytest.raises(error, match=words):
            op.kernels.sgd(np.ones(2), np.ones(2), skip_grad_norm=bad)
        assert opt.skip_grad_norm is None

    def test_groups_have_none(self):
        with pytest.raises(TypeError, match="^skip_grad_norm: expected"):
            op.SGD([{"params": np.ones(2), "skip_grad_norm": 1.0}])

    def test_a_checkpoint_has_it(self, tmp_path):
        opt = op.SGD(np.zeros(1), skip_grad_norm=2.0)
        opt.step(np.array([3.0]))
        opt.save(tmp_path / "run.npz")
        others = [op.SGD(np.zeros(1)) for _ in "12"]
        others[0].load(tmp_path / "run.npz")
        others[1].load_state_dict(opt.state_dict())
        for other in (*others, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
            assert (other.skip_grad_norm, other.skipped_steps) == (2.0, 1)
            assert other.step(np.array([3.0])).skip_reason == "grad_norm"
        before = opt.state_dict()
        del before["step_options"]["skip_grad_norm"]  # as older files have it
        opt.load_state_dict(before)
        assert opt.skip_grad_norm == 2.0


class TestGradients:
    @pytest.mark.parametrize("way", ["given", "bound", "accumulated"])
    def test_they_are_zeroed_where_a_step_zeroes_them(self, optimizer, way, rng):
        grads = spiked(arrays(optimizer, rng))
        bound = {"grads": grads} if way == "bound" else {}
        opt = optimizer(arrays(optimizer, rng), skip_grad_norm=1e3, clear_grads=True, **bound)
        if way == "accumulated":
            assert opt.accumulate(grads)
        assert opt.step(grads if way == "given" else None).skip_reason == "grad_norm"
        assert not any(grad.any() for grad in grads)
        if way == "accumulated":
            assert "accumulated" not in opt.state_dict()["state"]
            assert opt.step(arrays(optimizer, rng)).step == 1

    def test_they_are_left_where_it_does_not(self, optimizer, rng):
        grads = spiked(arrays(optimizer, rng))
        before = digest(grads)
        assert optimizer(arrays(optimizer, rng), skip_grad_norm=1e3).step(grads).skipped
        assert digest(grads) == before

    def test_the_norm_of_what_was_accumulated_decides(self):
        """Two of norm 3: 6 together, 3 in the mean."""
        for n, reason in ((1, "grad_norm"), (2, None)):
            opt = op.SGD(np.zeros(1), skip_grad_norm=5.0)
            for _ in "12":
                opt.accumulate(np.array([3.0]))
            assert opt.step(grad_scale=n).skip_reason == reason

    def test_rows(self):
        """Each row's sum counts once: 3 and 4 for one row, 24 for another, are 25 together."""
        index = np.array([1, 4, 1])
        values = np.array([[3.0], [24.0], [4.0]])
        for limit, reason in ((25.0, None), (24.9, "grad_norm")):
            table = np.ones((6, 1))
            opt = op.Adam({"e": table}, skip_grad_norm=limit)
            before = digest(table, opt.state_dict()["state"])
            info = opt.step_rows({"e": (index, values)})
            assert (info.grad_norm, info.skip_reason) == (25.0, reason)
            assert (digest(table, opt.state_dict()["state"]) == before) == (reason is not None)

    def test_rows_of_every_class(self, every_class, rng):
        if not moves_rows(every_class, {}):
            pytest.skip("its rows cannot move alone")
        table = rng.normal(size=(6, 5))
        opt = every_class(table, skip_grad_norm=1e3)
        opt.step_rows((np.array([0, 3]), rng.normal(size=(2, 5))))
        before = digest(opt.state_dict()["state"], table)
        info = opt.step_rows((np.array([0, 3]), SPIKE * np.ones((2, 5))))
        assert (info.step, info.skip_reason) == (1, "grad_norm")
        assert digest(opt.state_dict()["state"], table) == before


class TestKernels:
    def test_every_function(self, every_class, rng):
        kernel = getattr(op.kernels, every_class.rule)
        params = arrays(every_class, rng)
        kept = [fresh_state(every_class, {}, param) for param in params]
        state = [list(each) for each in zip(*kept, strict=True)]
        state = [None if all(a is None for a in each) else each for each in state]
        if every_class.row.sums_over_all:  # one memory for all
            n = len(every_class.row.states)
            state[n:] = [each[0] for each in state[n:]]
        before = digest(params, state)
        spike = spiked(arrays(every_class, rng))
        info = kernel(params, spike, *state, step=1, skip_grad_norm=1e3)
        assert (info.step, info.skipped, info.skip_reason) == (0, True, "grad_norm")
        assert digest(params, state) == before
        info = kernel(params, arrays(every_class, rng), *state, step=1, skip_grad_norm=1e3)
        assert (info.step, info.skip_reason) == (1, None)
        assert digest(params, state) != before

    def test_a_single_array(self):
        w, grad = np.zeros(2), np.array([3.0, 4.0])
        info = op.kernels.sgd(w, grad, lr=1.0, skip_grad_norm=4.0, clear_grads=True)
        assert (info.grad_norm, info.skip_reason) == (5.0, "grad_norm")
        assert not w.any()
        assert not grad.any()
        info = op.kernels.sgd(w, np.array([np.nan, 1.0]), lr=1.0, skip_grad_norm=4.0)
        assert info.skip_reason == "nonfinite"
        assert not w.any()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_limit_that_is_the_norm_itself_for_any_number_of_threads(optimizer, dtype, threads, rng):
    """The norm is the same bits for each, and so is the decision at its last bit."""
    sizes = ((300, 200), (7,), (40_000,))
    grads = arrays(optimizer, rng, dtype, sizes)
    norm = _reference.grad_norm(grads)
    for limit, reason in ((norm, None), (math.nextafter(norm, 0), "grad_norm")):
        opt = optimizer(arrays(optimizer, rng, dtype, sizes), skip_grad_norm=limit)
        info = opt.step(grads, num_threads=threads)
        assert (info.grad_norm, info.skip_reason) == (norm, reason)


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=20),
    limit=st.floats(1e-30, 1e30),
    grad_scale=st.floats(1e-3, 1e5),
    nonfinite=st.sampled_from(["propagate", "skip"]),
)
@settings(max_examples=200)
def test_any_gradients(values, limit, grad_scale, nonfinite):
    grad = np.array(values, np.float32)
    w = np.ones_like(grad)
    twin = w.copy()
    opt = op.SGD(w, lr=1e-30, skip_grad_norm=limit, nonfinite=nonfinite)
    info = opt.step(grad, grad_scale=grad_scale)
    if not np.isfinite(grad).all():
        expected = "nonfinite"
    else:
        expected = "grad_norm" if _reference.grad_norm([grad], grad_scale) > limit else None
    assert info.skip_reason == expected
    if expected is None:
        op.SGD(twin, lr=1e-30).step(grad, grad_scale=grad_scale)
    assert_same_bits(w, twin)
