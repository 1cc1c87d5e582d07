"""What the tests of DeepSpeed's optimizers share."""

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

SIZE = 1003  # no whole number of any instruction set's vectors


def tensors(n, dtype=torch.float32, shape=(SIZE,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(n)]


def train(cls, options, start, grads, **more):
    param = torch.nn.Parameter(start.clone())
    opt = cls([param], lr=0.05, **options, **more)
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
    return param.detach(), opt.state[param]


def zeros(like, n):
    return [torch.zeros_like(like) for _ in range(n)]


def opt_of(param, **options):
    """Return the number of an optimizer that stays until the test is over."""
    opt = DeepSpeedCPUAdam([torch.nn.Parameter(param)], **options)
    KEPT.append(opt)
    return opt.opt_id


KEPT = []
