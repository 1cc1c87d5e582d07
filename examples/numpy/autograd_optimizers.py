"""HIPS autograd's `misc.optimizers`, with onepass inside."""

from functools import partial
from importlib.metadata import version

import autograd
import autograd.numpy as np
from autograd.misc import flatten, optimizers
from autograd.scipy.special import logsumexp
from sklearn.datasets import load_digits

import onepass as op
from comparing import median_times, show

# The replacement: called as autograd's are. `x` is one vector of float64 that moves in place, so it
# starts as a copy, and a callback, which may keep what it gets, gets copies.


def gradients(grad, x, callback, num_iters):
    for i in range(num_iters):
        g = grad(x, i)
        if callback:
            callback(x.copy(), i, g)
        yield g


@optimizers.unflatten_optimizer
def sgd(grad, x, callback=None, num_iters=200, step_size=0.1, mass=0.9):
    x, velocity = x.copy(), np.zeros(len(x)) if mass else None
    for g in gradients(grad, x, callback, num_iters):
        op.kernels.sgd(x, g, velocity, lr=step_size, momentum=mass, form="ema")
    return x


@optimizers.unflatten_optimizer
def rmsprop(grad, x, callback=None, num_iters=100, step_size=0.1, gamma=0.9, eps=10**-8):
    x, avg_sq_grad = x.copy(), np.ones(len(x))
    for g in gradients(grad, x, callback, num_iters):
        op.kernels.rmsprop(x, g, avg_sq_grad, lr=step_size, alpha=gamma, eps=eps)
    return x


@optimizers.unflatten_optimizer
def adam(grad, x, callback=None, num_iters=100, step_size=0.001, b1=0.9, b2=0.999, eps=10**-8):
    x, m, v = x.copy(), np.zeros(len(x)), np.zeros(len(x))
    for i, g in enumerate(gradients(grad, x, callback, num_iters), start=1):
        op.kernels.adam(x, g, m, v, step=i, lr=step_size, betas=(b1, b2), eps=eps)
    return x


# The comparison: a network with a hidden layer, on the digits that come with scikit-learn.

BATCH = 200
OURS = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam}
RATES = {"sgd": 0.5, "rmsprop": 0.03, "adam": 0.01}


def network():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(scale=n_in**-0.5, size=(n_in, n_out)), np.zeros(n_out))
        for n_in, n_out in ((64, 50), (50, 10))
    ]


def scores(layers, images):
    (w1, b1), (w2, b2) = layers
    return np.dot(np.tanh(np.dot(images, w1) + b1), w2) + b2


def digits():
    images, labels = load_digits(return_X_y=True)
    return images / 16, labels


def gradient():
    """Return the gradient of the cross entropy on batch `i`, a function of network and `i`."""
    images, labels = digits()

    def loss(layers, i):
        batch = np.arange(i * BATCH, (i + 1) * BATCH) % len(images)
        s = scores(layers, images[batch])
        return np.mean(logsumexp(s, axis=1) - s[np.arange(BATCH), labels[batch]])

    return autograd.grad(loss)


def main(rounds=5):
    print(f"autograd {version('autograd')}")
    layers, grad = network(), gradient()
    given = flatten(layers)[0]
    for name, ours in OURS.items():
        both = getattr(optimizers, name), ours
        settings = {"num_iters": 60, "step_size": RATES[name]}
        results = [flatten(f(grad, layers, **settings))[0] for f in both]
        fits = (partial(f, grad, layers, **settings) for f in both)
        loops = (partial(f, lambda *_: given, given, num_iters=100) for f in both)
        times = median_times(*fits, *loops, rounds=rounds)
        show(name, np.abs(results[0] - results[1]).max(), times)


if __name__ == "__main__":
    main()
