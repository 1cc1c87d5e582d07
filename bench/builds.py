"""Times the kernels of several builds of the module, in one process and in turns.

python bench/builds.py build/wheels/*-3.11/*.whl       each wheel beside the first; half a minute
python bench/builds.py one.so other.so --rule adam --elements 1000000

One thread steps a vector that lies in the caches, through the C interface, which every build has
for itself.
"""

import argparse
import ctypes
import fnmatch
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, byref, c_size_t, c_void_p
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np

from onepass._capi import BF16, F32, F64, MOST_STATES, Q8, Call, Group, Tensor
from onepass.lab.bench.timing import Step, alternate

RULES = ("sgd", "rmsprop", "adam", "lion", "adan", "lamb")
FORMATS = {"float32": F32, "float64": F64, "state in bf16": BF16, "state in q8": Q8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("build", type=Path, nargs="+", help="a wheel, or the module that is in it")
    parser.add_argument("--rule", nargs="*", default=RULES)
    parser.add_argument("--elements", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    options = parser.parse_args()
    with ExitStack() as unpacked:
        modules = {str(path): unpacked.enter_context(module_of(path)) for path in options.build}
        builds = {name: Build(path) for name, path in modules.items()}
        (isa,) = {build.isa for build in builds.values()}
        print(f"load {os.getloadavg()[0]:.2f}; {isa}; one thread, {options.elements} elements")
        first, *others = builds
        print(f"us a step of {first}; of the others, times as long:", *others, sep="\n  ")
        for rule in options.rule:
            for name, number in FORMATS.items():
                steps = {
                    build: each.step(rule, number, options.elements)
                    for build, each in builds.items()
                }
                found = {build: median(s) for build, s in alternate(steps, options.seconds).items()}
                ratios = "".join(f"{found[other] / found[first]:8.2f}" for other in others)
                print(f"{rule:10}{name:16}{found[first] * 1e6:8.2f}{ratios}")


@contextmanager
def module_of(path: Path) -> Iterator[Path]:
    """Give the module in a wheel, or the module itself."""
    if path.suffix != ".whl":
        yield path
        return
    with ZipFile(path) as wheel, TemporaryDirectory() as folder:
        (name,) = fnmatch.filter(wheel.namelist(), "onepass/_core.*.so")
        yield Path(wheel.extract(name, folder))


class Build:
    """One build of the module, loaded beside the others."""

    def __init__(self, module: Path) -> None:
        self.library = ctypes.CDLL(str(module))
        self.library.onepass_isa.restype = ctypes.c_char_p
        self.library.onepass_step.argtypes = [*[c_void_p, c_size_t] * 2, POINTER(Call), c_void_p]
        self.isa = self.library.onepass_isa().decode()

    def step(self, rule: str, number: int, elements: int) -> Step:
        """Return what steps a vector, of which the state alone may be in fewer bits."""
        dtype = np.float64 if number == F64 else np.float32
        param, grad = np.ones(elements, dtype), np.linspace(-1, 1, elements, dtype=dtype)
        states = np.zeros((MOST_STATES, elements))  # as large as in any format
        index = self.library.onepass_rule(rule.encode())
        tensor = Tensor(size=elements, param=param.ctypes.data, grad=grad.ctypes.data)
        tensor.format = F64 if number == F64 else F32
        tensor.state_format = number if number in (BF16, Q8) else 0
        for k, state in enumerate(states):
            if self.library.onepass_uses_state(index, 0, 1, k):
                tensor.state[k] = state.ctypes.data
        return partial(self._run, (Group(rule=index), tensor, Call(threads=1), param, grad, states))

    def _run(self, kept: tuple[Any, ...]) -> None:
        group, tensor, call, *_ = kept
        code = self.library.onepass_step(byref(group), 1, byref(tensor), 1, call, None)
        if code:
            raise RuntimeError(f"code {code}")


if __name__ == "__main__":
    main()
