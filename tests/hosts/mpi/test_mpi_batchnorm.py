"""BatchNorm over the processes of MPI."""

import pytest
from mpi_jobs import MPIEXEC, run

pytest.importorskip("mpi4py", reason="needs mpi4py")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec")


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_have_the_outputs_of_one(size):
    job = run(size, "batchnorm_on_ranks.py")
    assert (job.returncode, job.stdout) == (0, f"ranks: {size}\n"), job.stderr
