import copy

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier, _multilayer_perceptron

import sklearn_mlp
from sklearn_mlp import AdamOptimizer, digits, fit, fit_replaced, replaced, weights

DTYPES = (np.float64, np.float32)


def assert_same_bits(own, ours):
    for a, b in zip(weights(own), weights(ours), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nesterovs_momentum": False},
        {"momentum": 0.0},
        {"learning_rate": "invscaling", "learning_rate_init": 0.1},
        {"learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1},
        {"early_stopping": True, "warm_start": True},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_sgd_is_bit_for_bit(dtype, settings):
    settings = {"solver": "sgd", "max_iter": 5, **settings}
    own, ours = fit(digits(dtype), **settings), fit_replaced(digits(dtype), **settings)
    assert own._optimizer.learning_rate == ours._optimizer.learning_rate
    assert_same_bits(own, ours)


@pytest.mark.parametrize(
    "settings",
    [{}, {"learning_rate_init": 2e-3, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}],
    ids=["default", "all"],
)
def test_adam_ends_where_scikit_learns_does(settings):
    data, settings = digits(np.float64), {"solver": "adam", "max_iter": 5, **settings}
    own, ours = fit(data, **settings), fit_replaced(data, **settings)
    assert ours._optimizer.t == own._optimizer.t > 0
    for a, b in zip(weights(own), weights(ours), strict=True):
        assert np.abs(a - b).max() <= 2e-16
    np.testing.assert_array_equal(own.predict(data[0]), ours.predict(data[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_step_of_adam_is_within_a_rounding(dtype, monkeypatch):
    """In float32 the end of a training can be far off all the same.

    Adam divides a gradient that is nothing but rounding by its own size.
    """
    steps = []

    class Beside(AdamOptimizer):
        def update_params(self, params, grads):
            twin, theirs = copy.deepcopy((self, params))
            super(AdamOptimizer, twin).update_params(theirs, grads)
            super().update_params(params, grads)
            ulp = np.spacing(max(np.abs(p).max() for p in params))
            steps.append(max(np.abs(p - q).max() for p, q in zip(params, theirs, strict=True)))
            assert steps[-1] <= ulp

    monkeypatch.setattr(sklearn_mlp, "AdamOptimizer", Beside)
    fit_replaced(digits(dtype), solver="adam", max_iter=5)
    assert len(steps) == 5 * 9


def test_weights_that_the_user_replaces_are_the_ones_that_move():
    images, labels = digits(np.float64)

    def train():
        network = MLPClassifier(random_state=0, solver="sgd")
        network.partial_fit(images, labels, classes=np.unique(labels))
        network.coefs_ = [0.5 * w for w in network.coefs_]
        return network.partial_fit(images, labels)

    own = train()
    with replaced():
        ours = train()
    assert_same_bits(own, ours)


def test_another_scikit_learn_is_noticed(monkeypatch):
    class Untouched(MLPClassifier):
        def _fit_stochastic(self, *_):
            self._optimizer = None

    monkeypatch.setattr(sklearn_mlp, "MLPClassifier", Untouched)
    with pytest.raises(RuntimeError, match="expected our optimizer"):
        fit_replaced(digits(np.float64))
    monkeypatch.delattr(_multilayer_perceptron, "SGDOptimizer")
    with pytest.raises(AttributeError, match="SGDOptimizer"):
        fit_replaced(digits(np.float64))


def test_program(capsys):
    sklearn_mlp.main(rounds=1)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("scikit-learn ")
    assert ["difference 0e+00" in line for line in lines] == [False, False, True, True]
