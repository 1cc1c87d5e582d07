"""DeepSpeed's own tests of its optimizers for the CPU, with our operations in the place of its.

    python run_own_tests.py theirs|ours path/to/DeepSpeed/tests [pytest's options]

They stand in DeepSpeed's repository alone, in no package: tests/unit/ops/adam/test_cpu_adam.py, and
those of Adagrad and Lion. `theirs` compiles DeepSpeed's operations.
"""

import sys
import types
from pathlib import Path

import cpuinfo
import pytest

import onepass.deepspeed

FILES = ("adam/test_cpu_adam.py", "adagrad/test_cpu_adagrad.py", "lion/test_cpu_lion.py")

LEFT_OUT = ("fused", "gpu_error", "zenflow")
"""Comparisons with what is compiled for a GPU, tensors on a GPU, and ZenFlow's own operation."""


def main(whose: str, tests: str, *options: str) -> int:
    if whose == "ours":
        onepass.deepspeed.install()
    # There each test has processes of its own, which the tests of these optimizers do without.
    common = types.ModuleType("unit.common")
    common.DistributedTest = object
    sys.modules |= {"unit": types.ModuleType("unit"), "unit.common": common}
    # They skip float16 on processors of AMD.
    processor = cpuinfo.get_cpu_info() | {"vendor_id_raw": ""}
    cpuinfo.get_cpu_info = lambda: processor
    files = [str(Path(tests, "unit", "ops", name)) for name in FILES]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    fixed = ["-q", "-rs", "-p", "no:cacheprovider", "-W", "ignore", "-k", chosen]
    # Else pytest would look for DeepSpeed's settings, and ours.
    return pytest.main([*files, *fixed, "-c", "/dev/null", "--rootdir", tests, *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
