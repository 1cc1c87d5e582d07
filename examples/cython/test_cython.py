"""The program's table against the rule in NumPy."""

import os
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import onepass as op

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def skipgram(tmp_path_factory):
    """The module, built as its first lines say."""
    folder = tmp_path_factory.mktemp("cython")
    shutil.copy(HERE / "skipgram.pyx", folder)
    subprocess.run(
        ["cythonize", "-i", "skipgram.pyx"],
        cwd=folder,
        env={**os.environ, "CFLAGS": f"-I{op.get_include()}"},
        check=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("skipgram")


def test_the_table_is_that_of_the_rule_in_numpy(skipgram, oracle, assert_same_bits):
    words, batches = skipgram.read_batches((HERE.parents[1] / "README.md").read_text())
    table = skipgram.initial_table(len(words))
    sums = np.zeros_like(table)
    reference = oracle(op.Adagrad, [table], {"lr": 0.2})
    index = np.empty(len(table), np.int64)
    grad = np.empty_like(table)
    places = np.full(len(table), -1, np.intp)

    losses = []
    for epoch in range(2):
        losses.append(skipgram.train(table, sums, batches, 0.2, steps=epoch * len(batches)))
        for batch in batches:
            n = skipgram.find_gradient(reference.params[0], batch, index, grad, places, np.zeros(1))
            assert np.array_equal(np.sort(index[:n]), np.unique(batch))
            reference.step([grad[:n]], rows=index[:n])
    assert_same_bits([table, sums], reference.arrays[0])
    assert losses[1] < 0.9 * losses[0] < 0.9 * batches[..., 1:].size * np.log(2)


def test_the_gradient_is_that_of_the_loss(skipgram):
    """By differences, in a table whose numbers are large enough."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6, 4)).astype(np.float32)
    batch = np.array([[0, 3, 4, 5], [1, 3, 5, 5], [0, 4, 3, 3]])
    index, grad = np.empty(6, np.int64), np.empty_like(table)
    places = np.full(6, -1, np.intp)

    def find(table):
        loss = np.zeros(1)
        n = skipgram.find_gradient(table, batch, index, grad, places, loss)
        return n, loss[0]

    for row, k in np.ndindex(*table.shape):
        up, down = table.copy(), table.copy()
        up[row, k] += 2**-8
        down[row, k] -= 2**-8
        slope = (find(up)[1] - find(down)[1]) / (float(up[row, k]) - float(down[row, k]))
        n, _ = find(table)
        at = dict(zip(index[:n].tolist(), grad[:n, k].tolist(), strict=True))
        assert abs(at.get(row, 0) - slope) < 1e-3


def test_sizes_that_do_not_fit_are_refused(skipgram):
    table = skipgram.initial_table(4)
    batches = np.zeros((1, 2, 3), np.int64)
    with pytest.raises(ValueError, match=r"^sums: expected"):
        skipgram.train(table, np.zeros_like(table)[1:], batches, 0.1)
    with pytest.raises(ValueError, match=r"^batches: expected"):
        skipgram.train(table, np.zeros_like(table), batches + len(table), 0.1)
