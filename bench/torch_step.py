"""Times steps of onepass.torch beside PyTorch's own, its default and `fused=True`.

python bench/torch_step.py                      ten small tensors and ResNet-50's; a minute or two
python bench/torch_step.py --tensors ten --threads 1 --rounds 500

All take turns in one process; a figure is the median over rounds of each round's ratio, times are
medians. "fresh": the gradients are new tensors in every step, as after `zero_grad()`; "bound": the
same ones. "step" is AdamW's step alone; "whole" clips by the norm, steps, moves an average of the
weights in float32 and zeroes the gradients, which onepass does in its step; in "double" its average
is in float64, as it is by default, and the others' in float32.
"""

import argparse
import os
import time
from statistics import median
from typing import Any

import torch

import onepass.torch

BETA = 0.999
TENSORS = ("ten", "resnet50")


def shapes_of(tensors: str) -> list[tuple[int, ...]]:
    if tensors == "ten":
        layers = [(64, 128), (128, 128), (128, 64), (64, 32), (32, 10)]
        return [shape for layer in layers for shape in (layer, layer[1:])]
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, before, 1, 1))
            for convolution in convolutions:
                shapes += [convolution, convolution[:1], convolution[:1]]  # with BatchNorm's two
            before = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


class Contender:
    """An optimizer with parameters of its own, and what a training calls around it."""

    def __init__(self, who: str, shapes: list[tuple[int, ...]], what: str) -> None:
        self.params = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]
        self.grads = [torch.randn(shape) * 1e-3 for shape in shapes]
        self.is_ours, self.whole = who == "onepass", what != "step"
        if self.is_ours:
            options: dict[str, Any] = {"max_grad_norm": 1.0, "ema_decay": BETA, "clear_grads": True}
            options["average_dtype"] = "float64" if what == "double" else "float32"
            self.optimizer = onepass.torch.AdamW(self.params, **(options if self.whole else {}))
        else:
            self.optimizer = torch.optim.AdamW(self.params, fused=who == "fused" or None)
        self.average = [param.detach().clone() for param in self.params]

    def time(self, fresh: bool) -> float:
        for param, grad in zip(self.params, self.grads, strict=True):
            if fresh or param.grad is None:
                param.grad = grad.clone()
            else:
                param.grad.copy_(grad)
        start = time.perf_counter()
        if self.whole and not self.is_ours:
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        if self.whole and not self.is_ours:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1 - BETA)
            self.optimizer.zero_grad(set_to_none=fresh)
        return time.perf_counter() - start


def compare(shapes: list[tuple[int, ...]], what: str, fresh: bool, rounds: int) -> str:
    torch.manual_seed(0)
    contenders = {who: Contender(who, shapes, what) for who in ("default", "fused", "onepass")}
    times: dict[str, list[float]] = {who: [] for who in contenders}
    for round_number in range(rounds + 2):
        for who, contender in contenders.items():
            taken = contender.time(fresh)
            if round_number >= 2:  # the first steps make state
                times[who].append(taken)

    def ratio(who: str) -> float:
        return median(a / b for a, b in zip(times[who], times["onepass"], strict=True))

    taken = "".join(f"{1e6 * median(each):11,.0f}" for each in times.values())
    return f"{taken}{ratio('default'):9.2f}{ratio('fused'):9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tensors", nargs="*", choices=TENSORS, default=TENSORS)
    parser.add_argument("--threads", nargs="*", type=int, default=(1, 2))
    parser.add_argument("--rounds", type=int, help="by default 300 of ten tensors, 15 of ResNet-50")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}; microseconds, and PyTorch's over onepass's")
    print("tensors   threads what   gradients    default      fused    onepass  default    fused")
    for tensors in options.tensors:
        rounds = options.rounds or (300 if tensors == "ten" else 15)
        for threads in options.threads:
            torch.set_num_threads(threads)
            for what in ("step", "whole", "double"):
                for fresh in (True, False):
                    row = compare(shapes_of(tensors), what, fresh, rounds)
                    name = f"{what:7}{('bound', 'fresh')[fresh]:9}"
                    print(f"{tensors:10}{threads:7} {name}{row}", flush=True)


if __name__ == "__main__":
    main()
