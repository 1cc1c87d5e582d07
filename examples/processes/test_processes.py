import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent


class TestMPI:
    def train(self, run, ranks, *arguments):
        pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI")
        program = FOLDER / "mpi_training.py"
        command = "mpiexec", "-n", ranks, sys.executable, "-m", "mpi4py", program, *arguments
        return run(*command, OMP_NUM_THREADS=1)

    def test_it_learns(self, run, tmp_path):
        out = self.train(run, 3, tmp_path / "checkpoint.npz")
        steps, error = out.split(" steps, error ")
        assert int(steps) == 300
        assert float(error) < 1e-2
        assert (tmp_path / "checkpoint.npz").exists()

    def test_one_process_runs_it_too(self, run):
        assert float(self.train(run, 1).split()[-1]) < 1e-2


class TestTorch:
    def train(self, run, processes, out):
        pytest.importorskip("torch.distributed", reason="needs PyTorch")
        runner = sys.executable, "-m", "torch.distributed.run", "--standalone"
        program = FOLDER / "torch_training.py"
        run(*runner, "--nproc-per-node", processes, program, out, OMP_NUM_THREADS=1)
        return [np.load(f"{out}.{rank}.npz") for rank in range(processes)]

    def test_three_processes_do_what_one_does(self, run, tmp_path):
        """But for the order in which gloo adds gradients up."""
        (one,) = self.train(run, 1, tmp_path / "one")
        three = self.train(run, 3, tmp_path / "three")
        for name in one.files:
            for each in three:
                assert each[name].tobytes() == three[0][name].tobytes()
            np.testing.assert_allclose(three[0][name], one[name], rtol=1e-3, atol=1e-4)
        assert one["norms"].max() > 1  # some were clipped
