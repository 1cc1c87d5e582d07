"""Times a step of op.shard over MPI against Allreduce and a whole step on each rank.

    mpiexec -n 2 python -m mpi4py bench/mpi_step.py                     AdamW on 3e7 float32
    mpiexec -n 2 python -m mpi4py bench/mpi_step.py --parameters 1e6 --rounds 20

All take turns, and each rank steps with one thread. Milliseconds are medians, of the slowest rank;
MB a rank are the state and the sums that a step keeps.

allreduce      MPI adds the gradients up on every rank, each of which steps everything
shard          op.shard, float32 gradients and weights
shard, bf16    op.shard, bfloat16 gradients and weights, masters and sums in float32
alone          a whole step without any exchange: what a rank computes where nothing is shared
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import ml_dtypes
import numpy as np

import onepass as op

Step = Callable[[], Any]


def steps(comm: Any, n: int) -> dict[str, tuple[Step, float]]:
    """Each way to step, and the megabytes of state and sums that a rank has."""
    rng = np.random.default_rng(comm.rank)
    grad = rng.normal(size=n).astype(np.float32)
    total = np.empty_like(grad)
    small = grad.astype(ml_dtypes.bfloat16)

    def of(dtype: Any) -> np.ndarray:
        return np.ones(n, dtype)

    whole, alone = (op.AdamW(of(np.float32), max_grad_norm=1.0) for _ in range(2))
    ours = op.AdamW(op.shard(of(np.float32), comm), max_grad_norm=1.0)
    in_bf16 = op.AdamW(op.shard(of(ml_dtypes.bfloat16), comm), max_grad_norm=1.0)

    def allreduce() -> None:
        comm.Allreduce(grad, total)
        whole.step(total, grad_scale=comm.size, num_threads=1)

    part = n / comm.size / 1e6
    return {
        "allreduce": (allreduce, 12 * n / 1e6),
        "shard": (lambda: ours.step(grad, num_threads=1), 12 * part),
        "shard, bf16": (lambda: in_bf16.step(small, num_threads=1), 16 * part),
        "alone": (lambda: alone.step(grad, num_threads=1), 8 * n / 1e6),
    }


def measure(n: int, rounds: int) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    ways = steps(comm, n)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (step, _) in ways.items():
            comm.Barrier()
            begin = perf_counter()
            step()
            own = np.array([perf_counter() - begin])
            comm.Allreduce(MPI.IN_PLACE, own, MPI.MAX)
            seconds[name].append(float(own[0]))
    if comm.rank:
        return
    print(f"AdamW on {n:.0e} parameters, {comm.size} ranks, {rounds} rounds")
    print(f"{'':14}{'ms':>8}{'of allreduce':>14}{'MB a rank':>11}")
    base = seconds["allreduce"][1:]
    for name, (_, megabytes) in ways.items():
        own = seconds[name][1:]  # the first round warms up
        ratio = median(a / b for a, b in zip(own, base, strict=True))
        print(f"{name:14}{median(own) * 1e3:8.1f}{ratio:14.2f}{megabytes:11.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=3e7)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    measure(int(asked.parameters), asked.rounds)


if __name__ == "__main__":
    main()
