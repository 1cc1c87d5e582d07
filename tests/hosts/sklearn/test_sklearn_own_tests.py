"""scikit-learn's tests of its networks and of estimators in general, on ours."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sklearn.neural_network.tests import test_stochastic_optimizers
from sklearn.utils.estimator_checks import check_estimator

import onepass as op
import onepass.sklearn
from onepass.sklearn import MLPClassifier, MLPRegressor

MODULES = ("test_mlp", "test_stochastic_optimizers")
RUNS = {
    # It compares Adam to the bit: below.
    "solvers": "not test_adam_optimizer",
    # L-BFGS is SciPy's, and takes no optimizer. The private classes are the solvers'. And one test
    # of partial_fit takes a third of the time.
    "optimizers": "test_mlp and not lbfgs and not test_partial_fit_classification",
}
LEFT_OUT = {"solvers": 1, "optimizers": 15}


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    """Both runs, begun at once: the checks of estimators are busy meanwhile."""
    folder = tmp_path_factory.mktemp("sklearn")
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = [
        "-q",
        "-rs",
        "-p",
        "in_sklearn",
        "-p",
        "no:cacheprovider",
        "-c",
        "pytest.ini",
        "--rootdir",
        ".",
        "--pyargs",
    ]
    modules = [f"sklearn.neural_network.tests.{name}" for name in MODULES]
    command = [sys.executable, "-m", "pytest", *options, *modules]
    begun = {}
    for steps, selected in RUNS.items():
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        settings = {"ONEPASS_SKLEARN_STEPS": steps, "PYTHONPATH": path}
        settings |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # two runs, two cores
        begun[steps] = subprocess.Popen(
            [*command, "-k", selected],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield begun
    for run in begun.values():
        run.kill()
        run.wait()
        run.stdout.close()


AVERAGED = partial(op.AdamW, ema_decay=0.9)


@pytest.mark.parametrize(
    "network",
    [
        MLPClassifier(),
        MLPRegressor(),
        MLPClassifier(optimizer=AVERAGED),
        MLPRegressor(optimizer="adamw_schedulefree"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_check_estimator(network):
    done = check_estimator(network, on_fail=None, on_skip=None)
    assert [one for one in done if one["status"] == "failed"] == []
    assert sum(one["status"] == "passed" for one in done) >= 55
    reasons = {str(one["exception"]) for one in done if one["status"] == "skipped"}
    known = "pandas is not installed|SCIPY_ARRAY_API is not set|not have a decision_function"
    assert all(re.search(known, reason) for reason in reasons), reasons


@pytest.mark.parametrize("steps", RUNS)
def test_own_tests(steps, runs):
    """As with scikit-learn's own classes, but for what is left out: all pass, two need pandas."""
    printed, _ = runs[steps].communicate()
    assert runs[steps].returncode == 0, printed
    passed, skipped, left_out = (
        int(found[1]) if (found := re.search(rf"(\d+) {word}", printed)) else 0
        for word in ("passed", "skipped", "deselected")
    )
    assert (passed + skipped + left_out, left_out) == (65, LEFT_OUT[steps]), printed
    reasons = re.findall(r"^SKIPPED .*", printed, re.M)
    assert skipped == 2
    assert all("pandas" in reason for reason in reasons)


def test_own_test_of_adam(monkeypatch):
    """Its step, within a rounding of each operation, where scikit-learn asks for its bits.

    (1 - b) * g**2 and ((1 - b) * g) * g are apart by two roundings each, of which a square root
    leaves half; the root, the quotient, the product and the sum behind them round once more each.
    All terms are of one sign, so that relative errors do not grow.
    """

    def assert_near(expected, actual):
        np.testing.assert_allclose(actual, expected, rtol=8 * np.finfo(float).eps)

    monkeypatch.setattr(test_stochastic_optimizers, "AdamOptimizer", onepass.sklearn.AdamOptimizer)
    monkeypatch.setattr(test_stochastic_optimizers, "assert_array_equal", assert_near)
    test_stochastic_optimizers.test_adam_optimizer()
