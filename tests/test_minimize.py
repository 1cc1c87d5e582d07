"""`minimize`: the optimizer's own steps, where they end, and what comes back."""

import math

import numpy as np
import pytest

import onepass as op
from helpers import accepts, assert_same_bits
from minimize_cases import TARGET, points_of, quadratic, scripted, start_of
from onepass.optim import registry


def test_it_takes_the_optimizers_own_steps(every_class):
    x0 = start_of(every_class)
    found, iterates = points_of(quadratic, x0, optimizer=every_class, maxiter=5)
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
        scripted(3, 2, 1, 0), [0.0], optimizer="sgd", lr=lambda k: 2.0**-k, maxiter=3
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

        _, iterates = points_of(quadratic, np.zeros(4), maxiter=3)
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
