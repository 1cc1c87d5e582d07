"""Times steps of Adam through the C interface: of small arrays, and of rows beside Numba's loop.

python bench/capi.py                                   one thread, float32; 20 seconds
python bench/capi.py --table 1000000 --rows 4000 --width 64

The calls of small arrays stand in a loop of C and in one of Numba. Without a C compiler the one is
left out, and without Numba the other, with the second table.
"""

import argparse
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

import onepass as op
from onepass.lab.bench.timing import Step, alternate

SIZES = (8, 64, 1000)
WIDTHS = (2, 16, 100, 300)
CALLS = 1000
"""Of a compiled loop: what it costs to call that is little beside so many."""
SETS = 10
"""Rows that are named in turns: a table is no smaller for being stepped often."""

F32, SETTINGS, SCALARS = 1, 1, 4  # as capi_functions.h has them
LOOP = """
#include <onepass/capi.h>

int32_t repeat(const onepass_api *api, int32_t calls, int32_t rule, size_t n, float *param,
               float *grad, float *exp_avg, float *exp_avg_sq, double *scalars, double *settings) {
  int32_t code = 0;
  for (int64_t step = 1; step <= calls && code == 0; ++step) {
    if (settings) code = api->scalars(rule, step, settings, 0, scalars);
    if (code == 0) {
      code = api->update(rule, 0, ONEPASS_F32, n, param, grad, exp_avg, exp_avg_sq, 0, 0, scalars,
                         0, 1);
    }
  }
  return code;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--table", type=int, default=100_000, help="rows of the table")
    parser.add_argument("--rows", type=int, default=20_000, help="of which so many step at a time")
    parser.add_argument("--width", type=int, nargs="*", default=WIDTHS, help="elements of a row")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    options = parser.parse_args()
    op.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.2f}; {op.runtime.info()['isa']}; one thread, float32")
    table = {}
    for n in SIZES:
        found = alternate(small_calls(n), options.seconds)
        calls = {name: 1 if name == "op.kernels" else CALLS for name in found}
        table[str(n)] = {name: median(s) / calls[name] * 1e6 for name, s in found.items()}
    show("elements", "us a call", table)
    table = {}
    for width in options.width:
        found = alternate(row_steps(options.table, width, options.rows), options.seconds)
        table[str(width)] = {name: median(s) / options.rows * 1e9 for name, s in found.items()}
    show("width", f"ns a row, {options.rows} of a table of {options.table}", table)


def show(label: str, unit: str, table: dict[str, dict[str, float]]) -> None:
    names = next(iter(table.values()))
    print("", f"{label:10}" + "".join(f"{name:>18}" for name in names) + f"    {unit}", sep="\n")
    for row, found in table.items():
        print(f"{row:10}" + "".join(f"{value:18.3g}" for value in found.values()))


class Adam:
    """A rule's number, its settings, the numbers of a step, and arrays: what a call takes."""

    def __init__(self, *shape: int) -> None:
        self.library = ctypes.CDLL(op.get_library())
        self.rule = self.library.onepass_rule(b"adam")
        self.settings = np.empty(self.library.onepass_count(self.rule, SETTINGS))
        self.scalars = np.empty(self.library.onepass_count(self.rule, SCALARS))
        self.library.onepass_defaults(self.rule, at(self.settings))
        self.library.onepass_scalars(
            self.rule, ctypes.c_int64(1), at(self.settings), None, at(self.scalars)
        )
        self.param = np.ones(shape, np.float32)
        self.states = [np.zeros(shape, np.float32) for _ in range(2)]
        self.arrays = (self.param, *self.states)


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def moved(arrays: Sequence[np.ndarray], function, *arguments) -> Sequence[np.ndarray]:
    """Call a function that returns a code, and return the arrays that it moves."""
    if code := function(*arguments):
        raise RuntimeError(f"code {code}")
    return arrays


def small_calls(n: int, calls: int = CALLS) -> dict[str, Step]:
    """Return what takes a step of n elements, compiled loops `calls` of them.

    A loop returns the parameter and the state.
    """
    grad = np.linspace(-1, 1, n, dtype=np.float32)
    param, *states = Adam(n).arrays
    step = partial(op.kernels.adam, param, grad, *states, step=1)
    steps: dict[str, Step] = {"op.kernels": step}
    if (repeat := c_loop()) is not None:
        steps["C"] = partial(_c_steps, repeat, Adam(n), grad, calls, False)
        steps["C with scalars"] = partial(_c_steps, repeat, Adam(n), grad, calls, True)
    if (loops := numba_loops()) is not None:
        adam = Adam(n)
        arguments = (calls, adam.rule, adam.param, grad, *adam.states, adam.scalars)
        steps["Numba"] = partial(moved, adam.arrays, loops["repeat"], *arguments)
    return steps


def _c_steps(
    repeat, adam: Adam, grad: np.ndarray, calls: int, with_scalars: bool
) -> Sequence[np.ndarray]:
    size = ctypes.c_size_t(grad.size)
    arrays = map(at, (adam.param, grad, *adam.states, adam.scalars))
    settings = at(adam.settings) if with_scalars else None
    return moved(adam.arrays, repeat, c_api(), calls, adam.rule, size, *arrays, settings)


@cache
def c_api() -> ctypes.c_void_p:
    """Return the address of the table of functions, as `onepass_import` does in C."""
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p(pointer_of(op._core._C_API, b"onepass._core._C_API"))


@cache
def c_loop():
    """Return a function that takes steps in a loop of C, or None where there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with TemporaryDirectory() as folder:
        source, built = Path(folder, "loop.c"), Path(folder, "loop.so")
        source.write_text(LOOP)
        flags = ("-std=c99", "-O2", "-shared", "-fPIC", f"-I{op.get_include()}")
        subprocess.run([compiler, *flags, source, "-o", built], check=True)
        return ctypes.CDLL(str(built)).repeat


@cache
def numba_loops():
    """Return the loops in Numba, by name, or None where that is not installed."""
    try:
        import llvmlite.binding
        import numba
        from numba import types
    except ModuleNotFoundError:
        return None
    llvmlite.binding.load_library_permanently(op.get_library())
    i32, pointer = types.int32, types.uintp
    update = types.ExternalFunction(
        "onepass_update", i32(i32, i32, i32, types.uintp, *[pointer] * 8, i32)
    )

    @numba.njit
    def repeat(calls, rule, param, grad, exp_avg, exp_avg_sq, scalars):
        arrays = param.ctypes.data, grad.ctypes.data, exp_avg.ctypes.data, exp_avg_sq.ctypes.data
        code = 0
        for _ in range(calls):
            code |= update(rule, 0, F32, param.size, *arrays, 0, 0, scalars.ctypes.data, 0, 1)
        return code

    @numba.njit
    def gather(index, grad, param, exp_avg, exp_avg_sq, numbers):
        beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_bias2, eps = numbers
        for i in range(len(index)):
            row = index[i]
            for k in range(param.shape[1]):
                g = grad[i, k]
                m = beta1 * exp_avg[row, k] + one_minus_beta1 * g
                v = beta2 * exp_avg_sq[row, k] + one_minus_beta2 * g * g
                exp_avg[row, k], exp_avg_sq[row, k] = m, v
                param[row, k] -= step_size * m / (np.sqrt(v * inv_bias2) + eps)

    return {"repeat": repeat, "gather": gather}


def row_steps(table: int, width: int, rows: int) -> dict[str, Step]:
    """Return what steps some rows of a table, by the numbers of the first step.

    Each returns the parameter and the state.
    """
    rng = np.random.default_rng(0)
    named = [rng.permutation(table)[:rows] for _ in range(SETS)]
    grad = rng.normal(size=(rows, width)).astype(np.float32)
    contenders = {"onepass": partial(_update_rows, Adam(table, width))}
    if (loops := numba_loops()) is not None:
        contenders["Numba"] = partial(_gather_rows, loops["gather"], Adam(table, width))
    return {name: partial(_next, step, cycle(named), grad) for name, step in contenders.items()}


def _next(step, named: Iterator[np.ndarray], grad: np.ndarray) -> Sequence[np.ndarray]:
    return step(next(named), grad)


def _update_rows(adam: Adam, index: np.ndarray, grad: np.ndarray) -> Sequence[np.ndarray]:
    sizes = map(ctypes.c_size_t, adam.param.shape)
    rows = (*sizes, at(index), ctypes.c_size_t(len(index)))
    arrays = (at(adam.param), at(grad), *map(at, adam.states), None, None)
    arguments = (adam.rule, 0, F32, *rows, *arrays, at(adam.scalars), None, 1)
    return moved(adam.arrays, adam.library.onepass_update_rows, *arguments)


def _gather_rows(gather, adam: Adam, index: np.ndarray, grad: np.ndarray) -> Sequence[np.ndarray]:
    lr, beta1, beta2, eps = 1e-3, 0.9, 0.999, 1e-8
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1), 1 / (1 - beta2), eps)
    gather(index, grad, *adam.arrays, tuple(map(np.float32, numbers)))
    return adam.arrays


if __name__ == "__main__":
    main()
