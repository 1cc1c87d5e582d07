"""What runs on each rank: `mpiexec -n 3 python -m mpi4py mpi_programs.py everything`.

A rank that fails ends the job, since mpi4py's runner aborts it.
"""

import hashlib
import math
import os
import signal
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from mpi4py import MPI

import onepass as op

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
BLOCK = 16384
SIZES = {"w": (130, 260), "few": (5,), "none": (0,), "b": (BLOCK + 300,), "one": ()}


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    arrays = {k: np.asarray(rng.normal(size=shape)).astype(dtype) for k, shape in SIZES.items()}
    arrays["w"] = np.asfortranarray(arrays["w"])
    return arrays


def digest(*things):
    hasher = hashlib.sha256()

    def add(thing):
        if isinstance(thing, np.ndarray):
            hasher.update(f"{thing.dtype}{thing.shape}".encode() + thing.tobytes())
        elif isinstance(thing, dict):
            for key, value in thing.items():
                hasher.update(repr(key).encode())
                add(value)
        else:
            hasher.update(repr(thing).encode())

    for thing in things:
        add(thing)
    return hasher.hexdigest()


def error_of(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    raise AssertionError("expected an error, got none")


def grads_of(step, dtype=np.float32):
    """The gradients of all ranks in a step."""
    return [tree(100 * step + rank, dtype) for rank in range(SIZE)]


def check_same(make, dtype=np.float32):
    """All ranks together do what each of them does alone with all gradients."""
    ours, theirs = tree(0, dtype), tree(0, dtype)
    opt, one = make(op.shard(ours, COMM)), make(theirs)
    for step in range(2):
        grads = grads_of(step + 1, dtype)
        for each in grads:
            one.accumulate(each)
        expected = one.step(grad_scale=SIZE)
        info = opt.step(grads[RANK])
        assert info == expected, (info, expected)
    assert digest(ours, opt.state_dict()) == digest(theirs, one.state_dict()), make


def check_classes():
    for cls in op.optim.registry.values():
        if not cls.row.why_whole(cls.defaults):
            check_same(cls)


def check_options():
    bf16 = ml_dtypes.bfloat16
    for dtype, options in (
        (np.float32, {"state_format": "q8", "max_grad_norm": 1.0}),
        (np.float32, {"lr": lambda _: 0.1, "betas": (lambda _: 0.5, 0.9)}),
        (np.float64, {"ema_decay": 0.9, "lookahead_every": 2, "max_grad_norm": math.inf}),
        (bf16, {"max_grad_norm": 1.0, "weight_decay": 0.1}),
        (bf16, {"rounding": "stochastic", "state_format": "q8", "skip_grad_norm": 1e-3}),
        (np.float16, {"rounding": "nearest", "swa_start": 1}),
    ):
        check_same(lambda p, options=options: op.AdamW(p, **options), dtype)
    flat = [np.ones(3 * BLOCK + 5, bf16) for _ in range(2)]
    opt, one = op.Adam(op.shard(flat[0], COMM)), op.Adam(flat[1])
    grads = [np.full(flat[0].size, 1 / (1 + rank), bf16) for rank in range(SIZE)]
    for each in grads:
        one.accumulate(each)
    one.step(grad_scale=SIZE)
    opt.step(grads[RANK])
    assert digest(flat[0]) == digest(flat[1])


def check_verdicts():
    last = SIZE - 1
    for policy in ("propagate", "skip", "raise"):
        params = tree(0)
        opt = op.Adam(op.shard(params, COMM), nonfinite=policy)
        opt.step(tree(1))
        before = digest(params, opt.state_dict()["state"])
        grads = tree(2)
        if last == RANK:
            grads["b"][7] = np.nan
        if policy == "raise":
            text = error_of(lambda opt=opt, grads=grads: opt.step(grads))
            assert ("got an infinity or NaN in grads['b'] on rank" in text) == (last != RANK), text
        else:
            assert opt.step(grads).skipped == (policy == "skip")
        has_changed = digest(params, opt.state_dict()["state"]) != before
        assert has_changed == (policy == "propagate")
        opt.step(tree(3))
        assert np.isnan(params["b"][7]) == (policy == "propagate")


def check_errors():
    last = SIZE - 1
    params = tree(0)
    opt = op.Adam(op.shard(params, COMM))
    opt.step(tree(1))
    before = digest(params, opt.state_dict())
    grads = tree(2)
    if last == RANK:
        grads["few"] = np.ones(6, np.float32)
    text = error_of(lambda: opt.step(grads))
    mine = "grads['few']: expected the parameter's shape (5,), got (6,)"
    theirs = f"step: expected arguments that all ranks can take, got an error on rank {last}"
    assert text == (mine if last == RANK else theirs), text
    assert digest(params, opt.state_dict()) == before
    opt.step(tree(2))


def check_averages():
    ours, theirs = tree(0), tree(0)
    opt, one = (op.SGD(p, ema_decay=0.5) for p in (op.shard(ours, COMM), theirs))
    for step in range(2):
        opt.step(tree(step))
        one.step(tree(step))
    after = digest(ours)
    with opt.averaged(), one.averaged():
        if SIZE & (SIZE - 1) == 0:  # else the sum of equal gradients is rounded
            assert digest(ours) == digest(theirs)
        assert digest(ours) != after
    assert digest(ours) == after


def everything():
    check_classes()
    check_options()
    check_verdicts()
    check_errors()
    check_averages()


def go_on(folder, number):
    """Continue from a file, if there is one, step, and save; beside it what one process does."""
    names = "ours", "theirs"
    params = [tree(0), tree(0)]
    opts = [op.AdamW(p, ema_decay=0.9) for p in (op.shard(params[0], COMM), params[1])]
    files = [Path(folder, f"{name}.npz") for name in names]
    if number:
        for opt, file, own in zip(opts, files, params, strict=True):
            opt.load(file)
            with np.load(file.with_suffix(".params.npz")) as saved:
                for key in own:
                    own[key][...] = saved[key]
    COMM.Barrier()
    grads = grads_of(number)
    opts[0].step(grads[RANK])
    for each in grads:
        opts[1].accumulate(each)
    opts[1].step(grad_scale=SIZE)
    opts[0].save(files[0])
    if RANK == 0:
        opts[1].save(files[1])
        for file, own in zip(files, params, strict=True):
            np.savez(file.with_suffix(".params.npz"), **own)
        assert files[0].read_bytes() == files[1].read_bytes()
    assert digest(params[0]) == digest(params[1])


def die(how):
    """One rank ends in the middle of a training; the others would wait for ever."""
    params = tree(0)
    opt = op.Adam(op.shard(params, COMM))
    opt.step(tree(1))
    print("begun", flush=True)
    if RANK == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if RANK == 1:
        raise KeyError("nobody catches it")
    opt.step(tree(2))


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if name == "everything":
        everything()
    elif name == "go_on":
        go_on(rest[0], int(rest[1]))
    else:
        die(rest[0])
    COMM.Barrier()
    if RANK == 0:
        print("done")
