"""The solvers' steps: scikit-learn's own, and what the adapter needs of scikit-learn for them."""

import copy
import importlib.util
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import neural_network
from sklearn.base import clone
from sklearn.neural_network import _multilayer_perceptron, _stochastic_optimizers
from sklearn_networks import (
    PAIRS,
    SMALL,
    WEIGHTS,
    X,
    assert_same_weights,
    copied,
    fit,
    partial_fit,
    sutskever,
    weights,
)

import onepass as op
import onepass.sklearn
from helpers import assert_same_bits
from onepass.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_scikit_learn_is_as_the_adapter_needs_it():
    base = _multilayer_perceptron.BaseMultilayerPerceptron
    names = set(base._fit_stochastic.__code__.co_names) | set(base._fit.__code__.co_names)
    needed = {"_optimizer", "update_params", "iteration_ends", "trigger_stopping", "coefs_"}
    needed |= {"_update_no_improvement_count", "_fit_stochastic", "intercepts_"}
    assert needed <= names, f"scikit-learn's networks no longer use {needed - names}"
    theirs = _stochastic_optimizers
    adam, sgd = theirs.AdamOptimizer([np.ones(2)]), theirs.SGDOptimizer([np.ones(2)])
    for made, attributes in (
        (adam, ["beta_1", "beta_2", "epsilon", "t", "ms", "vs"]),
        (sgd, ["lr_schedule", "momentum", "nesterov", "power_t", "velocities"]),
    ):
        expected = ["learning_rate_init", "learning_rate", *attributes]
        assert list(vars(made)) == expected, f"{type(made)} has other attributes"


def adapter_again():
    """Import the module once more, under another name."""
    spec = importlib.util.spec_from_file_location("again", onepass.sklearn.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    return again


def test_another_scikit_learn_is_noticed(monkeypatch):
    class Untouched(MLPClassifier):
        def _fit_stochastic(self, *_):
            self.other = None

    with pytest.raises(RuntimeError, match="^scikit-learn: expected .* by `_optimizer`, got 1"):
        fit(Untouched())
    monkeypatch.delattr(_multilayer_perceptron.BaseMultilayerPerceptron, "_fit_stochastic")
    with pytest.raises(ImportError, match="^scikit-learn: expected .*, got .* without _fit_stoch"):
        adapter_again()


# Its steps.

STEPS = [{"solver": "sgd"}, {"solver": "adam"}, {"optimizer": "adamw"}]

SGD_SETTINGS = {
    "hidden_layer_sizes": st.sampled_from([(3,), (7, 5), (9, 4, 2)]),
    "momentum": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    "nesterovs_momentum": st.booleans(),
    "learning_rate": st.sampled_from(["constant", "invscaling", "adaptive"]),
    "learning_rate_init": st.sampled_from([1e-3, 0.1]),
    "power_t": st.sampled_from([0.5, 1.0]),
    "batch_size": st.sampled_from([1, 16, 54]),
    "alpha": st.sampled_from([0.0, 0.1]),
    "early_stopping": st.booleans(),
    "tol": st.sampled_from([1e-4, 10.0]),
    "n_iter_no_change": st.sampled_from([1, 10]),
    "activation": st.sampled_from(["relu", "logistic"]),
    "warm_start": st.booleans(),
}


@settings(max_examples=40)
@given(
    st.sampled_from(PAIRS),
    st.fixed_dictionaries({}, optional=SGD_SETTINGS),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.booleans(),
)
def test_sgd_is_scikit_learns_to_the_bit(pair, given_settings, dtype, by_class, weighted):
    """Natively, and as an optimizer that takes the same steps, after two fits and a partial one."""
    settings = {**SMALL, "max_iter": 3, "solver": "sgd", **given_settings}
    theirs, ours = pair[0](**settings), pair[1](**settings)
    if by_class and settings.get("momentum") != 1:
        ours.set_params(optimizer=sutskever(**settings))
    keywords = {"sample_weight": WEIGHTS.astype(dtype)} if weighted else {}

    def trained(network):
        """What is raised, where a training diverges."""
        try:
            fit(network, dtype, **keywords)
            fit(network, dtype, **keywords)
            if not network.early_stopping:  # which scikit-learn's partial_fit refuses
                partial_fit(network, dtype)
        except ValueError as error:
            return str(error)

    with np.errstate(all="ignore"):
        diverged = trained(theirs)
        assert trained(ours) == diverged
    if diverged:
        assert "non-finite" in diverged
        return
    assert_same_weights(ours, theirs)
    assert ours._optimizer.learning_rate == theirs._optimizer.learning_rate
    np.testing.assert_array_equal(ours.loss_curve_, theirs.loss_curve_)
    np.testing.assert_array_equal(ours.validation_scores_, theirs.validation_scores_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("theirs", [pair[0] for pair in PAIRS])
@pytest.mark.parametrize(
    "others",
    [{}, {"learning_rate_init": 2e-3, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3}],
    ids=["default", "all"],
)
def test_each_step_of_adam_is_within_a_rounding(theirs, others, dtype, monkeypatch):
    """Of the largest weight. In float32 the end of a training can be far off all the same: Adam
    divides a gradient that is nothing but rounding by its own size.
    """
    steps = []

    class Beside(onepass.sklearn.AdamOptimizer):
        def update_params(self, params, grads):
            other, copies = copy.deepcopy((self, params))
            super(onepass.sklearn.AdamOptimizer, other).update_params(copies, grads)
            super().update_params(params, grads)
            assert (self.t, self.learning_rate) == (other.t, other.learning_rate)
            difference = max(np.abs(p - q).max() for p, q in zip(params, copies, strict=True))
            steps.append(difference <= np.spacing(max(np.abs(p).max() for p in params)))

    monkeypatch.setattr(_multilayer_perceptron, "AdamOptimizer", Beside)
    fit(theirs(**SMALL, **others), dtype)
    assert steps == [True] * 16


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_adam_natively_and_by_its_class(theirs, ours, dtype):
    by_class = partial(op.Adam, eps_hat=True)
    solver, optimizer = ours(**SMALL), ours(**SMALL, optimizer=by_class)
    for network in (solver, optimizer):
        fit(network, dtype)
        partial_fit(network, dtype)
    assert_same_weights(solver, optimizer)
    expected = partial_fit(fit(theirs(**SMALL), dtype), dtype)
    np.testing.assert_array_equal(solver.predict(X).round(3), expected.predict(X).round(3))


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_lbfgs_is_scipys(theirs, ours):
    assert_same_weights(fit(ours(**SMALL, solver="lbfgs")), fit(theirs(**SMALL, solver="lbfgs")))


@pytest.mark.parametrize("optimizer", [None, "sgd", "adam"])
@pytest.mark.parametrize("kind", [np.float64, int])
@pytest.mark.parametrize("weighted", [False, True])
def test_float64_gradients_beside_float32_weights(optimizer, kind, weighted):
    """Which scikit-learn makes where targets are not float32. The gradients alone are rounded."""
    y = (10 * X[:, 0]).astype(kind)
    weight = WEIGHTS if weighted else None
    common = {**SMALL, "solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e-3}
    expected = neural_network.MLPRegressor(**common).fit(X.astype(np.float32), y, weight)
    network = MLPRegressor(**common, optimizer=optimizer).fit(X.astype(np.float32), y, weight)
    assert {array.dtype for array in weights(network)} == {np.dtype(np.float32)}
    if optimizer != "adam":
        for a, b in zip(weights(network), weights(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=16 * 2.0**-23, atol=16 * 2.0**-23)


@pytest.mark.parametrize("settings", STEPS, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_weights_that_the_user_replaces_are_the_ones_that_move(settings, order):
    """With the state that there is, whatever the order of the new arrays."""

    def train(order):
        network = partial_fit(MLPClassifier(**SMALL, **settings))
        network.coefs_ = [np.array(0.5 * w, order=order) for w in network.coefs_]
        replaced = weights(network)
        partial_fit(network)
        assert all(a is b for a, b in zip(weights(network), replaced, strict=True))
        return network

    assert_same_weights(train(order), train("C"))


@pytest.mark.parametrize("settings", STEPS, ids=str)
def test_weights_that_cannot_be_written_are_refused(settings):
    network = partial_fit(MLPClassifier(**SMALL, **settings))
    for array in weights(network):
        array.flags.writeable = False
    before = copied(network)
    with pytest.raises(ValueError, match="expected a writable array, got a read-only one"):
        partial_fit(network)
    for a, b in zip(weights(network), before, strict=True):
        assert_same_bits(a, b)


def test_velocities_have_scikit_learns_sign():
    theirs, ours = (fit(pair(**SMALL, solver="sgd"))._optimizer for pair in PAIRS[0])
    for a, b in zip(ours.velocities, theirs.velocities, strict=True):
        np.testing.assert_array_equal(a, b)


# In scikit-learn's own networks.


@pytest.fixture
def patched():
    onepass.sklearn.patch()
    yield
    onepass.sklearn.unpatch()


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_patched_networks_take_our_steps(theirs, ours, solver, patched):
    network = fit(theirs(**SMALL, solver=solver))
    assert type(network._optimizer).__module__ == "onepass.sklearn"
    own = fit(ours(**SMALL, solver=solver))
    assert_same_weights(network, own)
    onepass.sklearn.unpatch()
    assert type(fit(clone(network))._optimizer).__module__ == _stochastic_optimizers.__name__
    for one in (network, own):  # ours are found without the patch
        twin = pickle.loads(pickle.dumps(one))
        assert_same_weights(partial_fit(twin), partial_fit(one))


def test_a_patch_can_be_repeated_and_undone(patched):
    before = _stochastic_optimizers.SGDOptimizer
    onepass.sklearn.patch()
    assert _multilayer_perceptron.SGDOptimizer is before is onepass.sklearn.SGDOptimizer
    onepass.sklearn.unpatch()
    onepass.sklearn.unpatch()
    assert _multilayer_perceptron.SGDOptimizer is not before
    assert _stochastic_optimizers.SGDOptimizer is _multilayer_perceptron.SGDOptimizer


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_model_of_scikit_learns_file_goes_on_when_patched(solver):
    """Its file names scikit-learn's class, which is then ours."""
    network = partial_fit(neural_network.MLPClassifier(**SMALL, solver=solver))
    saved = pickle.dumps(network)
    onepass.sklearn.patch()
    try:
        loaded = pickle.loads(saved)
        assert type(loaded._optimizer).__module__ == "onepass.sklearn"
        partial_fit(loaded)
    finally:
        onepass.sklearn.unpatch()
    partial_fit(network)
    for a, b in zip(weights(loaded), weights(network), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
