"""A plugin of pytest: where a test of SciPy's asks for one of its methods, `onepass.scipy` runs.

A test in which none of ours has run fails, as it says nothing of them.
"""

import pytest
import scipy.optimize
from scipy.optimize import _dual_annealing

import onepass.scipy

REPLACED = ("newton-cg", "bfgs", "l-bfgs-b")
"""Methods that take a gradient; between them they have all tests of what a method owes."""
OPTIONS = {"lr": 0.1, "maxiter": 5000}

theirs = scipy.optimize.minimize
calls = []


def minimize(fun, x0, args=(), method=None, jac=None, *rest, tol=None, options=None, **keywords):
    if isinstance(method, str) and method.lower() in REPLACED and jac:
        calls.append(method)
        method = onepass.scipy.adam
        tolerance = {"gtol": 1e-7} if tol is None else {}
        options = {**OPTIONS, **tolerance, **(options or {})}
    return theirs(fun, x0, args, method, jac, *rest, tol=tol, options=options, **keywords)


def pytest_configure():
    scipy.optimize.minimize = _dual_annealing.minimize = minimize


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    calls.clear()
    yield
    assert calls, "none of onepass.scipy's methods has run in this test"
