"""A compiler launcher: runs the compiler and writes the CPU seconds it took beside the object.

CMakePresets.json sets it as CMAKE_CXX_COMPILER_LAUNCHER, and `nox -s cpp` reads what it wrote.
"""

import resource
import subprocess
import sys
from pathlib import Path

command = sys.argv[1:]
code = subprocess.call(command)
if code == 0 and "-c" in command:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    Path(f"{command[command.index('-o') + 1]}.seconds").write_text(f"{seconds:.2f}\n")
sys.exit(code)
