"""A parameter of 16 bits with a master in float32."""

import math

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest
from onepass import formats
from storage_cases import BF16, N, dtypes, kinds, normal


class TestMasters:
    @dtypes
    def test_the_parameter_is_a_float32_run_that_is_rounded(self, case, small, rng):
        cls, options = case
        wide = normal(rng, 600).astype(small).astype(np.float32)
        param = wide.astype(small)
        opt, other = cls(param, **options), cls(wide, **options)
        for _ in range(20):
            grad = normal(rng, 600, small)
            opt.step(grad)
            other.step(grad)
            assert_same_bits(param, wide.astype(small))
        entry, expected = opt.state_dict()["state"][0], other.state_dict()["state"][0]
        assert_same_bits(entry.pop("master"), wide)
        assert digest(entry) == digest(expected)

    @dtypes
    @pytest.mark.parametrize("size", [70, N])
    def test_a_weight_that_the_user_changes_is_followed(self, optimizer, small, size, rng):
        """And it alone: the others keep what their parameter cannot hold."""
        wide = normal(rng, size).astype(small).astype(np.float32)
        param = wide.astype(small)
        opt, other = optimizer(param, lr=1e-4), optimizer(wide, lr=1e-4)
        for step in range(6):
            grad = normal(rng, size)
            opt.step(grad)
            other.step(grad)
            assert_same_bits(param, wide.astype(small))
            changed = [3, size - 1] if step % 2 else []
            param[changed] = wide[changed] = small(step - 2.5)
            master = opt.state_dict()["state"][0]["master"]
            assert_same_bits(master, wide)
        assert (wide != wide.astype(small)).any()

    @dtypes
    def test_the_average_is_shown_rounded_and_leaves_no_trace(self, optimizer, small, rng):
        param = normal(rng, dtype=small)
        wide = param.astype(np.float32)
        opt, other = (optimizer(p, ema_decay=0.5) for p in (param, wide))
        for _ in range(3):
            grad = normal(rng)
            opt.step(grad)
            other.step(grad)
        before = digest(opt)
        with opt.averaged(), other.averaged():
            assert_same_bits(param, wide.astype(small))
            param[:10] = 7  # is undone
        assert digest(opt) == before
        opt.step(grad)
        other.step(grad)
        assert_same_bits(param, wide.astype(small))

    @dtypes
    @pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
    def test_lookahead_is_shown_rounded_and_leaves_no_trace(self, small, state_format, rng):
        """At w - lr mu v, of the master w, where it is the user's, and of what v is kept as."""
        param = normal(rng, dtype=small)
        opt = op.SGD(param, lr=0.5, momentum=0.25, state_format=state_format)
        for _ in range(2):
            opt.step(normal(rng))
        param[:10] = 7
        before = digest(opt)
        entry = opt.state_dict()["state"][0]
        velocity = entry["momentum_buffer"]
        if state_format == "q8":
            velocity = formats.q8_decode(velocity, N, signed=True)
        expected = entry["master"] - np.float32(0.125) * velocity.astype(np.float32)
        assert (entry["master"][:10] == 7).all()
        with opt.lookahead():
            assert_same_bits(param, expected.astype(small))
        assert digest(opt) == before

    def test_a_small_rate(self):
        """2^-12 off 1 is too little for bfloat16, whose next number is 1 - 2^-8."""

        def after(steps, **kept):
            param = np.ones(N, BF16)
            opt = op.SGD(param, lr=2.0**-12, **kept)
            for _ in range(steps):
                opt.step(np.ones(N, BF16))
            return param.astype(float)

        assert (after(8) == 1).all()
        assert (after(9) == 1 - 2**-8).all()  # beyond the middle, 1 - 2^-9
        assert (after(32) == 1 - 2**-7).all()
        assert (after(32, rounding="nearest") == 1).all()
        drifted = after(32, rounding="stochastic")
        # Each step is one of 2^-8 with probability 1/16, of variance 2^-16 * 15 / 256.
        spread = 2**-8 * math.sqrt(32 * 15 / 256 / N)
        assert abs(drifted.mean() - (1 - 2**-7)) < 5 * spread
        assert len(np.unique(drifted)) > 3

    @dtypes
    def test_line_search_ends_as_one_step_of_sgd(self, small, rng):
        """Also where its trials move the weights by less than they can show."""
        search = op.line_search.best_of([1e-4, 2e-4, 3e-4, 4e-4])
        start, grad = normal(rng, dtype=small), normal(rng)
        for best in (1e-4, 4e-4):
            param, expected = start.copy(), start.copy()
            seen = iter([5.0, *(abs(eta - best) for eta in search.etas)])
            info = search(param, grad, lambda: next(seen))  # noqa: B023
            assert info.eta == best
            op.SGD(expected, lr=best).step(grad)
            assert_same_bits(param, expected)

    @dtypes
    def test_backtracking(self, small):
        """Of w**2 / 2 a step of 1 finds the minimum, one of 2 goes as far beyond."""
        param = np.array([3.0, -4.0], small)
        search = op.line_search.backtracking(eta=2.0)
        info = search(param, param.copy(), lambda: float((param.astype(float) ** 2).sum() / 2))
        assert info == (1.0, 0.0, 3)
        assert not param.any()

    @kinds
    def test_a_range_test_leaves_no_trace(self, optimizer, dtype, kept, rng):
        param = normal(rng, dtype=dtype)
        opt = optimizer(param, **kept)
        opt.step(normal(rng))
        before = digest(opt)
        found = op.search.range_test(
            opt, lambda: (float((param.astype(float) ** 2).sum()), param.copy()), steps=10
        )
        assert found.losses[0] > 0
        assert digest(opt) == before
