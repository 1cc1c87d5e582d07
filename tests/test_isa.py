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


def run(isa, *command):
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "ONEPASS_ISA": isa},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_isa_gives_the_same_bits():
    """Those of every rule, loop, stage and format, of the norms and of BatchNorm.

    All other tests hold the bits of one instruction set against the oracle; the workflow tests.yml
    runs them on each.
    """
    found = {}
    for isa in SUPPORTED:
        done = run(isa, str(HERE / "digests.py"))
        assert done.returncode == 0, done.stderr[-2000:]
        found[isa] = done.stdout.splitlines()
    expected = found[_core.isa]
    assert len(expected) > 2000
    for isa, lines in found.items():
        different = [line for line, other in zip(lines, expected, strict=True) if line != other]
        assert not different, (isa, len(different), different[:20])


@pytest.mark.skipif("ONEPASS_ISA" in os.environ, reason="this run is itself one of the forced ones")
@pytest.mark.parametrize("isa", [isa for isa in SUPPORTED if isa != _core.isa])
def test_a_part_of_the_oracle_on_every_other_isa(isa):
    # conftest.py ends the session with an error if the forced one did not run.
    chosen = "special or every_length or gradient_there_is"
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-k", chosen)
    files = (HERE / f"test_{name}.py" for name in ("oracle", "stages", "formats"))
    done = run(isa, "-m", "pytest", *options, *map(str, files))
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
