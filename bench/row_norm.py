"""Times LayerNorm, RMSNorm, GroupNorm and InstanceNorm beside PyTorch's functions.

python bench/row_norm.py                     all, float32
python bench/row_norm.py --threads 2 --seconds 20 --only layer
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import onepass as op
from onepass._memory import state_like
from onepass.lab.bench.timing import alternate
from onepass.lab.bench.workloads import normal

try:
    import torch
except ImportError:
    torch = None

EPS = 1e-5
IMAGES = ((32, 64, 56, 56), (64, 64, 112, 112), (64, 512, 7, 7))
WORKLOADS = [
    *(
        ("layer", shape)
        for shape in ((32, 16), (512, 64), (128, 1024), (4096, 1024), (64, 262_144))
    ),
    *(("rms", shape) for shape in ((128, 1024), (4096, 1024), (512, 8192))),
    *(("group", shape) for shape in IMAGES),
    *(("instance", shape) for shape in IMAGES),
]
GROUPS = 32
Call = Callable[[], Any]


class Problem:
    """One array, and what each contender needs for a forward and a backward pass of it."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        self.kind, self.shape = kind, shape
        (self.x,), (self.dy,) = normal([shape], 1.0, seed=1), normal([shape], 0.01, seed=2)
        np.add(self.x, 1, out=self.x)  # a mean that a contender cannot forget
        self.out = state_like(self.x)
        self.weight, self.bias = normal(2 * [(shape[1],)], 1.0, seed=3)

    def onepass(self) -> dict[str, Call]:
        options = {"layer": {"normalized_shape": self.shape[1]}, "group": {"num_groups": GROUPS}}
        options["rms"] = options["layer"]
        chosen: dict[str, Any] = {"weight": self.weight, "out": self.out}
        chosen |= options.get(self.kind, {})
        affine = {} if self.kind == "rms" else {"bias": self.bias}
        call = getattr(op, f"{self.kind}_norm")
        forward = partial(call, self.x, eps=EPS, **affine, **chosen)
        _, *saved = forward()
        names = ("saved_invrms",) if self.kind == "rms" else ("saved_mean", "saved_invstd")
        chosen |= dict(zip(names, saved, strict=True))
        back = partial(getattr(op, f"{self.kind}_norm_backward"), self.dy, self.x, **chosen)
        return {"forward": forward, "backward": back}

    def torch(self) -> dict[str, Call]:
        arrays = (self.x, self.dy, self.weight, self.bias)
        x, dy, weight, bias = map(torch.from_numpy, arrays)
        aten = torch.ops.aten
        n, channels, inner = self.shape[0], self.shape[1], int(np.prod(self.shape[2:]))
        if self.kind == "layer":
            forward = partial(torch.native_layer_norm, x, (channels,), weight, bias, EPS)
            _, *saved = forward()
            back = partial(
                aten.native_layer_norm_backward,
                dy,
                x,
                (channels,),
                *saved,
                weight,
                bias,
                [True] * 3,
            )
        elif self.kind == "rms":
            forward = partial(torch.rms_norm, x, (channels,), weight, EPS)
            back = rms_backward(x, dy, weight)
        elif self.kind == "group":
            sizes = (n, channels, inner, GROUPS)
            forward = partial(torch.native_group_norm, x, weight, bias, *sizes, EPS)
            _, *saved = forward()
            back = partial(
                aten.native_group_norm_backward, dy, x, *saved, weight, *sizes, [True] * 3
            )
        else:  # what torch.instance_norm does itself
            row = (1, n * channels, *self.shape[2:])
            forward = partial(
                torch.instance_norm, x, weight, bias, None, None, True, 0.1, EPS, True
            )
            x, dy, repeated = x.view(row), dy.view(row), weight.repeat(n)
            _, *saved = torch.native_batch_norm(x, repeated, None, None, None, True, 0.1, EPS)
            back = partial(
                aten.native_batch_norm_backward,
                *(dy, x, repeated, None, None, *saved, True, EPS, [True] * 3),
            )
        return {"forward": forward, "backward": back}


def rms_backward(x: Any, dy: Any, weight: Any) -> Call:
    """Autograd's, which is the only one: its graph is made once."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = torch.rms_norm(x, (x.shape[1],), weight, EPS)
    return partial(torch.autograd.grad, y, (x, weight), dy, retain_graph=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line")
    parser.add_argument("--only", nargs="+", default=["layer", "rms", "group", "instance"])
    options = parser.parse_args()
    op.set_num_threads(options.threads)
    if torch:
        torch.set_num_threads(options.threads)
        torch.set_grad_enabled(True)
    print(f"load {os.getloadavg()[0]:.2f}; {options.threads} threads, float32, medians")
    for kind, shape in WORKLOADS:
        if kind not in options.only:
            continue
        problem = Problem(kind, shape)
        ours, theirs = problem.onepass(), problem.torch() if torch else {}
        for way, step in ours.items():
            steps = {"onepass": step} | ({"torch": theirs[way]} if torch else {})
            times = {k: median(t) * 1e6 for k, t in alternate(steps, options.seconds).items()}
            line = f"{kind:8} {'x'.join(map(str, shape)):14} {way:8} {times['onepass']:10,.1f} us"
            if torch:
                ratio = times["torch"] / times["onepass"]
                line += f", torch {times['torch']:10,.1f} us, {ratio:.2f} times"
            print(line, flush=True)


if __name__ == "__main__":
    main()
