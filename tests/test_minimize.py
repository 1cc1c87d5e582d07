"""`minimize`: the optimizer's own steps, where they end, and what comes back."""

import math
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from commands import run_code
from helpers import accepts, assert_same_bits, shaped
from interrupting import at_each_place
from onepass.optim import registry

CURVATURE, TARGET = np.array([1.0, 3.0, 0.5, 2.0]), np.array([1.0, -2.0, 3.0, 0.0])


def quadratic(x):
    """Half the squared distance to `TARGET`, in units of each element's own; of any shape."""
    curvature, target = CURVATURE.reshape(x.shape), TARGET.reshape(x.shape)
    return 0.5 * (curvature * (x - target) ** 2).sum(), curvature * (x - target)


def start_of(cls, settings=()):
    return shaped(cls, dict(settings), np.array([4.0, 1.0, -1.0, 0.5]))


def scripted(*values, grad=1.0):
    """A function of one element that has these values one after the other, whatever the point."""
    left = iter(values)
    return lambda x: (next(left), np.full_like(x, grad))


def points_of(minimized, *args, **options):
    """What `minimize` returns, and all points but the first."""
    iterates = []
    found = minimized(*args, callback=iterates.append, **options)
    return found, iterates


def test_it_takes_the_optimizers_own_steps(every_class):
    x0 = start_of(every_class)
    found, iterates = points_of(op.minimize, quadratic, x0, optimizer=every_class, maxiter=5)
    w = x0.copy()
    opt = every_class(w, weight_decay=0.0)
    for nit, iterate in enumerate(iterates, start=1):
        opt.step(quadratic(w)[1])
        assert_same_bits(iterate.x, w)
        assert_same_bits(iterate.jac, quadratic(w)[1])
        assert (iterate.fun, iterate.nit) == (quadratic(w)[0], nit)
    assert (found.nit, len(iterates)) == (5, 5)
    assert found.fun == min(found.history) == quadratic(found.x)[0]
    assert_same_bits(x0, start_of(every_class))


def test_a_name_is_a_class():
    a = op.minimize(quadratic, np.zeros(4), optimizer="lion", lr=0.1)
    b = op.minimize(quadratic, np.zeros(4), optimizer=op.Lion, lr=0.1)
    assert_same_bits(a.x, b.x)
    adam = op.minimize(quadratic, np.zeros(4), optimizer=op.Adam)
    assert_same_bits(op.minimize(quadratic, np.zeros(4)).x, adam.x)


def test_a_schedule():
    found, _ = points_of(
        op.minimize, scripted(3, 2, 1, 0), [0.0], optimizer="sgd", lr=lambda k: 2.0**-k, maxiter=3
    )
    assert found.x == -(1 + 0.5 + 0.25)


def rests(cls):
    """Whether a rule stays where it begins without gradients: no decay of its own, no momentum."""
    starts = zip(cls.row.start_values(cls.defaults), cls.row.has_sign, strict=True)
    return "lambd" not in cls.checks and not any(start and signed for start, signed in starts)


@pytest.mark.parametrize("cls", list(filter(rests, registry.values())))
def test_without_a_decay_the_minimum_stays(cls):
    x0 = start_of(cls)
    options = {"optimizer": cls, "gtol": None, "maxiter": 5, "point": "last"}
    found = op.minimize(lambda x: (0.0, np.zeros_like(x)), x0, **options)
    assert_same_bits(found.x, x0)


def test_a_decay_that_was_asked_for():
    options = {"lr": 0.1, "weight_decay": 0.5}
    found = op.minimize(
        lambda x: (0.0, np.zeros_like(x)),
        [1.0, -2.0],
        optimizer="adamw",
        gtol=None,
        maxiter=1,
        point="last",
        **options,
    )
    assert_same_bits(found.x, np.array([1.0, -2.0]) * (1 - 0.1 * 0.5))


class TestWhichPoint:
    VALUES = (5, 1, 3, 2)

    def found(self, point):
        options = {"optimizer": "sgd", "lr": 1.0, "maxiter": 3, "point": point}
        return op.minimize(scripted(*self.VALUES), [0.0], **options)

    def test_the_best(self):
        found = self.found("best")
        assert (found.x, found.fun, found.jac) == (-1, 1, 1)
        assert_same_bits(found.history, np.array(self.VALUES, float))

    def test_the_last(self):
        assert (self.found("last").x, self.found("last").fun) == (-3, 2)

    def test_no_average(self):
        with pytest.raises(ValueError, match="^ema_decay: expected it, or swa_start, for averaged"):
            self.found("averaged")

    @pytest.mark.parametrize(
        ("cls", "options"),
        [
            (cls, options)
            for options in ({}, {"ema_decay": 0.5}, {"swa_start": 2})
            for cls in (op.SGD, *(cls for cls in registry.values() if cls.own_average))
            if accepts(cls, options) and (options or cls.own_average)
        ],
    )
    def test_the_average(self, cls, options):
        w = np.zeros(4)
        opt = cls(w, lr=0.1, weight_decay=0.0, **options)
        for _ in range(4):
            opt.step(quadratic(w)[1])
        with opt.averaged():
            expected = w.copy()
        options = {"optimizer": cls, "lr": 0.1, "maxiter": 4, **options}
        found = op.minimize(quadratic, np.zeros(4), point="averaged", **options)
        assert_same_bits(found.x, expected)
        assert found.fun == quadratic(expected)[0]
        assert_same_bits(found.jac, quadratic(expected)[1])
        assert (found.nit, found.nfev, len(found.history)) == (4, 6, 5)

    @pytest.mark.parametrize("value_there", [0.5, 1.5])
    def test_the_best_may_be_the_average(self, value_there):
        options = {"optimizer": "sgd", "lr": 1.0, "maxiter": 3, "ema_decay": 0.0}
        found = op.minimize(scripted(*self.VALUES, value_there), [0.0], **options)
        expected = {0.5: (-3, 0.5), 1.5: (-1, 1)}  # with no decay the average is the last one
        assert (found.x, found.fun) == expected[value_there]


class TestEnds:
    def test_at_the_start(self):
        found = op.minimize(quadratic, TARGET)
        assert (found.nit, found.nfev, found.njev, found.status) == (0, 1, 1, 0)
        assert found.success
        assert_same_bits(found.x, TARGET)

    def test_without_elements(self):
        assert op.minimize(lambda x: (1.0, x), []).success

    @pytest.mark.parametrize(("gtol", "nit"), [(0.25, 2), (0.2, 3), (0.0, 5), (None, 9)])
    def test_gtol(self, gtol, nit):
        """Half of the way in each step; a gradient of 2**-k, and of 0 from the fifth on."""

        def halving(x):
            return x.item() ** 2, np.where(x > 1 / 32, x, 0)

        found = op.minimize(halving, [1.0], optimizer="sgd", lr=0.5, gtol=gtol, maxiter=9)
        assert found.nit == nit
        assert found.success == (gtol is not None)

    @pytest.mark.parametrize(
        ("values", "nit"),
        [
            ([9, 9, 9, 9], 3),
            ([9, 8, 8.1, 8.2, 8.3], 4),  # falls by more than 1 / 16 * 9
            ([9, 8.7, 8.4, 8.3, 8], 5),  # and so does this, in the second step
            ([9, math.nan, math.nan, math.nan], 3),
        ],
    )
    def test_ftol(self, values, nit):
        fun = scripted(*values, *[values[-1]] * 9)
        options = {"ftol": 1 / 16, "patience": 3, "maxiter": 9, "nonfinite": "skip"}
        found = op.minimize(fun, [0.0], **options)
        assert (found.nit, found.status, found.success) == (nit, 0, True)

    def test_maxiter(self):
        found = op.minimize(quadratic, np.zeros(4), maxiter=0)
        assert (found.nit, found.nfev, found.status, found.success) == (0, 1, 1, False)
        assert found.fun == quadratic(np.zeros(4))[0]

    def test_the_callback(self):
        def stop(iterate):
            if iterate.nit == 2:
                raise StopIteration

        found = op.minimize(quadratic, np.zeros(4), callback=stop)
        assert (found.nit, found.nfev, found.status, found.success) == (2, 3, 99, False)
        assert_same_bits(found.x, op.minimize(quadratic, np.zeros(4), maxiter=2).x)


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_value_ends_it(self, value):
        found = op.minimize(scripted(3.0, 2.0, value), [0.0], optimizer="sgd", lr=1.0)
        assert (found.nit, found.nfev, found.status, found.success) == (2, 3, 3, False)
        if value != -math.inf:
            assert (found.x, found.fun) == (-1, 2)

    @pytest.mark.parametrize("slope", [math.nan, math.inf])
    def test_a_gradient_ends_it(self, slope):
        found = op.minimize(lambda x: (1.0, x * slope), [0.5, 1.0])
        assert (found.nit, found.status) == (0, 3)

    def test_the_first_value(self):
        found = op.minimize(scripted(math.nan), [7.0])
        assert found.x == 7
        assert math.isnan(found.fun)

    @pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.inf)])
    def test_it_is_left_out(self, bad):
        """The next step is the one that there would have been."""
        seen = iter([(3.0, 1.0), bad, (2.0, 1.0), (1.0, 1.0)])

        def noisy(x):
            value, slope = next(seen)
            return value, np.full_like(x, slope)

        options = {"lr": 0.1, "point": "last"}
        found = op.minimize(noisy, [0.0], nonfinite="skip", maxiter=3, **options)
        assert_same_bits(
            found.x, op.minimize(scripted(3.0, 2.0, 1.0), [0.0], maxiter=2, **options).x
        )
        assert found.nit == 3

    def test_it_is_an_error(self):
        with pytest.raises(ValueError, match="^fun_and_grad: expected a finite value and gradient"):
            op.minimize(scripted(1.0, math.nan), [0.0], nonfinite="raise")


class TestCopies:
    def test_the_function_may_keep_and_change_its_point(self):
        kept = []

        def careless(x):
            value, grad = quadratic(x)
            x[:] = math.nan
            kept.append(x)
            return value, grad

        expected = op.minimize(quadratic, np.zeros(4), maxiter=5)
        found = op.minimize(careless, np.zeros(4), maxiter=5)
        assert_same_bits(found.x, expected.x)
        assert len({id(x) for x in kept}) == 6

    def test_the_gradient_may_be_one_array_again_and_again(self):
        buffer = np.empty(4)

        def thrifty(x):
            value, buffer[:] = quadratic(x)
            return value, buffer

        found = op.minimize(thrifty, np.zeros(4), lr=1.0, maxiter=5)  # so far that it gets worse
        assert found.fun < found.history[-1]
        assert_same_bits(found.jac, quadratic(found.x)[1])
        found.x[:], found.jac[:] = 0, 0  # they are the caller's

    def test_the_callback_cannot_change_what_is_found(self):
        def change(iterate):
            for array in (iterate.x, iterate.jac):
                with pytest.raises(ValueError, match="read-only"):
                    array[:] = 0

        _, iterates = points_of(op.minimize, quadratic, np.zeros(4), maxiter=3)
        assert not any(np.shares_memory(a.x, b.x) for a in iterates for b in iterates if a is not b)
        op.minimize(quadratic, np.zeros(4), maxiter=3, callback=change)


@pytest.mark.parametrize("x0", [1, np.float32(1), [1], [[1, 2], [3, 4]], np.ones((2, 1), "f2")])
def test_points_have_the_shape_of_the_first(x0):
    shapes = set()

    def fun(x):
        shapes.add((x.dtype.name, x.shape))
        return (x**2).sum(), 2 * x

    found = op.minimize(fun, x0, lr=0.1)
    assert shapes == {("float64", np.shape(x0))}
    assert found.x.shape == found.jac.shape == np.shape(x0)
    assert abs(found.x).max() < 1e-4


class TestBounds:
    def test_the_minimum_of_each_element_is_its_bound(self):
        bounds = [(2, 5), (None, -3), (None, 1), (None, None)]
        found = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=bounds, maxiter=2000)
        assert found.success
        assert np.abs(found.x - [2, -3, 1, 0]).max() < 1e-4
        assert_same_bits(found.x[:3], np.array([2.0, -3.0, 1.0]))

    def test_two_spellings(self):
        low, high = [-1, -math.inf, 0, 0.5], [1, 1, 2, 0.5]
        in_pairs = list(zip(low, high, strict=True))
        pairs = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=in_pairs)
        in_arrays = SimpleNamespace(lb=low, ub=high)
        arrays = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=in_arrays)
        assert_same_bits(pairs.x, arrays.x)
        assert pairs.x[3] == 0.5

    def test_an_object_may_have_one_bound_for_all(self):
        bounds = SimpleNamespace(lb=-0.5, ub=np.full((2, 2), 0.5))
        found = op.minimize(quadratic, np.zeros((2, 2)), lr=0.1, bounds=bounds)
        assert np.abs(found.x - [[0.5, -0.5], [0.5, 0]]).max() < 1e-4

    def test_no_momentum_gathers_at_a_bound(self):
        grads = iter([1.0] * 10 + [-1.0, 0.0])
        options = {"optimizer": "sgd", "lr": 0.25, "momentum": 0.5, "gtol": None}
        found, iterates = points_of(
            op.minimize,
            lambda x: (0.0, np.full_like(x, next(grads))),
            [0.0],
            bounds=[(0, 9)],
            maxiter=11,
            point="last",
            **options,
        )
        assert not any(iterate.x.any() for iterate in iterates[:-1])
        assert found.x == 0.25

    def test_the_gradient_at_a_bound_is_no_slope(self):
        found = op.minimize(lambda x: (x.sum(), np.ones(2)), [1.0, 1.0], bounds=[(1, 2), (1, 1)])
        assert (found.nit, found.success) == (0, True)

    def test_an_average_is_moved_into_them(self):
        """SGD goes from 1 to -1, which is moved to 0; the mean of before that is outside."""
        options = {"optimizer": "sgd", "lr": 2.0, "swa_start": 1, "bounds": [(0, None)]}
        found = op.minimize(scripted(2, 1, 0), [1.0], maxiter=1, point="averaged", **options)
        assert found.x == 0

    bound = st.none() | st.floats(-10, 10)

    @settings(max_examples=100, deadline=None)
    @given(
        cls=st.sampled_from([c for c in registry.values() if not c.row.is_directed(c.defaults)]),
        pairs=st.lists(st.tuples(bound, bound), min_size=4, max_size=4),
        x0=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
        lr=st.sampled_from([0.01, 0.5, 1.0]),
    )
    def test_nothing_is_ever_out_of_bounds(self, cls, pairs, x0, lr):
        bounds = [(a, b) if None in (a, b) or a <= b else (b, a) for a, b in pairs]
        low = np.array([-math.inf if a is None else a for a, _ in bounds])
        high = np.array([math.inf if b is None else b for _, b in bounds])

        def inside(x):
            assert ((low <= x) & (x <= high)).all()
            return quadratic(x)

        start = np.array(x0)
        found = op.minimize(
            inside,
            start,
            optimizer=cls,
            lr=lr,
            maxiter=8,
            bounds=bounds,
            callback=lambda iterate: inside(iterate.x),
        )
        inside(found.x)
        assert_same_bits(start, np.array(x0))
        assert found.fun <= quadratic(np.clip(start, low, high))[0]


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
