"""`onepass.scipy`: what SciPy hands over becomes a call of `onepass.minimize`."""

import inspect
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import (
    Bounds,
    OptimizeResult,
    approx_fprime,
    basinhopping,
    dual_annealing,
    minimize,
    rosen,
    rosen_der,
    shgo,
)
from scipy.optimize._optimize import MemoizeJac

import onepass as op
import onepass.scipy
from helpers import assert_same_bits
from onepass.optim import registry

X0 = np.array([-1.2, 1.0, 0.5])
METHODS = {name: getattr(onepass.scipy, name) for name in onepass.scipy.__all__}


def both(x):
    return rosen(x), rosen_der(x)


def test_what_scipy_hands_to_a_method():
    """All that `onepass.scipy` rests on; another version of SciPy may hand over something else."""
    handed = {}

    def method(fun, x0, **keywords):
        handed.update(keywords, x0=x0)
        return fun, keywords["jac"]

    def callback(x):
        return None

    fun, jac = minimize(
        both, [1, 2], args=3, jac=True, method=method, tol=4, callback=callback, options={"lr": 5}
    )
    names = {"args", "jac", "hess", "hessp", "bounds", "constraints", "callback", "tol", "lr", "x0"}
    assert set(handed) == names, "SciPy hands other arguments to a method"
    assert handed["args"] == (3,)
    assert (handed["tol"], handed["lr"]) == (4, 5), "SciPy hands options over in another way"
    assert handed["constraints"] == ()
    assert handed["callback"] is callback, "SciPy wraps the callback"
    assert handed["x0"].dtype == np.float64
    assert isinstance(fun, MemoizeJac), "SciPy takes jac=True apart in another way"
    assert fun.fun is both, "SciPy's MemoizeJac keeps the function under another name"
    assert callable(jac), "SciPy takes jac=True apart in another way"


def test_there_is_one_for_each_optimizer():
    assert {*registry} - {*METHODS} == {"muon"}


@pytest.mark.parametrize("name", METHODS)
def test_each_is_minimize_with_its_class(name):
    options = {"lr": 1e-4, "maxiter": 20}
    kept = X0.copy()
    found = minimize(rosen, kept, jac=rosen_der, method=METHODS[name], options=options)
    expected = op.minimize(both, X0, optimizer=name, **options)
    assert isinstance(found, OptimizeResult)
    assert set(found) == set(vars(expected))
    for field, value in vars(expected).items():
        np.testing.assert_array_equal(found[field], value, strict=True)
    assert_same_bits(kept, X0)


@pytest.mark.parametrize("name", METHODS)
def test_what_each_says_of_itself(name):
    method, cls = METHODS[name], registry[name]
    parameters = inspect.signature(method).parameters
    options = {"maxiter": 1000, "lr": cls.defaults["lr"], "weight_decay": 0.0, "ema_decay": None}
    assert {key: parameters[key].default for key in options} == options
    assert not {"maximize", "clear_grads", "params"} & set(parameters)
    assert method.__doc__.startswith(f"`onepass.{cls.__name__}` for noisy objectives;")
    assert pickle.loads(pickle.dumps(method)) is method


class TestFunctions:
    def test_arguments_and_a_gradient_beside_the_value(self):
        def fun(x, a, b):
            return ((x - a) ** 2).sum() + b, 2 * (x - a)

        options = {"lr": 0.1, "maxiter": 2000}
        method = onepass.scipy.adam
        joined = minimize(fun, [0.0, 0.0], args=(3, 1), jac=True, method=method, options=options)
        apart = minimize(
            lambda *given: fun(*given)[0],
            [0.0, 0.0],
            args=(3, 1),
            jac=lambda *given: fun(*given)[1],
            method=method,
            options=options,
        )
        direct = method(fun, [0.0, 0.0], args=(3, 1), jac=True, **options)
        for found in (joined, apart, direct):
            assert found.success
            assert np.abs(found.x - 3).max() < 1e-4
            assert abs(found.fun - 1) < 1e-8
            assert_same_bits(found.x, joined.x)

    def test_one_argument_that_is_no_tuple(self):
        found = onepass.scipy.sgd(lambda x, a: (a, x), [0.0], args=7, jac=True)
        assert found.fun == 7

    def test_values_that_are_arrays(self):
        found = minimize(lambda x: x**2, 3, jac=lambda x: 2 * x, method=onepass.scipy.rprop)
        assert found.success
        assert isinstance(found.fun, float)

    def test_one_evaluation_an_iteration(self):
        calls = []

        def fun(x):
            calls.append(x)
            return both(x)

        options = {"maxiter": 9}
        found = minimize(fun, X0, jac=True, method=onepass.scipy.adam, options=options)
        assert len(calls) == found.nfev == found.njev == 10

    @pytest.mark.parametrize("bad", [(math.nan, 1.0), (1.0, math.nan)])
    def test_a_point_that_is_skipped_is_evaluated_anew(self, bad):
        """Through SciPy as without it: SciPy's memory of the last point must not answer."""

        def make():
            calls = []

            def fun(x):
                calls.append(x)
                value, grad = both(x)
                return (value * bad[0], grad * bad[1]) if len(calls) in (1, 4, 5) else (value, grad)

            return fun

        options = {"lr": 0.01, "maxiter": 9, "nonfinite": "skip"}
        found = minimize(make(), X0, jac=True, method=onepass.scipy.adam, options=options)
        expected = op.minimize(make(), X0, **options)
        np.testing.assert_array_equal(found.history, expected.history)
        assert np.isfinite(found.history[[1, 2, 5, 6, 7, 8, 9]]).all()
        assert_same_bits(found.x, expected.x)

    def test_a_point_in_a_corner_is_evaluated_anew(self):
        """Where the noise lets it leave: each gradient but the first points inwards."""
        grads = iter([1.0, -1.0, -1.0])
        options = {"lr": 0.25, "maxiter": 2, "gtol": None, "point": "last"}
        found = minimize(
            lambda _: (0.0, np.full(1, next(grads))),
            [0.0],
            jac=True,
            bounds=[(0, 1)],
            method=onepass.scipy.sgd,
            options=options,
        )
        assert found.x == 0.25

    @pytest.mark.parametrize("jac", [None, False, "2-point", "cs"])
    def test_without_a_gradient(self, jac):
        with pytest.raises(TypeError, match="^jac: expected True or a callable, got None .*fprime"):
            minimize(rosen, X0, jac=jac, method=onepass.scipy.adam)
        with pytest.raises(TypeError, match="^jac: expected True or a callable, got"):
            onepass.scipy.adam(rosen, X0, jac=jac)

    def test_with_differences_as_the_message_says(self):
        """Of a function without noise."""
        options = {"lr": 0.05, "maxiter": 3000, "gtol": 1e-4}
        found = minimize(
            rosen,
            [0.5, 0.5],
            jac=lambda x: approx_fprime(x, rosen),
            method=onepass.scipy.adam,
            options=options,
        )
        assert found.success
        assert np.abs(found.x - 1).max() < 1e-2

    @pytest.mark.parametrize(
        ("fun", "jac", "error", "message"),
        [
            (lambda x: x, lambda x: x, TypeError, "fun: expected it to return a number"),
            (rosen, lambda x: x[1:], ValueError, r"jac: expected it to return shape \(3,\)"),
            (rosen, lambda _: "abc", ValueError, "jac: expected it to return shape"),
        ],
    )
    def test_what_they_return(self, fun, jac, error, message):
        kept = X0.copy()
        with pytest.raises(error, match=f"^{message}"):
            minimize(fun, kept, jac=jac, method=onepass.scipy.adam)
        assert_same_bits(kept, X0)


class TestBounds:
    def test_two_spellings(self):
        options = {"lr": 0.05, "maxiter": 3000}
        method = onepass.scipy.adam
        found = [
            minimize(both, X0, jac=True, bounds=bounds, method=method, options=options)
            for bounds in (
                Bounds([-math.inf, -1, 0], [0.5, 2, math.inf]),
                [(None, 0.5), (-1, 2), (0, None)],
            )
        ]
        expected = minimize(both, X0, jac=True, bounds=[(None, 0.5), (-1, 2), (0, None)])
        assert_same_bits(found[0].x, found[1].x)
        assert found[0].success
        assert np.abs(found[0].x - expected.x).max() < 1e-4

    bound = st.floats(-3, 3)

    @settings(max_examples=50)
    @given(
        name=st.sampled_from(sorted(METHODS)),
        pairs=st.lists(st.tuples(bound, bound).map(sorted), min_size=3, max_size=3),
    )
    def test_nothing_is_ever_out_of_bounds(self, name, pairs):
        low, high = np.transpose(pairs)

        def inside(x):
            assert ((low <= x) & (x <= high)).all()
            return both(x)

        options = {"lr": 0.5, "maxiter": 6}
        kept = X0.copy()
        found = minimize(
            inside, kept, jac=True, bounds=Bounds(low, high), method=METHODS[name], options=options
        )
        inside(found.x)
        assert_same_bits(kept, X0)


def wavy(x):
    """SciPy's, for basinhopping: its lowest minimum, of some ten, is at -0.195."""
    value = np.cos(14.5 * x - 0.3) + (x + 0.2) * x
    return value.sum(), -14.5 * np.sin(14.5 * x - 0.3) + 2 * x + 0.2


LOCAL = {"method": onepass.scipy.adam, "jac": True, "options": {"lr": 0.01, "maxiter": 300}}


class TestGlobalMethods:
    """Those that call a local one again and again."""

    def test_basinhopping(self):
        found = basinhopping(wavy, 1.0, niter=50, minimizer_kwargs=LOCAL, rng=0)
        assert abs(found.x.item() + 0.195) < 1e-3

    def test_dual_annealing(self):
        local = {**LOCAL, "jac": lambda x: wavy(x)[1], "bounds": [(-2, 2)]}
        found = dual_annealing(
            lambda x: wavy(x)[0], [(-2, 2)], minimizer_kwargs=local, maxiter=50, rng=0
        )
        assert abs(found.x.item() + 0.195) < 1e-3

    def test_shgo_takes_names_only(self):
        """As the page says of it; where that changes, ours goes there too."""
        with pytest.raises(AttributeError, match="has no attribute 'lower'"):
            shgo(lambda x: wavy(x)[0], [(-2, 2)] * 2, minimizer_kwargs=LOCAL)

    def test_an_interrupt_ends_them(self):
        """A result would have them go on."""
        calls = []

        def interrupted(x):
            calls.append(x)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return wavy(x)

        with pytest.raises(KeyboardInterrupt):
            basinhopping(interrupted, [1.0, 1.0], minimizer_kwargs=LOCAL)
        assert len(calls) == 5


def test_without_scipy():
    code = "import sys; sys.modules['scipy'] = None; import onepass; import onepass.scipy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = "ImportError: onepass.scipy: needs SciPy: python -m pip install scipy"
    assert done.stderr.splitlines()[-1] == expected


def test_documentation(check_documentation):
    check_documentation("scipy")
