"""Train on as many processes as there are: mpiexec -n 4 python -m mpi4py mpi_training.py.

Each has a part of the batch and of the optimizer's state. `-m mpi4py` ends the whole job where one
process raises an error that nobody catches; without it the others would wait for ever.
"""

import sys

import numpy as np
from mpi4py import MPI

import onepass as op

comm = MPI.COMM_WORLD
rng = np.random.default_rng(0)  # the same on all processes
x = rng.normal(size=(1200, 50)).astype(np.float32)
y = x @ rng.normal(size=50).astype(np.float32)

w = np.zeros(50, np.float32)
opt = op.AdamW(op.shard({"w": w}, comm), lr=0.1, weight_decay=0.0, max_grad_norm=10.0)
mine = slice(comm.rank, None, comm.size)
for _ in range(300):
    error = x[mine] @ w - y[mine]
    grads = {"w": 2 * x[mine].T @ error / len(error)}
    info = opt.step(grads)  # all processes call it: the mean of their gradients

if len(sys.argv) > 1:
    opt.save(sys.argv[1])  # all processes call it; the first one writes
if comm.rank == 0:
    print(f"{info.step} steps, error {np.abs(x @ w - y).max():.1e}")
