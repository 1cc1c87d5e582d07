"""A step in two phases: the norm and the verdict of many processes, by `step(exchange=)`."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import assert_same_bits, digest

BLOCK = 16384
POLICIES = {
    "clip": {"max_grad_norm": 1.0},
    "skip large": {"skip_grad_norm": 1.0},
    "skip": {"nonfinite": "skip"},
    "measured": {"max_grad_norm": math.inf, "skip_grad_norm": 1e300},
}


def sums_of(grads, settings=None):
    """The sums that a process of these gradients hands out, by a step that is not taken."""
    told = []

    def refuse(sums):
        told.append(sums)
        raise InterruptedError

    opt = op.SGD([g.copy() for g in grads], lr=1.0, **(settings or {"max_grad_norm": 1.0}))
    with pytest.raises(InterruptedError):
        opt.step(grads, exchange=refuse)
    return told


def halves(array):
    """The arrays of two processes: whole blocks of 16,384."""
    cut = array.size // 2 // BLOCK * BLOCK
    return array[:cut], array[cut:]


class TestByHand:
    def test_sums_are_of_blocks_in_order(self):
        grads = [np.full(BLOCK + 2, 2.0), np.full(3, 3.0), np.empty(0), np.full(1, np.float64(-5))]
        (sums,) = sums_of(grads)
        assert sums.dtype == np.float64
        np.testing.assert_array_equal(sums, [4.0 * BLOCK, 8.0, 27.0, 25.0])

    def test_the_norm_is_of_what_is_returned(self):
        w = np.zeros(2)
        opt = op.SGD(w, lr=1.0, max_grad_norm=2.5)
        info = opt.step(
            np.array([6.0, 0.0]), grad_scale=2.0, exchange=lambda sums: np.array([*sums, 64.0])
        )
        assert (info.grad_norm, info.clipped) == (5.0, True)
        np.testing.assert_allclose(w, [-1.5, 0.0], rtol=1e-6)

    def test_without_a_norm_it_is_told_nothing(self):
        calls = []
        w = np.zeros(2)
        opt = op.SGD(w, lr=1.0)
        info = opt.step(np.ones(2), exchange=lambda sums: calls.append(sums.size) or np.ones(7))
        assert calls == [0]
        assert info.grad_norm is None
        np.testing.assert_array_equal(w, -1)

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    @pytest.mark.parametrize("policy", ["skip", "raise", "propagate"])
    def test_another_process_has_a_gradient_that_is_not_finite(self, bad, policy):
        w = np.ones(2)
        opt = op.SGD(w, lr=1.0, nonfinite=policy, max_grad_norm=1.0)

        def step():
            return opt.step(np.ones(2), exchange=lambda sums: np.array([*sums, bad]))

        if policy == "raise":
            with pytest.raises(ValueError, match="from another process"):
                step()
            np.testing.assert_array_equal(w, 1)
            assert opt.state_dict()["param_groups"][0]["step"] == 0
        elif policy == "skip":
            info = step()
            assert info.skip_reason == "nonfinite"
            assert opt.skipped_steps == 1
            np.testing.assert_array_equal(w, 1)
        else:
            np.testing.assert_equal(step().grad_norm, bad)

    def test_an_own_gradient_that_is_not_finite_is_named(self):
        opt = op.SGD({"a": np.ones(2), "b": np.ones(2)}, nonfinite="raise")
        grads = {"a": np.ones(2), "b": np.array([1.0, np.nan])}
        with pytest.raises(ValueError, match=r"grads\['b'\]: expected finite values"):
            opt.step(grads, exchange=lambda sums: sums)

    @pytest.mark.parametrize(("size", "unit"), [(1e200, 2.0**-600), (1e-200, 2.0**600)])
    def test_sums_out_of_range_are_exchanged_once_more(self, size, unit):
        calls = []

        def exchange(sums):
            calls.append(sums)
            return np.concatenate([sums, sums])

        info = op.SGD(np.zeros(1), max_grad_norm=math.inf).step(np.array([size]), exchange=exchange)
        assert len(calls) == 2
        assert calls[1] == (size * unit) ** 2
        assert info.grad_norm == math.sqrt(2 * (size * unit) ** 2) / unit

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("other", [math.inf, math.nan])
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_the_norm_of_each_array_is_its_own(self, dtype, other, elsewhere):
        """Also where the common one is not finite, here or on another process."""
        w = [np.zeros(1, dtype), np.zeros(2, dtype)]
        grads = [np.full(1, 1.0 if elsewhere else other, dtype), np.array([3.0, 4.0], dtype)]
        exchange = (lambda sums: np.array([*sums, other])) if elsewhere else None
        op.SGD(w, lr=1.0, max_grad_norm_each=1.0).step(grads, exchange=exchange)
        np.testing.assert_allclose(w[1], [-0.6, -0.8], rtol=1e-6)

    def test_no_gradient_at_all(self):
        """All are 0: the sums are, in any unit."""
        calls = []
        w = np.ones(1, np.float32)
        info = op.SGD(w, max_grad_norm=1.0).step(
            np.zeros(1, np.float32), exchange=lambda sums: calls.append(sums) or sums
        )
        assert (len(calls), info.grad_norm) == (2, 0.0)

    def test_a_process_whose_batches_were_left_out_stops_all(self):
        w = np.ones(2)
        opt = op.SGD(w, lr=1.0, nonfinite="skip")
        assert not opt.accumulate(np.full(2, np.nan))
        told = []
        info = opt.step(exchange=lambda sums: told.append(sums) or np.array([1.0, *sums]))
        assert info.skip_reason == "nonfinite"
        assert all(math.isnan(sums[0]) for sums in told)
        np.testing.assert_array_equal(w, 1)


class TestLikeOneProcess:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_two_halves_are_the_whole(self, policy, dtype):
        rng = np.random.default_rng(3)
        whole = rng.normal(size=3 * BLOCK + 77).astype(dtype)
        parts = [half.copy() for half in halves(whole)]
        settings = {"lr": 0.1, "momentum": 0.9, **POLICIES[policy]}
        one, two = op.SGD(whole, **settings), [op.SGD(part, **settings) for part in parts]
        for step in range(3):
            grad = rng.normal(size=whole.size).astype(dtype) * (10.0 ** (-2 * step))
            if step == 1:
                grad[-1] = np.inf
            expected = one.step(grad)
            pieces = halves(grad)
            sums = np.concatenate([sums_of([piece])[0] for piece in pieces])
            infos = [
                opt.step(piece, exchange=lambda _, sums=sums: sums)
                for opt, piece in zip(two, pieces, strict=True)
            ]
            for info in infos:
                np.testing.assert_equal(tuple(info), tuple(expected))
            assert_same_bits(np.concatenate(parts), whole)

    def test_accumulated_gradients(self):
        rng = np.random.default_rng(0)
        whole = rng.normal(size=2 * BLOCK)
        parts = [half.copy() for half in halves(whole)]
        one = op.Adam(whole, max_grad_norm=0.5)
        two = [op.Adam(part, max_grad_norm=0.5) for part in parts]
        for _ in range(2):
            grad = rng.normal(size=whole.size)
            one.accumulate(grad)
            for opt, piece in zip(two, halves(grad), strict=True):
                opt.accumulate(piece)
        sums = []

        def refuse(own):
            sums.append(own)
            raise InterruptedError

        for opt in two:
            with pytest.raises(InterruptedError):
                opt.step(grad_scale=2, exchange=refuse)
        expected = one.step(grad_scale=2)
        for opt in two:
            assert opt.step(grad_scale=2, exchange=lambda _: np.concatenate(sums)) == expected
        assert_same_bits(np.concatenate(parts), whole)

    @given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=8), st.integers(0, 8))
    def test_the_norm_of_any_gradients(self, values, at):
        grad = np.array(values)
        one = op.SGD([np.zeros(1) for _ in values], max_grad_norm=math.inf)
        expected = one.step([np.array([g]) for g in grad]).grad_norm
        own = op.SGD([np.zeros(1) for _ in values[:at]] or [np.zeros(0)], max_grad_norm=math.inf)

        calls = []

        def exchange(sums):
            unit = other_unit(np.sum(np.square(grad))) if calls else 1.0
            calls.append(sums)
            return np.square(grad * unit)

        given_ = [np.array([g]) for g in grad[:at]] or [np.zeros(0)]
        assert own.step(given_, exchange=exchange).grad_norm == expected


def other_unit(total):
    return 2.0**600 if total < 2.0**-900 else 2.0**-600


class TestRefusals:
    def check(self, opt, w, grads, exchange, error, match):
        before = digest(w), digest(opt.state_dict())
        with pytest.raises(error, match=match):
            opt.step(grads, exchange=exchange)
        assert (digest(w), digest(opt.state_dict())) == before

    @pytest.mark.parametrize(
        ("returned", "error", "match"),
        [
            (None, TypeError, "exchange: expected it to return a vector of float64, got NoneType"),
            ([1.0], TypeError, "got list"),
            (np.ones(1, np.float32), TypeError, "got float32"),
            (np.ones((1, 1)), ValueError, r"got shape \(1, 1\)"),
            (
                np.empty(0),
                ValueError,
                "exchange: expected at least the 1 sums of this",
            ),
            (np.array([-1.0]), ValueError, "exchange: expected sums of squares, got -1.0"),
        ],
    )
    def test_what_is_returned(self, returned, error, match):
        w = np.ones(2)
        opt = op.Adam(w, max_grad_norm=1.0, ema_decay=0.9)
        self.check(opt, w, np.ones(2), lambda _: returned, error, match)

    def test_what_is_no_function(self):
        w = np.ones(2)
        self.check(op.SGD(w), w, np.ones(2), 3, TypeError, "exchange: expected a function or None")

    def test_sums_over_all_arrays_are_not_exchanged(self):
        w = np.ones(2)
        match = "exchange: expected None beside prodigy"
        self.check(op.Prodigy(w), w, np.ones(2), lambda sums: sums, ValueError, match)

    def test_an_exception_changes_nothing(self):
        w = np.ones(2)
        opt = op.Adam(w, max_grad_norm=1.0)

        def fail(sums):
            raise KeyError("mine")

        self.check(opt, w, np.ones(2), fail, KeyError, "mine")
        assert opt.step(np.ones(2)).step == 1

    def test_a_first_step_that_fails_keeps_the_old_arrays(self):
        w = np.ones(2)
        opt = op.Adam(w)
        opt.step(np.ones(2))
        opt.param_groups[0]["ema_decay"] = 0.5

        def fail(sums):
            raise KeyError("mine")

        self.check(opt, w, np.ones(2), fail, KeyError, "mine")

    def test_it_is_called_once_all_else_is_checked(self):
        w = np.ones(2)
        match = r"grads: expected the parameter's shape"
        self.check(op.SGD(w), w, np.ones(3), pytest.fail, ValueError, match)

    @pytest.mark.parametrize("call", ["step", "accumulate", "save", "averaged"])
    def test_no_call_within_one(self, call, tmp_path):
        w = np.ones(2)
        opt = op.SGD(w, ema_decay=0.9)

        def exchange(sums):
            given_ = {"save": [tmp_path / "file"], "averaged": []}.get(call, [np.ones(2)])
            getattr(opt, call)(*given_)
            return sums

        if call == "save":  # reading is no change
            opt.step(np.ones(2), exchange=exchange)
            return
        self.check(opt, w, np.ones(2), exchange, ValueError, f"{call}: expected")

    def test_an_array_that_it_changes(self):
        w = np.ones(2)
        grad = np.ones(2)
        opt = op.SGD([w])

        def exchange(sums):
            grad.resize(4000, refcheck=False)
            return sums

        with pytest.raises(ValueError, match="arrays that do not change during the call"):
            opt.step([grad], exchange=exchange)
        np.testing.assert_array_equal(w, 1)

    def test_stats_are_of_this_process(self):
        w = {"a": np.ones(2)}
        info = op.SGD(w, lr=1.0, max_grad_norm=math.inf).step(
            {"a": np.array([3.0, 4.0])}, stats=True, exchange=lambda _: np.array([100.0])
        )
        assert info.grad_norm == 10.0
        assert info.stats["a"].grad_norm == 5.0
