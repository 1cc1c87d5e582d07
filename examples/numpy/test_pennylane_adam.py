import numpy as np
import pennylane as qml
import pytest

import pennylane_adam
from pennylane_adam import AdamOptimizer, energy_of, fit, hydrogen, start

CLASSES = (qml.AdamOptimizer, AdamOptimizer)


def assert_within_roundings(own, ours, steps):
    """A step may round each number to either neighbour of the exact result."""
    for a, b in zip(own, ours, strict=True):
        assert type(a) is type(b)
        assert a.shape == b.shape
        assert getattr(a, "requires_grad", None) == getattr(b, "requires_grad", None)
        assert np.abs(a - b).max() <= steps * np.spacing(max(np.abs(a).max(), 0.1))


def test_the_ground_state():
    matrix = hydrogen()
    energy = energy_of(matrix)
    own, ours = (fit(cls, energy, steps=40) for cls in CLASSES)
    assert_within_roundings(own, ours, steps=40)
    assert energy(*ours) == pytest.approx(np.linalg.eigvalsh(matrix)[0], abs=1e-4)


def test_many_steps_with_given_gradients():
    rng = np.random.default_rng(0)
    args = [qml.numpy.array(rng.normal(size=shape)) for shape in ((1000,), (3, 4), ())]
    own, ours = (cls(stepsize=0.1, beta1=0.8, beta2=0.9, eps=1e-3) for cls in CLASSES)
    by_own = by_ours = args
    for step in range(100):
        own.stepsize = ours.stepsize = 0.1 / (1 + step)
        grads = [rng.normal(size=arg.shape) for arg in args]
        by_own, by_ours = own.apply_grad(grads, by_own), ours.apply_grad(grads, by_ours)
    assert_within_roundings(by_own, by_ours, steps=100)
    assert own.t == ours.t == 100


def test_arguments_are_left_alone_and_need_no_gradient():
    args = start()
    data = object()
    new = AdamOptimizer().apply_grad([np.ones(()), np.ones(2)], [*args, data])
    assert new[2] is args[2]
    assert new[3] is data
    assert (args[0], args[1].tolist()) == (0.1, [0.1, -0.1])
    assert new[0] < 0.1


def test_one_argument_only_and_a_new_start():
    def square(x):
        return (x**2).sum()

    x = qml.numpy.array([1.0, 2.0])
    optimizer = AdamOptimizer()
    first = optimizer.step(square, x)
    optimizer.step(square, first)
    optimizer.reset()
    assert optimizer.t is None
    np.testing.assert_array_equal(optimizer.step(square, x), first)


def test_an_argument_that_is_trained_later():
    results = []
    for cls in CLASSES:
        optimizer, args = cls(), [qml.numpy.array([1.0, 2.0]), qml.numpy.array([3.0, 4.0])]
        args[0].requires_grad = False
        args = optimizer.apply_grad([np.ones(2)], args)
        args[0].requires_grad = True
        results.append(optimizer.apply_grad([np.ones(2), np.full(2, 2.0)], args))
    assert_within_roundings(*results, steps=2)


def test_program(capsys):
    pennylane_adam.main(rounds=1)
    title, line, energies = capsys.readouterr().out.splitlines()
    assert title.startswith("PennyLane ")
    assert line.startswith("adam ")
    assert energies == "energy -1.13617 Ha, lowest -1.13619 Ha"
