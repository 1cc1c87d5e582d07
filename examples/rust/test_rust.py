"""The program's weights against the rule in NumPy, from the gradients that it writes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import onepass as op

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("rustc") is None, reason="there is no rustc")
def test_the_weights_are_those_of_the_rule_in_numpy(
    libraries, run, oracle, assert_same_bits, tmp_path
):
    program, record = tmp_path / "fit", tmp_path / "steps.bin"
    run("rustc", "-O", "-D", "warnings", HERE / "fit.rs", "-L", libraries, "-l", "onepass",
        "-o", program)  # fmt: skip
    printed = run(program, record, LD_LIBRARY_PATH=libraries)
    *grads, weights = np.fromfile(record, np.float32).reshape(-1, 2)
    reference = oracle(op.Adam, [np.zeros(2, np.float32)], {"lr": 0.05})
    for grad in grads:
        reference.step([grad])
    assert_same_bits([weights], reference.params)
    slope, offset = map(float, re.findall(r"-?[\d.]+", printed))
    assert abs(slope - 3) < 0.1
    assert abs(offset + 1) < 0.1
