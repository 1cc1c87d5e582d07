import numpy as np
import pytest

import backward

SIZES = [5, 7, 6, 3]


def test_both_ways_give_the_same_bits(assert_same_bits):
    (whole, _), (parts, _) = (
        backward.train(way, SIZES, steps=5, batch=8) for way in ("step", "step_one")
    )
    assert whole.keys() == parts.keys()
    assert_same_bits(parts.values(), whole.values())
    start = backward.network(SIZES)
    assert all((param != start[name]).any() for name, param in parts.items())


def test_the_gradient():
    """It is the slope of the loss along a random direction."""
    rng = np.random.default_rng(2)
    params = {name: rng.normal(size=param.shape) for name, param in backward.network(SIZES).items()}
    way = {name: rng.normal(size=param.shape) for name, param in params.items()}
    x = rng.normal(size=(20, SIZES[0]))

    def loss(distance):
        moved = {name: param + distance * way[name] for name, param in params.items()}
        return np.square(backward.forward(moved, x)[-1] - 1).sum() / 2

    grads = {}
    layers = backward.forward(params, x)
    backward.backward(params, layers, layers[-1] - 1, grads.__setitem__)
    slope = sum((grads[name] * way[name]).sum() for name in params)
    assert slope == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-5)


def test_program(capfd):
    backward.main(["--layers", "2", "--width", "40", "--steps", "3"])
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "step_one"]
    assert all("0.0 M parameters, peak" in line for line in lines)
