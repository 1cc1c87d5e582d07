"""Times a step of some rows of a table, beside torch.optim.SparseAdam and NumPy's indexing.

python bench/rows.py                                   1,000 rows of (1,000,000, 64), float32
python bench/rows.py --table 100000x8 --rows 10000 --threads 2
"""

import argparse
import os
from functools import partial
from itertools import cycle
from statistics import median

import numpy as np

import onepass as op
from onepass.lab.bench.timing import Step, alternate

SETS = 20
"""Rows that are named in turns: a table is no smaller for being stepped often."""

Given = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--table", default="1000000x64", help="rows x elements of one")
    parser.add_argument(
        "--rows", type=int, default=1000, help="named in a step, some of them twice"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    shape = tuple(map(int, options.table.split("x")))
    op.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    given = [
        (
            rng.integers(0, shape[0], size=options.rows),
            rng.normal(size=(options.rows, *shape[1:])).astype(np.float32),
        )
        for _ in range(SETS)
    ]
    contenders = {
        "onepass": onepass_step(shape),
        "numpy": numpy_step(shape),
        "torch": torch_step(shape, options.threads),
    }
    steps: dict[str, Step] = {
        name: partial(_next, step, cycle(given)) for name, step in contenders.items()
    }
    print(f"load {os.getloadavg()[0]:.2f}; {options.rows} rows of {options.table} float32")
    for name, seconds in alternate(steps, options.seconds).items():
        print(f"{name:8} {median(seconds) * 1e6:8.0f} us a step")


def _next(step, given) -> None:
    step(*next(given))


def onepass_step(shape: tuple[int, ...]):
    opt = op.Adam(np.ones(shape, np.float32), eps_hat=True)
    return lambda *rows: opt.step_rows(rows)


def numpy_step(shape: tuple[int, ...]):
    """The same step, written down as plainly as NumPy allows."""
    table, exp_avg, exp_avg_sq = (np.ones(shape, np.float32) for _ in range(3))
    steps = iter(range(1, 2**53))

    def step(index: np.ndarray, values: np.ndarray) -> None:
        t = next(steps)
        rows, places = np.unique(index, return_inverse=True)
        grad = np.zeros((len(rows), *shape[1:]), np.float32)
        np.add.at(grad, places, values)
        m = np.float32(0.9) * exp_avg[rows] + np.float32(0.1) * grad
        v = np.float32(0.999) * exp_avg_sq[rows] + np.float32(0.001) * grad * grad
        exp_avg[rows], exp_avg_sq[rows] = m, v
        rate = np.float32(1e-3 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t))
        table[rows] -= rate * m / (np.sqrt(v) + np.float32(1e-8))

    return step


def torch_step(shape: tuple[int, ...], threads: int):
    import torch

    torch.set_num_threads(threads)
    table = torch.nn.Parameter(torch.ones(shape))
    opt = torch.optim.SparseAdam([table])

    def step(index: np.ndarray, values: np.ndarray) -> None:
        indices = torch.from_numpy(index)[None]
        table.grad = torch.sparse_coo_tensor(
            indices, torch.from_numpy(values), shape, check_invariants=False
        )
        opt.step()

    return step


if __name__ == "__main__":
    main()
