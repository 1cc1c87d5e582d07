"""BatchNorm over the processes of MPI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
MPIEXEC = shutil.which("mpiexec")
LIMIT = 60
"""Seconds, after which ranks that wait for each other are ended."""


@pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec")
@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_have_the_outputs_of_one(size):
    script = Path(__file__).with_name("batchnorm_on_ranks.py")
    done = subprocess.run(
        [MPIEXEC, "-n", str(size), sys.executable, "-m", "mpi4py", script],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"ranks: {size}\n"
