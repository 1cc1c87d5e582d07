import numpy as np
import pytest
from autograd.misc import flatten, optimizers

import autograd_optimizers
from autograd_optimizers import OURS, RATES, digits, gradient, network, scores

STEPS = 60


def fit(optimizer, **settings):
    return optimizer(gradient(), network(), num_iters=STEPS, **settings)


@pytest.mark.parametrize("mass", [0.9, 0.0])
def test_sgd_is_bit_for_bit(mass):
    own, ours = (fit(f, step_size=0.5, mass=mass) for f in (optimizers.sgd, OURS["sgd"]))
    np.testing.assert_array_equal(flatten(own)[0], flatten(ours)[0], strict=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rmsprop", {}),
        ("rmsprop", {"gamma": 0.8, "eps": 1e-3}),
        ("adam", {}),
        ("adam", {"b1": 0.8, "b2": 0.9, "eps": 1e-3}),
    ],
)
def test_the_others_end_where_autograds_do(name, settings):
    """A step may round each weight to either neighbour of the exact result."""
    both = (getattr(optimizers, name), OURS[name])
    own, ours = (flatten(fit(f, step_size=RATES[name], **settings))[0] for f in both)
    assert np.abs(own - ours).max() <= STEPS * np.spacing(np.abs(own).max())


@pytest.mark.parametrize("name", OURS)
def test_the_network_learns_and_keeps_its_form(name):
    images, labels = digits()
    layers = fit(OURS[name], step_size=RATES[name])
    assert [[a.shape for a in layer] for layer in layers] == [[(64, 50), (50,)], [(50, 10), (10,)]]
    assert (scores(layers, images).argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("name", OURS)
def test_what_the_caller_has_does_not_change(name):
    """Neither the start nor what a callback keeps: on a vector, both are views of what moves."""
    x0 = np.arange(1.0, 5.0)

    def seen_by(optimizer):
        seen = []
        optimizer(
            lambda x, i: np.full_like(x, 0.5 * i),
            x0,
            callback=lambda x, _, g: seen.append((x, g)),
            num_iters=4,
        )
        return np.array(seen)

    own, ours = seen_by(getattr(optimizers, name)), seen_by(OURS[name])
    np.testing.assert_array_equal(x0, [1, 2, 3, 4])
    assert own.shape == ours.shape == (4, 2, 4)
    np.testing.assert_array_equal(own[:, 1], ours[:, 1])
    assert np.abs(own - ours).max() <= 4 * np.spacing(4.0)
    assert (own[3, 0] < own[2, 0]).all()  # else nothing would have moved


def test_program(capsys):
    autograd_optimizers.main(rounds=1)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("autograd ")
    assert [line.split()[0] for line in lines] == ["sgd", "rmsprop", "adam"]
    assert "difference 0e+00" in lines[0]
