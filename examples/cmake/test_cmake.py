"""The extension's results against the rules in NumPy."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import onepass as op


@pytest.fixture(scope="module")
def descent(tmp_path_factory):
    """The extension, built by pip against the onepass that is installed here."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--no-build-isolation", "--no-deps", "--target", folder)
    command = (sys.executable, "-m", "pip", "install", "--quiet", *options, Path(__file__).parent)
    subprocess.run([*map(str, command)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("descent")


def gradient(x):
    above = x[1:] - x[:-1] * x[:-1]
    grad = np.zeros_like(x)
    grad[1:] = 200 * above
    grad[:-1] += -400 * x[:-1] * above - 2 * (1 - x[:-1])
    return grad


def test_adam_is_the_rule_in_numpy(descent, oracle, assert_same_bits):
    x = np.zeros(37)
    reference = oracle(op.Adam, [x], {"lr": 0.02})
    descent.adam(x, 500, 0.02)
    for _ in range(500):
        reference.step([gradient(reference.params[0])])
    assert_same_bits([x], reference.params)


def test_addsign_is_its_equation_in_numpy(descent, assert_same_bits):
    x, expected = np.zeros(37), np.zeros(37)
    descent.addsign(x, 500, 2e-4)
    exp_avg = np.zeros_like(expected)
    for _ in range(500):
        grad = gradient(expected)
        exp_avg = 0.9 * exp_avg + (1 - 0.9) * grad
        expected -= 2e-4 * (1 + np.sign(grad) * np.sign(exp_avg)) * grad
    assert_same_bits([x], [expected])


def test_both_find_the_bottom_of_the_valley(descent):
    for descend, steps, lr in ((descent.adam, 10_000, 0.02), (descent.addsign, 30_000, 2e-4)):
        x = np.zeros(10)
        descend(x, steps, lr)
        np.testing.assert_allclose(x, 1, atol=0.01)


def test_what_cannot_be_moved_in_place_is_refused(descent):
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        descent.adam(frozen, 1, 0.1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        descent.adam(np.zeros(3, np.float32), 1, 0.1)
