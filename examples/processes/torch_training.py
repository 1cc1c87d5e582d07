"""Train a PyTorch model on several processes; each steps some of its parameters.

    torchrun --nproc-per-node 3 torch_training.py

torch.distributed carries gradients and weights, by gloo, and the sums of squares of which all
processes take the norm: `exchange=` of `step`. Each parameter's state is on one process alone.
"""

import os
import sys

import numpy as np
import torch
import torch.distributed as dist

import onepass as op


def owners(sizes: list[int], processes: int) -> list[int]:
    """Which process each parameter belongs to: runs of about as many elements."""
    begins = np.cumsum([0, *sizes[:-1]])
    return [int(begin * processes // sum(sizes)) for begin in begins]


def exchange(sums: np.ndarray) -> np.ndarray:
    """The sums of all processes, in the order of their parameters."""
    of_all = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, sums)
    return np.concatenate(of_all)


def train(steps: int) -> tuple[list[float], list[np.ndarray]]:
    """The norm in each step, and the weights at the end."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *[torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()],
        torch.nn.Linear(64, 1),
    )
    x = torch.randn(240, 64)
    y = x[:, :8].sum(1, keepdim=True)
    params = list(model.parameters())
    owner = owners([param.numel() for param in params], size)
    own = [param for param, of in zip(params, owner, strict=True) if of == rank]
    opt = op.AdamW([param.detach().numpy() for param in own], lr=0.01, max_grad_norm=1.0)
    norms = []
    for _ in range(steps):
        model.zero_grad()
        torch.nn.functional.mse_loss(model(x[rank::size]), y[rank::size]).backward()
        for param, of in zip(params, owner, strict=True):
            dist.reduce(param.grad, of)  # the sum, which only its owner needs
        grads = [param.grad.numpy() for param in own]
        info = opt.step(grads, grad_scale=size, exchange=exchange)
        for param, of in zip(params, owner, strict=True):
            dist.broadcast(param.detach(), of)
        norms.append(info.grad_norm)
    return norms, [param.detach().numpy() for param in params]


def main() -> None:
    dist.init_process_group("gloo")
    norms, weights = train(steps=20)
    if dist.get_rank() == 0:
        print(f"{len(norms)} steps, norm {norms[-1]:.3f}")
    if len(sys.argv) > 1:
        np.savez(f"{sys.argv[1]}.{dist.get_rank()}", *weights, norms=norms)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
