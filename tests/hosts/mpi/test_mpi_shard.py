"""`op.shard` over MPI: what test_shard.py has with threads, with processes.

Each test starts a job of its own, which ends itself where a rank fails, and is ended after a time.
"""

import pytest
from mpi_jobs import MPIEXEC, run

pytest.importorskip("mpi4py", reason="needs mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec")
PROGRAM = "mpi_programs.py"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_all_ranks_together_do_what_one_process_does(ranks):
    job = run(ranks, PROGRAM, "everything")
    assert (job.returncode, job.stdout) == (0, "done\n"), job.stderr


def test_a_file_goes_on_with_any_number_of_ranks(tmp_path):
    for number, ranks in enumerate((4, 2, 1, 3)):
        job = run(ranks, PROGRAM, "go_on", tmp_path, number)
        assert (job.returncode, job.stdout) == (0, "done\n"), job.stderr


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_rank_that_ends_ends_the_job(how):
    job = run(3, PROGRAM, "die", how)
    assert "begun" in job.stdout, job.stderr
    assert "done" not in job.stdout
    assert job.returncode != 0
