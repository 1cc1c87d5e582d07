"""Times Adam's step on the host of weights that live on a device: DeepSpeed's operation and ours.

python bench/offload.py                                25 million weights; half a minute
python bench/offload.py --elements 1000 25e6 --threads 1 --seconds 20

DeepSpeed compiles its own first, which takes minutes, and needs ninja in PATH. What crosses to the
device and back is not in the times. They take turns; a ratio is the median of the rounds' ratios.

step             DeepSpeedCPUAdam's call, on float32
16-bit weights   the same call on weights and gradients in bfloat16, with state in float32
and copy         a step on float32, and the weights in bfloat16 for the device: two calls or one
and clip         gradients arrive in bfloat16, and are widened and clipped first: five calls or one
"""

import argparse
import os
from functools import partial
from statistics import median

import ml_dtypes
import torch
from deepspeed.ops.op_builder import CPUAdamBuilder

import onepass as op
import onepass.deepspeed
import onepass.torch
from onepass.lab.bench.timing import Step, alternate

SETTINGS = (1e-3, 0.9, 0.999, 1e-8, 0.01, True)
"""lr, betas, eps, weight_decay, and with bias correction: as an update takes them."""
CLASS = {"lr": 1e-3, "weight_decay": 0.01}
MAX_NORM = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--elements", type=float, nargs="*", default=[25e6])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=6.0, help="for each line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    op.set_num_threads(options.threads)
    theirs, ours = operations()
    print(f"load {os.getloadavg()[0]:.2f}; {op.runtime.info()['isa']}; {options.threads} threads")
    print(f"{'elements':10}{'':18}{'DeepSpeed, us':>15}{'onepass, us':>14}{'ratio':>8}")
    for elements in map(int, options.elements):
        for name, make in LINES.items():
            contenders = dict(zip(("theirs", "ours"), make(elements, theirs, ours), strict=True))
            found = alternate(contenders, options.seconds)
            ratio = median(a / b for a, b in zip(*found.values(), strict=False))
            times = (f"{median(seconds) * 1e6:.1f}" for seconds in found.values())
            print("{:<10}{:18}{:>15}{:>14}{:8.2f}".format(elements, name, *times, ratio))


def operations():
    """Return DeepSpeed's operation and ours, which know an optimizer 0."""
    theirs = CPUAdamBuilder().load()
    onepass.deepspeed.install()
    ours = CPUAdamBuilder().load()
    onepass.deepspeed.uninstall()
    for operation in (theirs, ours):
        operation.create_adam(0, *SETTINGS[:-1], True, False)
    return theirs, ours


def arrays(n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return a parameter, a gradient and two states."""
    torch.manual_seed(0)
    pair = [torch.randn(n).to(dtype) for _ in range(2)]
    return [*pair, torch.zeros(n), torch.zeros(n)]


def update(operation, tensors: list[torch.Tensor]) -> Step:
    """Return a call as DeepSpeedCPUAdam makes it."""
    return partial(operation.adam_update, 0, 10, *SETTINGS, *tensors)


def step(n: int, theirs, ours) -> list[Step]:
    return [update(operation, arrays(n)) for operation in (theirs, ours)]


def small(n: int, theirs, ours) -> list[Step]:
    return [update(operation, arrays(n, torch.bfloat16)) for operation in (theirs, ours)]


def and_copy(n: int, theirs, _ours) -> list[Step]:
    tensors = arrays(n)
    copy = torch.zeros(n, dtype=torch.bfloat16)
    call = update(theirs, tensors)

    def step_and_copy() -> None:
        call()
        copy.copy_(tensors[0])

    param, grad, *_ = arrays(n)
    written = torch.zeros(n, dtype=torch.bfloat16).view(torch.uint16).numpy()
    opt = op.AdamW(param.numpy(), copy_to=written.view(ml_dtypes.bfloat16), **CLASS)
    return [step_and_copy, partial(opt.step, grad.numpy())]


def and_clip(n: int, theirs, _ours) -> list[Step]:
    tensors = arrays(n)
    arrived = tensors[1].bfloat16()
    copy = torch.zeros(n, dtype=torch.bfloat16)
    call = update(theirs, tensors)

    def widen_clip_step_and_copy() -> None:
        param, grad, *_ = tensors
        grad.copy_(arrived)
        grad.mul_(torch.clamp(MAX_NORM / (torch.linalg.vector_norm(grad) + 1e-6), max=1.0))
        call()
        copy.copy_(param)

    weights = torch.nn.Parameter(arrays(n)[0].bfloat16())
    weights.grad = arrived.clone()
    opt = onepass.torch.AdamW([weights], rounding="master", max_grad_norm=MAX_NORM, **CLASS)
    return [widen_clip_step_and_copy, opt.step]


LINES = {"step": step, "16-bit weights": small, "and copy": and_copy, "and clip": and_clip}


if __name__ == "__main__":
    main()
