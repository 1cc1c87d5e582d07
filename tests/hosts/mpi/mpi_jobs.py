"""Starting programs on the ranks of MPI."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SCRIPTS = sysconfig.get_path("scripts")
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([SCRIPTS, os.environ.get("PATH", "")]))
SECONDS = 120
"""Until ranks that wait for each other are ended."""


def run(ranks, program, *arguments):
    """Run a program beside this file on so many ranks."""
    # Open MPI does not start more ranks than there are cores, or as root, without these.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    path = str(Path(__file__).with_name(program))
    command = [sys.executable, "-W", "error", "-m", "mpi4py", path, *map(str, arguments)]
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
