"""What `minimize` refuses, with nothing changed; and what Ctrl-C leaves."""

import math
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

import onepass as op
from commands import run_code
from helpers import assert_same_bits
from interrupting import at_each_place
from minimize_cases import quadratic, scripted


def never(x):
    raise AssertionError("called")


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"maxiter": 1.5}, TypeError, "maxiter: expected an integer"),
            ({"maxiter": -1}, ValueError, "maxiter: expected an integer"),
            ({"gtol": -1.0}, ValueError, "gtol: expected a finite number >= 0"),
            ({"gtol": "1"}, TypeError, "gtol: expected"),
            ({"ftol": math.nan}, ValueError, "ftol: expected"),
            ({"patience": 0}, ValueError, "patience: expected"),
            ({"point": "first"}, ValueError, "point: expected one of 'best', 'last'"),
            ({"nonfinite": "propagate"}, ValueError, "nonfinite: expected one of 'stop'"),
            ({"progress": 1}, TypeError, "progress: expected True or False"),
            ({"optimizer": "adamm"}, ValueError, "optimizer: expected a class .* got 'adamm'"),
            ({"optimizer": op.Optimizer}, TypeError, "optimizer: expected a class"),
            ({"optimizer": 3}, TypeError, "optimizer: expected a class"),
            ({"lr": -1.0}, ValueError, "lr: expected"),
            ({"learning_rate": 1.0}, TypeError, "learning_rate: .*here it is lr"),
            ({"maximize": True}, TypeError, "maximize: expected no such setting"),
            ({"grads": None}, TypeError, "grads: expected no such setting"),
            ({"x0": [1j]}, TypeError, "x0: expected real numbers, got dtype complex128"),
            ({"x0": ["1"]}, TypeError, "x0: expected real numbers"),
            ({"optimizer": op.Muon}, ValueError, "params: expected"),
            ({"bounds": 3}, TypeError, "bounds: expected a sequence of pairs"),
            ({"bounds": [(0, 1)]}, ValueError, "bounds: expected 2 pairs .* got 1"),
            ({"bounds": [(0, 1), 2]}, TypeError, r"bounds\[1\]: expected a pair"),
            ({"bounds": [(0, 1), (2, 1)]}, ValueError, r"bounds\[1\]: expected low <= high"),
            ({"bounds": [(0, 1), (0, math.nan)]}, ValueError, r"bounds\[1\]: expected"),
            ({"bounds": [(0, 1), (0, "1")]}, TypeError, r"bounds\[1\]: expected"),
            ({"bounds": [(math.inf, math.inf), (0, 1)]}, ValueError, r"bounds\[0\]: expected"),
            (
                {"bounds": SimpleNamespace(lb=[0, 0, 0], ub=1)},
                ValueError,
                r"bounds.lb: expected shape \(2,\)",
            ),
        ],
    )
    def test_arguments(self, options, error, message):
        x0 = np.array([5.0, -5.0])
        with pytest.raises(error, match=f"^{message}"):
            op.minimize(never, **{"x0": x0, **options})
        assert_same_bits(x0, np.array([5.0, -5.0]))

    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            (1.0, TypeError, "expected it to return a value and a gradient, got 1.0"),
            ((1.0, [1.0], 2), TypeError, "expected it to return a value and a gradient"),
            (("a", [1.0]), TypeError, "expected it to return a number, got 'a'"),
            ((1.0, [1.0, 2.0]), ValueError, r"expected a gradient of shape \(1,\), got \(2,\)"),
            ((1.0, 1.0), ValueError, r"expected a gradient of shape \(1,\), got \(\)"),
            ((1.0, [1j]), TypeError, "expected real numbers, got dtype complex128"),
        ],
    )
    def test_what_the_function_returns(self, returned, error, message):
        with pytest.raises(error, match=f"^fun_and_grad: {message}"):
            op.minimize(lambda _: returned, [0.0])

    def test_what_the_function_raises_comes_out(self):
        with pytest.raises(AssertionError, match="^called$"):
            op.minimize(never, [0.0])
        with pytest.raises(StopIteration):  # of the callback alone it is no error
            op.minimize(scripted(2.0, 1.0), [0.0])


class TestInterrupts:
    @pytest.mark.parametrize("who", ["fun_and_grad", "callback"])
    def test_what_was_found_so_far_is_returned(self, who):
        calls = count()

        def interrupted(*_):
            if next(calls) == 3:
                raise KeyboardInterrupt
            return quadratic(*_)

        if who == "callback":
            found = op.minimize(quadratic, np.zeros(4), callback=lambda i: interrupted(i.x))
        else:
            found = op.minimize(interrupted, np.zeros(4))
        assert (found.status, found.success) == (130, False)
        assert found.fun == min(found.history) == quadratic(found.x)[0]
        assert len(found.history) == {"fun_and_grad": 3, "callback": 5}[who]

    def test_before_there_is_anything_it_comes_out(self):
        def interrupted(x):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            op.minimize(interrupted, [0.0])

    @pytest.mark.parametrize("point", ["best", "last", "averaged"])
    def test_at_every_line(self, point):
        x0 = np.zeros(4)
        results = []

        def attempt():
            options = {"ema_decay": 0.5, "point": point, "bounds": [(-3, 3)] * 4, "maxiter": 2}
            return lambda: results.append(op.minimize(quadratic, x0, **options))

        interrupted = 0
        for where, came_out in at_each_place(attempt):
            assert came_out is None or isinstance(came_out, KeyboardInterrupt)
            if came_out is None:
                found = results.pop()
                assert found.fun == quadratic(found.x)[0] <= quadratic(x0)[0], where
                assert_same_bits(found.jac, quadratic(found.x)[1])
                interrupted += found.status == 130
            assert not x0.any()
        assert interrupted


class TestProgress:
    CODE = """
import onepass as op
found = op.minimize(lambda x: ((x**2).sum(), 2 * x), [1.0], maxiter=7, progress=True)
assert found.nit == 7
"""

    def test_a_terminal_gets_a_bar(self):
        done = run_code(self.CODE, FORCE_COLOR="1")
        assert done.returncode == 0, done.stderr
        assert "7/7" in done.stderr
        assert not done.stdout

    def test_nothing_else_does(self):
        done = run_code(self.CODE)
        assert done.returncode == 0
        assert done.stdout == done.stderr == ""
