"""A backward pass that steps each layer as soon as it has its gradient, and lets go of that.

Prints the peak memory and the time of a step for both ways, each in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
from itertools import pairwise
from time import perf_counter

import numpy as np

import onepass as op


def network(sizes):
    rng = np.random.default_rng(0)
    params = {}
    for i, (n, m) in enumerate(pairwise(sizes)):
        params[f"w{i}"] = rng.normal(scale=np.float32(n) ** -0.5, size=(n, m)).astype(np.float32)
        params[f"b{i}"] = np.zeros(m, np.float32)
    return params


def forward(params, x):
    """Return what each layer is given, and behind them the output."""
    layers = [x]
    for i in range(len(params) // 2):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        layers.append(np.maximum(x, 0, out=x))
    return layers


def backward(params, layers, dy, take):
    """Call take(name, gradient) for each parameter, those of the last layer first."""
    for i in reversed(range(len(params) // 2)):
        dy = dy * (layers[i + 1] > 0)
        dx = dy @ params[f"w{i}"].T if i else None  # before the weights move
        take(f"b{i}", dy.sum(axis=0))
        take(f"w{i}", layers[i].T @ dy)
        dy = dx


def train(way, sizes, steps, batch=64):
    """Return the trained parameters and the times of the steps, backward pass included."""
    params = network(sizes)
    opt = op.AdamW(params, lr=1e-4)
    rng, times = np.random.default_rng(1), []
    for _ in range(steps):
        x = rng.normal(size=(batch, sizes[0])).astype(np.float32)
        layers = forward(params, x)
        dy = (layers[-1] - 1) / batch
        begin = perf_counter()
        if way == "step_one":
            backward(params, layers, dy, opt.step_one)
        else:
            grads = {}
            backward(params, layers, dy, grads.__setitem__)
            opt.step(grads)
            del grads
        times.append(perf_counter() - begin)
    return params, times


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=("step", "step_one"), help="default: both")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    sizes = [options.width] * (options.layers + 1)
    if options.way is None:
        given = sys.argv[1:] if arguments is None else arguments
        for way in ("step", "step_one"):
            command = [sys.executable, __file__, "--way", way, *given]
            print(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout,
                end="",
            )
        return
    params, times = train(options.way, sizes, options.steps)
    millions = sum(param.size for param in params.values()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.way:8s}  {millions:.1f} M parameters, peak {peak:.0f} MB, "
        f"backward and step {np.median(times[2:]) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
