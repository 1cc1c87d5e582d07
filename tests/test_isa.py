"""Every instruction set that this machine has is chosen when asked for, and gives the same bits."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from onepass import _core

HERE = Path(__file__).parent
SUPPORTED = [name for name, supported in _core.isas.items() if supported]

V2 = ["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"]
V3 = [*V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]
V4 = [*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
LEVELS = {"baseline": [], "x86-64-v3": V3, "x86-64-v4": V4}
"""What the psABI's levels have, by the names of Linux, which leaves out what it does not save."""
CPU = Path("/proc/cpuinfo")


def start(isa, *command):
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "ONEPASS_ISA": isa},
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(isa, *command):
    return finish(start(isa, *command))


@pytest.mark.skipif("ONEPASS_ISA" in os.environ, reason="this run is itself one of the forced ones")
@pytest.mark.parametrize(
    "oracles",
    [
        ("test_oracle.py", "test_capi.py", "test_stages.py", "test_formats.py"),
        ("test_storage.py", "test_batchnorm_oracle.py"),
    ],
    ids=" ".join,
)
def test_oracle_on_every_other_isa(oracles):
    # How threads share the work is the same code on each, and so is how C's structs are read.
    chosen = "not threads and (not test_capi or update)"
    # conftest.py ends the session with an error if the forced one did not run.
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-k", chosen)
    command = ("-m", "pytest", *options, *(str(HERE / oracle) for oracle in oracles))
    # Side by side: they take a quarter of the whole suite's time.
    for process in [start(isa, *command) for isa in SUPPORTED if isa != _core.isa]:
        done = finish(process)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert " passed" in done.stdout


@pytest.mark.parametrize("isa", SUPPORTED)
def test_forced_isa_runs_and_says_so(isa):
    code = "import onepass as op; i = op.runtime.info(); print(i['isa'], i['isa_reason'])"
    assert run(isa, "-c", code).stdout.split() == [isa, f"ONEPASS_ISA={isa}"]


@pytest.mark.parametrize("isa", ["sse9", "x86_64_v3", "AVX2"])
def test_unknown_isa_is_an_error_that_lists_the_choices(isa):
    done = run(isa, "-c", "import onepass")
    assert done.returncode != 0
    assert f"got '{isa}'" in done.stderr
    for name in SUPPORTED:
        assert f"'{name}'" in done.stderr


def test_the_best_isa_is_the_default():
    assert SUPPORTED[-1] == _core.isa or os.environ["ONEPASS_ISA"]


@pytest.mark.skipif(
    not CPU.exists() or platform.machine() != "x86_64", reason="Linux tells what an x86-64 CPU has"
)
def test_levels_are_found_where_linux_finds_all_their_features():
    flags = next(line for line in CPU.read_text().splitlines() if line.startswith("flags")).split()
    assert _core.isas == {name: set(LEVELS[name]) <= set(flags) for name in _core.isas}


BATCH_NORM = """
import numpy as np
import onepass as op
from batchnorm_cases import SHAPES
from helpers import digest

rng = np.random.default_rng(1)
for shape, axis in SHAPES:
    for dtype in (np.float32, np.float64):
        x, dy, z = rng.normal(3, 2, (3, *shape)).astype(dtype)
        for options in ({}, {"relu": True, "residual": z}):
            options["axis"] = axis
            y, mean, invstd = op.batch_norm_train(x, **options)
            gradients = op.batch_norm_backward(
                dy, x, saved_mean=mean, saved_invstd=invstd, **options
            )
            options |= {"mean": mean, "var": invstd, "eps": 0.1}
            frozen = op.batch_norm_infer_backward(dy, x, **options)
            inferred = op.batch_norm_infer(x, **options)
            print(digest(y, mean, invstd, gradients, frozen, inferred))
"""


def test_batch_norm_gives_the_same_bits_on_every_isa():
    """Also where the sums are rounded, so that their order shows."""
    command = f"import sys; sys.path.insert(0, {str(HERE)!r}){BATCH_NORM}"
    digests = [run(isa, "-c", command) for isa in SUPPORTED]
    assert digests[0].stdout.count("\n") > 50, digests[0].stderr
    assert {done.stdout for done in digests} == {digests[0].stdout}


ROW_NORMS = """
import numpy as np
from helpers import digest
from row_norm_cases import CASES

rng = np.random.default_rng(1)
for case in CASES:
    for dtype in (np.float32, np.float64):
        p = case.problem(rng, dtype)
        y, mean, invstd = case.forward(p)
        print(digest(y, mean, invstd, case.backward({**p, "mean": mean, "invstd": invstd})))
"""


def test_row_norms_give_the_same_bits_on_every_isa():
    command = f"import sys; sys.path.insert(0, {str(HERE)!r}){ROW_NORMS}"
    digests = [run(isa, "-c", command) for isa in SUPPORTED]
    assert digests[0].stdout.count("\n") > 50, digests[0].stderr
    assert {done.stdout for done in digests} == {digests[0].stdout}


STATS = """
import numpy as np
import onepass as op

rng = np.random.default_rng(1)
for dtype in (np.float16, np.float32, np.float64):
    for scale in (1e-200, 1e-3, 1e200):
        param, grad = rng.normal(size=(2, 40_001)).astype(dtype)
        grad *= dtype(scale) if dtype == np.float64 else dtype(0.5)
        info = op.AdamW(param, lr=0.1).step(grad, stats=True)
        print(*(number.hex() for number in info.stats[0]))
"""


def test_norms_are_the_same_bits_on_every_isa():
    digests = [run(isa, "-c", STATS) for isa in SUPPORTED]
    assert digests[0].stdout.count("\n") == 9, digests[0].stderr
    assert {done.stdout for done in digests} == {digests[0].stdout}
