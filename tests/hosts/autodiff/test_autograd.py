"""HIPS autograd's gradients go into a step as they are."""

import autograd
import autograd.numpy as anp
import numpy as np
from autograd.misc.optimizers import sgd

import onepass as op
from helpers import assert_same_bits


def test_documentation(check_documentation):
    check_documentation("autograd")


def layers():
    rng = np.random.default_rng(0)
    return [
        {"w": rng.normal(size=(n_in, n_out)), "b": np.zeros(n_out), "scale": np.ones(())}
        for n_in, n_out in ((3, 5), (5, 1))
    ]


X = np.random.default_rng(1).normal(size=(20, 3))


def loss(layers):
    values = X
    for layer in layers:
        values = anp.tanh(layer["scale"] * (anp.dot(values, layer["w"]) + layer["b"]))
    return anp.mean((values - 0.5) ** 2)


def test_a_nested_network_with_parameters_without_axes():
    """Autograd's own SGD, written as an average of gradients, gives the same bits."""
    ours, gradient = layers(), autograd.grad(loss)
    theirs = sgd(lambda p, _: gradient(p), layers(), num_iters=30, step_size=0.1, mass=0.9)
    opt = op.SGD(ours, lr=0.1, momentum=0.9, form="ema")
    for _ in range(30):
        opt.step(gradient(ours))
    for mine, other in zip(ours, theirs, strict=True):
        for name, array in mine.items():
            assert_same_bits(array, other[name])


def test_parameters_of_float32():
    w = np.ones(3, np.float32)
    grad = autograd.grad(lambda w: anp.mean(anp.sin(w)))(w)
    assert grad.dtype == np.float64, "autograd keeps float32: the page says it does not"
    op.SGD(w, lr=1.0).step(grad)
    assert_same_bits(w, np.float32(1) - grad.astype(np.float32))
