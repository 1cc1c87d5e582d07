"""Run by mpiexec: a layer over the ranks has the outputs of the layer of the whole batch."""

import numpy as np
import pytest
from mpi4py import MPI

import onepass as op

op.set_num_threads(1)
comm = MPI.COMM_WORLD
rng = np.random.default_rng(0)
half = rng.integers(-8, 9, (8, 4, 16)).astype(np.float32) / 4
x = np.concatenate([half, -half])  # every sum is exact
dy = rng.integers(-8, 9, x.shape).astype(np.float32) / 4
alone = op.BatchNorm(4, relu=True)
y = alone.forward(x)
dx = alone.backward(dy)

# Uneven; with four ranks or more the last has nothing.
ends = [min(k * k + 1, len(x)) for k in range(1, comm.size)]
ends = ends[:-1] + [len(x)] * bool(ends) if comm.size > 3 else ends
begin, end = ([0, *ends][comm.rank], [*ends, len(x)][comm.rank])
layer = op.BatchNorm(4, relu=True, comm=comm)
for _ in range(2):
    assert np.array_equal(layer.forward(x[begin:end]), y[begin:end])
    assert np.array_equal(layer.backward(dy[begin:end]), dx[begin:end])
total = comm.allreduce(layer.weight_grad)
assert np.allclose(total, alone.weight_grad, rtol=1e-5)
alone.forward(x)
for name, array in alone.state_dict().items():
    assert np.array_equal(layer.state_dict()[name], array), name

# A wrong argument on the last rank is an error on every rank, and then all goes on.
before = {name: array.copy() for name, array in layer.state_dict().items()}
is_last = comm.rank == comm.size - 1
with pytest.raises(TypeError if is_last else RuntimeError) as raised:
    layer.forward(None if is_last else x[begin:end])
assert is_last or f"on rank {comm.size - 1};" in str(raised.value)
assert all(np.array_equal(before[name], a) for name, a in layer.state_dict().items())
assert np.array_equal(layer.forward(x[begin:end]), y[begin:end])
comm.Barrier()
if comm.rank == 0:
    print("ranks:", comm.size)
