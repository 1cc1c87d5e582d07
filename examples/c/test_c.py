"""The program's weights against the rule in NumPy, from the gradients that it writes."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import onepass as op

HERE = Path(__file__).parent
WARNINGS = ("-pedantic", "-Wall", "-Wextra", "-Werror")
SIZES = (640, 10)  # of the weights and the biases


@pytest.fixture(scope="module")
def digits(libraries, run, tmp_path_factory):
    """The program, compiled as its first lines say."""
    program = tmp_path_factory.mktemp("c") / "digits"
    found = libraries / "pkgconfig"
    flags = shlex.split(run("pkgconf", "--cflags", "--libs", "onepass", PKG_CONFIG_PATH=found))
    source = ("-std=c99", "-O2", *WARNINGS, HERE / "digits.c")
    run(os.environ.get("CC", "cc"), *source, "-o", program, *flags, "-lm")
    return program


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.csv"
    images, labels = load_digits(return_X_y=True)
    np.savetxt(path, np.c_[images, labels], fmt="%d", delimiter=",")
    return path


def test_the_weights_are_those_of_the_rule_in_numpy(
    libraries, run, digits, pictures, oracle, assert_same_bits, tmp_path
):
    record = tmp_path / "steps.bin"
    printed = run(digits, pictures, record, LD_LIBRARY_PATH=libraries)
    data = record.read_bytes()
    n = sum(SIZES)
    *grads, weights = np.frombuffer(data[: -8 * n], np.float32).reshape(-1, n)
    average = np.frombuffer(data[-8 * n :])

    settings = {"lr": 0.01, "ema_decay": 0.98, "weight_decay": 0.05}
    each = [settings, {**settings, "weight_decay": 0.0}]
    start = [np.zeros(size, np.float32) for size in SIZES]
    reference = oracle(op.AdamW, start, each, max_grad_norm=0.5)
    for grad in grads:
        reference.step(np.split(grad, SIZES[:1]))
    assert_same_bits(np.split(weights, SIZES[:1]), reference.params)
    assert_same_bits(np.split(average, SIZES[:1]), reference.averages)

    norms = np.linalg.norm(np.array(grads, np.float64), axis=1)
    assert norms.min() < 0.5 < norms.max()  # some were clipped
    last = [float(number) for number in re.findall(r"[\d.]+", printed.splitlines()[-1])]
    _, loss, found, found_by_average = last
    assert loss < 0.2
    assert min(found, found_by_average) > 85


def test_what_it_cannot_read_is_said(libraries, digits, tmp_path):
    (tmp_path / "empty.csv").touch()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    command = [digits, tmp_path / "empty.csv"]
    refused = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("usage: ")
