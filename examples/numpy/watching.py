"""A training that is watched: what each step did to each parameter, as a table and in TensorBoard.

Writes stats.csv, and a run for TensorBoard where tensorboardX is installed, into a folder.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

import onepass as op

# The writers. A step's `info.stats` maps each parameter's key to its norms.


def add_rows(table, info):
    """Add a row for each parameter to a `csv.writer`."""
    for name, stats in info.stats.items():
        table.writerow([info.step, name, *stats])


def add_scalars(writer, info):
    """Add a curve for each parameter to a SummaryWriter, tensorboardX's or PyTorch's."""
    for name, stats in info.stats.items():
        for what, value in stats._asdict().items():
            writer.add_scalar(f"{what}/{name}", value, info.step)


# What is trained: two layers with ReLU, whose target is another network's output.


def network(seed):
    rng = np.random.default_rng(seed)
    return {"hidden": rng.normal(size=(8, 32)) / 8**0.5, "out": rng.normal(size=(32, 1)) / 32**0.5}


def train(steps, every, *record):
    """Call each function in `record` with the info of every so-many-th step."""
    teacher, params = network(1), network(2)
    opt = op.AdamW(params, lr=1e-2)
    rng = np.random.default_rng(3)
    for step in range(steps):
        x = rng.normal(size=(64, 8))
        target = np.maximum(x @ teacher["hidden"], 0) @ teacher["out"]
        hidden = np.maximum(x @ params["hidden"], 0)
        error = (hidden @ params["out"] - target) / len(x)
        dx = (error @ params["out"].T) * (hidden > 0)
        grads = {"hidden": x.T @ dx, "out": hidden.T @ error}
        info = opt.step(grads, stats=step % every == 0)  # the other steps take their usual time
        if info.stats is not None:
            for each in record:
                each(info)
    return params


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args(arguments)
    options.folder.mkdir(exist_ok=True)
    with (options.folder / "stats.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "parameter", *op.ParamStats._fields])
        record = [lambda info: add_rows(table, info)]
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            print("tensorboardX is not installed: no run for TensorBoard")
            train(options.steps, options.every, *record)
        else:
            with SummaryWriter(str(options.folder)) as writer:
                train(options.steps, options.every, *record, lambda info: add_scalars(writer, info))
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
