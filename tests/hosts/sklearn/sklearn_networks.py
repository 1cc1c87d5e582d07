"""What the tests of the networks share: small ones, their data, and their weights."""

import copy
from functools import partial

import numpy as np
from sklearn import neural_network

import onepass as op
from helpers import assert_same_bits
from onepass.sklearn import MLPClassifier, MLPRegressor

PAIRS = [
    (neural_network.MLPClassifier, MLPClassifier),
    (neural_network.MLPRegressor, MLPRegressor),
]
KINDS = [(MLPClassifier, np.float32), (MLPRegressor, np.float64)]
"""Where each network and each dtype will do, and not each with each."""

SMALL = {"hidden_layer_sizes": (7, 5), "batch_size": 16, "max_iter": 4, "random_state": 0}

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6))
CLASSES = (X[:, 0] + X[:, 1] ** 2).round().clip(-1, 1)
WEIGHTS = RNG.uniform(0.5, 2.0, len(X))


def target(network, dtype=np.float64):
    return CLASSES if isinstance(network, neural_network.MLPClassifier) else X[:, 0].astype(dtype)


def fit(network, dtype=np.float64, **keywords):
    return network.fit(X.astype(dtype), target(network, dtype), **keywords)


def partial_fit(network, dtype=np.float64):
    classes = {} if isinstance(network, neural_network.MLPRegressor) else {"classes": [-1, 0, 1]}
    return network.partial_fit(X.astype(dtype), target(network, dtype), **classes)


def weights(network):
    return [*network.coefs_, *network.intercepts_]


def copied(network):
    return [array.copy() for array in weights(network)]


def assert_same_weights(actual, expected):
    for a, b in zip(weights(actual), weights(expected), strict=True):
        assert_same_bits(a, b)


def sutskever(momentum=0.9, nesterovs_momentum=True, **_):
    """The class and the settings that are scikit-learn's SGD."""
    nesterov = nesterovs_momentum and momentum > 0
    return partial(op.SGD, momentum=momentum, nesterov=nesterov, form="sutskever")


def in_groups(cls, params, lr, **others):
    """As for Muon: matrices and vectors apart."""
    matrices, vectors = ([p for p in params if (p.ndim > 1) == is_matrix] for is_matrix in (1, 0))
    return cls([{"params": vectors, **others}, {"params": matrices}], lr=lr)


def chosen(cls):
    """What to pass as `optimizer` for a class."""
    is_directed = cls.row.is_directed(cls.defaults)
    return partial(in_groups, cls, use_muon=False) if is_directed else cls


def recording(cls, log):
    """A class that notes the gradients it is given, and the arrays that it is made with."""

    class Recording(cls):
        def __init__(self, params, **settings):
            log["params"] = copy.deepcopy(params)
            log["grads"] = []
            super().__init__(params, **settings)

        def step(self, grads=None, **options):
            log["grads"].append(copy.deepcopy(grads))
            return super().step(grads, **options)

    return Recording
