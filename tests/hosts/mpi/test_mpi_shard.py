"""`op.shard` over MPI: what test_shard.py has with threads, with processes.

Each test starts a job of its own, which ends itself where a rank fails, and is ended after a time.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="needs mpi4py")
SCRIPTS = sysconfig.get_path("scripts")
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([SCRIPTS, os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec")
PROGRAM = Path(__file__).with_name("mpi_programs.py")


def run(ranks, *arguments):
    """Run a program on so many ranks."""
    # Open MPI does not start more ranks than there are cores, or as root, without these.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    program = [sys.executable, "-W", "error", "-m", "mpi4py", str(PROGRAM), *map(str, arguments)]
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_all_ranks_together_do_what_one_process_does(ranks):
    job = run(ranks, "everything")
    assert (job.returncode, job.stdout) == (0, "done\n"), job.stderr


def test_a_file_goes_on_with_any_number_of_ranks(tmp_path):
    for number, ranks in enumerate((4, 2, 1, 3)):
        job = run(ranks, "go_on", tmp_path, number)
        assert (job.returncode, job.stdout) == (0, "done\n"), job.stderr


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_rank_that_ends_ends_the_job(how):
    job = run(3, "die", how)
    assert "begun" in job.stdout, job.stderr
    assert "done" not in job.stdout
    assert job.returncode != 0
