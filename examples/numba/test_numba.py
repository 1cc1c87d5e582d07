"""The program's layout against the rule in NumPy."""

import os
import re
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest

import layout
import onepass as op


@pytest.mark.parametrize(("cls", "lr"), [(op.Adam, 0.2), (op.Lion, 0.02)])
def test_the_layout_is_that_of_the_rule_in_numpy(cls, lr, oracle, assert_same_bits):
    """The same compiled code takes either rule: which one is no constant in it."""
    _, places, edges, rng = layout.begin()
    same = deepcopy(rng)
    reference = oracle(cls, [places], {"lr": lr})
    assert layout.train(places, edges, rng, 20, *layout.find_rule(cls.rule, lr=lr)) == 0
    for _ in range(20):
        grad = np.empty_like(places)
        layout.find_gradient(reference.params[0], edges, same, grad)
        reference.step([grad])
    assert_same_bits([places], reference.params)
    assert len(layout.train.signatures) == 1


def test_the_second_process_compiles_nothing(tmp_path):
    """Nor does it lay out otherwise."""
    printed = [
        subprocess.run(
            [sys.executable, "-W", "error", layout.__file__],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    agree, first = printed[0].splitlines()
    assert float(re.search(r"([\d.]+)%", agree)[1]) > 85
    assert first == "compiled: 1, from the cache: 0"
    assert printed[1].splitlines() == [agree, "compiled: 0, from the cache: 1"]


def test_a_code_is_returned():
    _, places, edges, rng = layout.begin()
    rule, settings, scalars = layout.find_rule("adam")
    before = places.copy()
    assert (
        layout.train(places, edges, rng, 1, rule + 1000, settings, scalars) == 1
    )  # ONEPASS_NO_RULE
    assert np.array_equal(places, before)
