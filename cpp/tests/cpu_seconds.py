"""A compiler launcher: runs the compiler and writes the CPU seconds it took beside the object.

CMakePresets.json sets it as CMAKE_CXX_COMPILER_LAUNCHER, and `nox -s cpp` reads what it wrote. A
launcher that the environment names is called in its turn: with ccache, what was compiled here is
there for later builds, and what those have compiled took no time.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

command = sys.argv[1:]
launcher = os.environ.get("CMAKE_CXX_COMPILER_LAUNCHER")
code = subprocess.call([launcher, *command] if launcher else command)
if code == 0 and "-c" in command:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    Path(f"{command[command.index('-o') + 1]}.seconds").write_text(f"{seconds:.2f}\n")
sys.exit(code)
