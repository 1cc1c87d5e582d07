"""Callbacks and options, as SciPy's own methods take them."""

import math

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, OptimizeWarning, minimize, rosen, rosen_der, rosen_hess

import onepass as op
import onepass.scipy
from helpers import assert_same_bits

X0 = np.array([-1.2, 1.0, 0.5])


def both(x):
    return rosen(x), rosen_der(x)


class TestCallbacks:
    def run(self, callback, maxiter=5):
        options = {"maxiter": maxiter}
        return minimize(
            both, X0, jac=True, method=onepass.scipy.adam, callback=callback, options=options
        )

    def test_of_the_point(self):
        points = []
        assert self.run(points.append).status == 1
        iterates = []
        op.minimize(both, X0, maxiter=5, callback=iterates.append)
        for point, iterate in zip(points, iterates, strict=True):
            assert_same_bits(point, iterate.x)
            point[:] = 0  # a copy

    def test_of_the_result(self):
        seen = []

        def callback(intermediate_result):
            seen.append(intermediate_result)

        self.run(callback)
        assert [result.nit for result in seen] == [1, 2, 3, 4, 5]
        assert all(isinstance(result, OptimizeResult) for result in seen)
        assert all(result.fun == rosen(result.x) for result in seen)

    @pytest.mark.parametrize("name", ["x", "intermediate_result"])
    def test_it_may_end_it(self, name):
        def stop(x):
            raise StopIteration

        def stop_too(intermediate_result):
            raise StopIteration

        found = self.run({"x": stop, "intermediate_result": stop_too}[name])
        assert (found.nit, found.status, found.success) == (1, 99, False)


class TestOptions:
    def run(self, **options):
        return minimize(both, X0, jac=True, method=onepass.scipy.adam, options=options)

    def test_tol_is_gtol(self):
        method, slope = onepass.scipy.adam, np.abs(rosen_der(X0)).max()
        assert minimize(both, X0, jac=True, method=method, tol=slope).nit == 0
        found = minimize(
            both, X0, jac=True, method=method, tol=slope, options={"gtol": 0, "maxiter": 3}
        )
        assert found.nit == 3

    @pytest.mark.parametrize(("maxiter", "nit"), [(4, 4), (4.0, 4), (3.2, 4), (None, 1000)])
    def test_maxiter_as_scipy_takes_it(self, maxiter, nit):
        assert self.run(maxiter=maxiter).nit == nit

    def test_an_endless_number_of_iterations(self):
        with pytest.raises(TypeError, match="^maxiter: expected an integer >= 0, got inf"):
            self.run(maxiter=math.inf)

    def test_unknown_ones_are_a_warning(self):
        with pytest.warns(OptimizeWarning, match="^Unknown solver options: maxfev, learning_rate"):
            found = self.run(maxiter=2, maxfev=7, learning_rate=0.1)
        assert found.nit == 2
        with pytest.warns(OptimizeWarning, match="here it is lr") as caught:
            self.run(maxiter=2, learning_rate=0.1)
        assert caught[0].filename == __file__

    def test_what_cannot_be_is_an_error(self):
        with pytest.raises(TypeError, match="^maximize: expected no such setting"):
            self.run(maximize=True)
        with pytest.raises(ValueError, match="^lr: expected"):
            self.run(lr=-1.0)

    def test_disp(self, capsys):
        minimize(both, np.ones(3), jac=True, method=onepass.scipy.adam, options={"disp": True})
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            "No element of the gradient is larger than `gtol`.",
            "         Current function value: 0.000000",
            "         Iterations: 0",
            "         Function evaluations: 1",
            "         Gradient evaluations: 1",
        ]
        with pytest.warns(OptimizeWarning, match="^Maximum number of iterations"):
            self.run(disp=True, maxiter=2)

    def test_return_all(self):
        found = self.run(return_all=True, maxiter=4, ema_decay=0.9)
        assert (len(found.allvecs), found.nfev) == (5, 6)
        assert_same_bits(found.allvecs[0], X0)
        assert_same_bits(np.array([rosen(x) for x in found.allvecs]), found.history)

    def test_hessians_are_not_used(self):
        with pytest.warns(RuntimeWarning, match="does not use Hessian information"):
            minimize(both, X0, jac=True, hess=rosen_hess, method=onepass.scipy.adam)

    @pytest.mark.parametrize("constraints", [{"type": "eq", "fun": rosen}, [3], rosen])
    def test_constraints(self, constraints):
        with pytest.raises(ValueError, match="^constraints: expected none but bounds, got"):
            minimize(both, X0, jac=True, constraints=constraints, method=onepass.scipy.adam)

    @pytest.mark.parametrize("constraints", [None, (), []])
    def test_no_constraints(self, constraints):
        method = onepass.scipy.adam
        assert method(both, np.ones(2), jac=True, constraints=constraints).success

    def test_one_dimension(self):
        with pytest.raises(ValueError, match=r"^x0: expected one dimension, got shape \(2, 2\)"):
            onepass.scipy.adam(both, np.ones((2, 2)), jac=True)
