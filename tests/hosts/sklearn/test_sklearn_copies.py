"""Copies, pickles, searches, warm starts: the rest of scikit-learn."""

import copy
import io
import pickle
from functools import partial

import cloudpickle
import joblib
import numpy as np
import pytest
from sklearn import neural_network
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn_networks import (
    CLASSES,
    KINDS,
    SMALL,
    X,
    assert_same_weights,
    copied,
    fit,
    in_groups,
    partial_fit,
    sutskever,
)

import onepass as op
from onepass.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LONG = {
    "adam": {},
    "sgd": {"solver": "sgd"},
    "class": {"optimizer": op.AdamW},
    "class with momentum": {"optimizer": sutskever()},
    "schedule": {"optimizer": partial(op.Adam, lr=op.schedules.cosine(0.1, steps=20))},
    "memory": {"optimizer": "nadam"},
    "one for all": {"optimizer": "prodigy", "learning_rate_init": 1.0},
    "lookahead": {"optimizer": partial(op.AdamW, lookahead_every=3)},
    "average": {"optimizer": partial(op.AdamW, ema_decay=0.9)},
    "schedule-free": {"optimizer": "adamw_schedulefree", "learning_rate_init": 0.01},
    "groups": {"optimizer": partial(in_groups, op.AdamW, weight_decay=0.0)},
}


def by_joblib(network, **options):
    file = io.BytesIO()
    joblib.dump(network, file)
    file.seek(0)
    return joblib.load(file, **options)


WAYS = {
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "pickled twice": lambda network: pickle.loads(pickle.dumps(copy.deepcopy(network))),
    "deepcopy": copy.deepcopy,
    "joblib": by_joblib,
}


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("ours", "dtype"), KINDS)
def test_a_copy_goes_on_as_the_original_does(settings, way, ours, dtype):
    network = ours(**SMALL, **settings)
    for _ in range(3):
        partial_fit(network, dtype)
    twin = way(network)
    assert_same_weights(twin, network)
    for _ in range(3):
        partial_fit(network, dtype)
        partial_fit(twin, dtype)
        assert_same_weights(twin, network)


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
def test_a_mapped_model_predicts(settings, tmp_path):
    network = partial_fit(MLPClassifier(**SMALL, **settings))
    joblib.dump(network, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    np.testing.assert_array_equal(mapped.predict_proba(X), network.predict_proba(X))
    assert not mapped.coefs_[0].flags.writeable
    if mapped._averaging():
        partial_fit(mapped), partial_fit(network)
        assert_same_weights(mapped, network)
    else:
        with pytest.raises(ValueError, match="expected a writable array"):
            partial_fit(mapped)


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
def test_clone_parameters_and_repr(settings):
    network = MLPClassifier(**settings)
    twin = clone(network)
    assert not hasattr(twin, "_optimizer")
    assert repr(twin) == repr(network)
    given = settings.get("optimizer")
    assert network.get_params()["optimizer"] is given
    theirs = neural_network.MLPClassifier().get_params()
    assert set(network.get_params()) == {*theirs, "optimizer"}
    assert_same_weights(fit(network.set_params(**SMALL)), fit(twin.set_params(**SMALL)))


def test_positional_arguments_are_scikit_learns():
    assert MLPRegressor("poisson", (3,)).get_params()["hidden_layer_sizes"] == (3,)
    with pytest.raises(TypeError, match="nonsense"):
        MLPClassifier(nonsense=1)


def test_grid_search_over_optimizers():
    optimizers = [None, op.SGD, "lion", partial(op.AdamW, weight_decay=0.1)]
    search = GridSearchCV(
        MLPClassifier(**SMALL),
        {"optimizer": optimizers, "learning_rate_init": [0.01, 0.1]},
        cv=2,
        error_score="raise",
    )
    search.fit(X, CLASSES)
    assert len(search.cv_results_["param_optimizer"]) == 8
    assert_same_weights(
        search.best_estimator_, fit(MLPClassifier(**SMALL).set_params(**search.best_params_))
    )


def test_other_processes_take_it():
    """joblib sends estimators by cloudpickle, functions included."""

    def optimizer(params, lr):
        return op.AdamW(params, lr=lr / 2, ema_decay=0.9)

    network = MLPClassifier(**SMALL, optimizer=optimizer)
    twin = pickle.loads(cloudpickle.dumps(network))
    assert_same_weights(fit(twin), fit(network))
    again = pickle.loads(cloudpickle.dumps(network))
    assert_same_weights(partial_fit(again), partial_fit(network))


@pytest.mark.parametrize("settings", LONG.values(), ids=LONG)
def test_warm_start_makes_a_new_optimizer(settings, dtype):
    """Of the weights that are shown."""
    settings = {**settings, "warm_start": True}
    network = fit(MLPClassifier(**SMALL, **settings), dtype)
    start, used = copied(network), network._optimizer
    fit(network.set_params(optimizer=op.SGD, learning_rate_init=0.1, max_iter=1), dtype)
    assert network._optimizer is not used
    other = MLPClassifier(**{**SMALL, "max_iter": 1}, warm_start=True, solver="sgd", momentum=0.0)
    other.set_params(learning_rate_init=0.1)
    fit(other, dtype)
    other.coefs_, other.intercepts_ = start[:3], start[3:]
    assert_same_weights(network, fit(other, dtype))


def test_partial_fit_keeps_its_optimizer():
    """As scikit-learn's does where the solver changes."""
    network = partial_fit(MLPClassifier(**SMALL, optimizer=op.AdamW))
    twin = partial_fit(copy.deepcopy(network).set_params(optimizer=None, solver="sgd"))
    assert_same_weights(partial_fit(network), twin)
