"""scikit-learn's MLP, trained by onepass instead of its own Adam and SGD."""

import warnings
from functools import partial
from importlib.metadata import version
from unittest import mock

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, _multilayer_perceptron, _stochastic_optimizers
from threadpoolctl import threadpool_limits

import onepass as op
from comparing import median_times, show

# The replacement. `fit` and `partial_fit` call `update_params` after each batch. Settings, state
# and learning rate are the attributes of scikit-learn's classes, which stay as they are but for
# `velocities`: ours have the other sign.


class AdamOptimizer(_stochastic_optimizers.AdamOptimizer):
    def update_params(self, params, grads):
        betas = self.beta_1, self.beta_2
        settings = {"lr": self.learning_rate_init, "betas": betas, "eps": self.epsilon}
        op.kernels.adam(params, grads, self.ms, self.vs, step=self.t + 1, eps_hat=True, **settings)
        self.t += 1


class SGDOptimizer(_stochastic_optimizers.SGDOptimizer):
    def update_params(self, params, grads):
        settings = {"lr": self.learning_rate, "momentum": self.momentum, "form": "sutskever"}
        if self.momentum == 0:  # then there is no velocity, and nothing to look ahead along
            op.kernels.sgd(params, grads, **settings)
        else:
            op.kernels.sgd(params, grads, self.velocities, nesterov=self.nesterov, **settings)


def replaced():
    """Let every MLP train with these; `with replaced():` for a while, `.start()` for good.

    scikit-learn has no public way to do it. If a later version has other names, this raises
    AttributeError.
    """
    return mock.patch.multiple(
        _multilayer_perceptron, AdamOptimizer=AdamOptimizer, SGDOptimizer=SGDOptimizer
    )


# The comparison, on scikit-learn's digits.


def digits(dtype):
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(dtype), labels


@threadpool_limits.wrap(limits=1)  # the threads of matrix products would wait for busy cores
def fit(data, **settings):
    """Return a fitted network. It may have run out of epochs, which is no news here."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Stochastic Optimizer: Maximum iterations", ConvergenceWarning
        )
        return MLPClassifier(random_state=0, **settings).fit(*data)


def fit_replaced(data, **settings):
    with replaced():
        network = fit(data, **settings)
    if not isinstance(network._optimizer, (AdamOptimizer, SGDOptimizer)):
        raise RuntimeError(f"expected our optimizer in the network, got {network._optimizer}")
    return network


def weights(network):
    return network.coefs_ + network.intercepts_


def update(network, count):
    """Let the network's optimizer update copies of the weights."""
    copies, grads = ([w.copy() for w in weights(network)] for _ in range(2))
    for _ in range(count):
        network._optimizer.update_params(copies, grads)


def main(rounds=5):
    print(f"scikit-learn {version('scikit-learn')}")
    for solver in ("adam", "sgd"):
        for dtype in (np.float64, np.float32):
            data, settings = digits(dtype), {"solver": solver, "max_iter": 10}
            networks = [f(data, **settings) for f in (fit, fit_replaced)]
            own, ours = map(weights, networks)
            difference = max(np.abs(a - b).max() for a, b in zip(own, ours, strict=True))
            fits = (partial(f, data, **settings) for f in (fit, fit_replaced))
            loops = (partial(update, network, 100) for network in networks)
            times = median_times(*fits, *loops, rounds=rounds)
            show(f"{solver} {dtype.__name__}", difference, times)


if __name__ == "__main__":
    main()
