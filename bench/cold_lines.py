"""Cold cache lines of one call, counted by valgrind: exact, whatever else the machine does.

A forward and a backward pass take the caches between two steps of a training, so a small step pays
for each cache line that it touches, its code's included (45 to 65 ns each; NOTES.md). Here a sweep
empties the simulated last-level cache before each call, and what cachegrind counts in many rounds
less that in few, less the same for a call that does nothing, is a call's.

    python bench/cold_lines.py                       every case, against its budget
    python bench/cold_lines.py batch_norm_infer      some

The exit status is 1 where a case takes more than its budget. It needs valgrind, of Debian's package
of that name.
"""

import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import onepass as op

Call = Callable[[], object]

FEW, MANY = 10, 50
"""Rounds whose counts are compared."""
WARM_UP = 5
"""Calls before them: what the first ones do, such as imports, is no call's."""
SWEPT = 2_500_000
"""Elements of float32 that a sweep reads: more than twice the simulated cache."""
CACHES = ("--I1=1024,2,64", "--D1=32768,8,64", "--LL=4194304,16,64")
LINE = 64


@dataclass(frozen=True)
class Case:
    """A call, the lines of the arrays that it is given, and the most that it may touch besides."""

    make: Callable[[], Call]
    array_lines: int
    budget: int | None = None


@dataclass(frozen=True)
class Count:
    """What one call takes."""

    instructions: float
    code: float
    read: float
    written: float

    @property
    def lines(self) -> float:
        """Cold lines of all kinds."""
        return self.code + self.read + self.written

    def __sub__(self, other: "Count") -> "Count":
        """Return what this call takes more than another."""
        return Count(
            self.instructions - other.instructions,
            self.code - other.code,
            self.read - other.read,
            self.written - other.written,
        )


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def nothing() -> Call:
    return lambda: None


def add() -> Call:
    a, b = normal(1000), normal(1000)
    return lambda: np.add(a, b, out=a)


SIZES = (8192, 128, 128, 128, 8192, 64, 64, 64, 640, 10)
"""Elements of the ten tensors of a small network."""

STEP = 4 * sum(-(-size * 4 // LINE) for size in SIZES)
"""Lines of these tensors, their gradients and the two arrays of their state."""


def ten() -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [normal(size) for size in SIZES], [normal(size) for size in SIZES]


def step() -> Call:
    params, grads = ten()
    optimizer = op.AdamW(params, lr=1e-3)
    return lambda: optimizer.step(grads)


def step_bound() -> Call:
    params, grads = ten()
    return op.AdamW(params, lr=1e-3, grads=grads).step


def step_schedule() -> Call:
    params, grads = ten()
    optimizer = op.AdamW(params, lr=op.schedules.cosine(1e-3, steps=10**6))
    return lambda: optimizer.step(grads)


def step_one() -> Call:
    param, grad = normal(1000), normal(1000)
    optimizer = op.AdamW(param, lr=1e-3)
    return lambda: optimizer.step(grad)


def kernel() -> Call:
    param, grad, exp_avg, exp_avg_sq = (np.zeros(1000, np.float32) for _ in range(4))
    return lambda: op.kernels.adam(param, grad, exp_avg, exp_avg_sq, step=3, lr=1e-3)


ROWS, CHANNELS = 32, 16


def batch_norm_infer() -> Call:
    x, out, weight, bias = normal(ROWS, CHANNELS), normal(ROWS, CHANNELS), normal(16), normal(16)
    mean, var = normal(CHANNELS), np.ones(CHANNELS, np.float32)
    return lambda: op.batch_norm_infer(x, mean=mean, var=var, weight=weight, bias=bias, out=out)


def batch_norm_train() -> Call:
    x, out, weight, bias = normal(ROWS, CHANNELS), normal(ROWS, CHANNELS), normal(16), normal(16)
    mean, var = normal(CHANNELS), np.ones(CHANNELS, np.float32)
    return lambda: op.batch_norm_train(
        x, weight=weight, bias=bias, running_mean=mean, running_var=var, out=out
    )


def batch_norm_backward() -> Call:
    x, dy, out, weight = normal(ROWS, CHANNELS), normal(ROWS, CHANNELS), normal(32, 16), normal(16)
    _, mean, invstd = op.batch_norm_train(x, weight=weight)
    return lambda: op.batch_norm_backward(
        dy, x, saved_mean=mean, saved_invstd=invstd, weight=weight, out=out
    )


def batch_norm_layer() -> Call:
    x, dy, out, bn = normal(32, 16), normal(32, 16), normal(32, 16), op.BatchNorm(CHANNELS)

    def both() -> None:
        bn.forward(x, out=out)
        bn.backward(dy, out=out)

    return both


BATCH = ROWS * CHANNELS * 4 // LINE
"""Lines of an array of the batch, and a vector of its channels has one."""

CASES = {
    "add": Case(add, 2 * 1000 * 4 // LINE),
    "step": Case(step, STEP, 485),
    "step_bound": Case(step_bound, STEP, 430),
    "step_schedule": Case(step_schedule, STEP, 700),
    "step_one": Case(step_one, 4 * 1000 * 4 // LINE, 385),
    "kernel": Case(kernel, 4 * 1000 * 4 // LINE, 505),
    "batch_norm_infer": Case(batch_norm_infer, 2 * BATCH + 4, 400),
    "batch_norm_train": Case(batch_norm_train, 2 * BATCH + 4, 700),
    "batch_norm_backward": Case(batch_norm_backward, 3 * BATCH + 1, 700),
    "batch_norm_layer": Case(batch_norm_layer, 3 * BATCH + 6, 1800),
}
"""`add`, NumPy's own, is what to compare with."""


def do(make: Callable[[], Call], rounds: int) -> None:
    """Call what `make` returns, that many times, with a sweep before each."""
    op.set_num_threads(1)
    call, swept = make(), np.ones(SWEPT, np.float32)
    for _ in range(WARM_UP):
        call()
    gc.disable()
    for _ in range(rounds):
        swept.sum()
        call()


def parse(summary: str) -> Count:
    """Return the counts of cachegrind's last line: instructions, and misses of the last level."""
    instructions, _, code, _, _, read, _, _, written = map(int, summary.split()[1:])
    return Count(instructions, code, read, written)


def counted(name: str, rounds: int) -> Count:
    """Return what a process takes that does these rounds."""
    # valgrind knows no AVX-512; with random hashes each process would lay its dictionaries out anew
    environment = {
        **os.environ,
        "ONEPASS_ISA": "x86-64-v3",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "cachegrind.out")
        command = ["valgrind", "-q", "--tool=cachegrind", "--cache-sim=yes", *CACHES]
        command += [f"--cachegrind-out-file={out}", sys.executable, str(Path(__file__).resolve())]
        done = subprocess.run(
            [*command, "--rounds", str(rounds), name],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"valgrind: expected exit status 0, got this:\n{done.stderr}")
        lines = out.read_text(errors="replace").splitlines()
    return parse(next(line for line in reversed(lines) if line.startswith("summary:")))


def per_call(name: str) -> Count:
    """Return what one call takes, with the sweep before it."""
    more = counted(name, MANY) - counted(name, FEW)
    n = MANY - FEW
    return Count(more.instructions / n, more.code / n, more.read / n, more.written / n)


def report(name: str, case: Case, count: Count) -> tuple[str, bool]:
    """Return the line that is printed, and whether the case keeps to its budget."""
    lines = count.lines - case.array_lines
    kept = case.budget is None or lines <= case.budget
    budget = "" if case.budget is None else f"of {case.budget}{'' if kept else ', TOO MANY'}"
    text = (
        f"{name:20} {lines:6,.0f} cold lines besides its arrays' {case.array_lines:3} {budget:15} "
        f"({count.code:,.0f} of code, {count.read:,.0f} read, {count.written:,.0f} written), "
        f"{count.instructions:,.0f} instructions"
    )
    return text, kept


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    known = {**CASES, "nothing": Case(nothing, 0)}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"case: expected one of {', '.join(CASES)}, got {unknown[0]}")
    if args.rounds:
        do(known[args.names[0]].make, args.rounds)
        return 0
    if not shutil.which("valgrind"):
        parser.error("valgrind: not found; it counts the lines: apt-get install valgrind")
    names = args.names or list(CASES)
    with ThreadPoolExecutor(os.cpu_count()) as side_by_side:  # what is counted is no time
        idle, *counts = side_by_side.map(per_call, ["nothing", *names])
    all_kept = True
    for name, count in zip(names, counts, strict=True):
        text, kept = report(name, known[name], count - idle)
        print(text)
        all_kept &= kept
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
