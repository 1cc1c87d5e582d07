"""What the tests of onepass.torch share."""

import numpy as np
import torch

import onepass as op
import onepass.torch

SHAPES = ((5, 7), (300,), (2, 3, 4), (4,), (65, 64))
"""The last one is large enough for state in fewer bits."""

HOSTED = {
    name: getattr(torch.optim, name)
    for name in onepass.torch.__all__
    if getattr(onepass.torch, name).host is not None
}
"""PyTorch's classes that we have too, by name."""


def shapes_for(cls):
    """Muon takes matrices alone."""
    return [shape for shape in SHAPES if cls.__name__ != "Muon" or len(shape) == 2]


def arrays_for(cls, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes_for(cls)]


def parameters(arrays, dtype=None):
    return [torch.nn.Parameter(torch.from_numpy(a.copy()).to(dtype)) for a in arrays]


def set_gradients(params, step, scale=1.0):
    """Give parameters the gradients of a step, anew."""
    rng = np.random.default_rng(1000 + step)
    for param in params:
        grad = torch.from_numpy(scale * rng.standard_normal(param.shape)).to(param.dtype)
        param.grad = torch.empty_like(param).copy_(grad)


def run(optimizer, params, steps, first=0, scale=1.0):
    for step in range(first, first + steps):
        set_gradients(params, step, scale)
        optimizer.step()


def make(cls, params, **settings):
    """An optimizer with a rate that moves weights within few steps."""
    return cls(params, **{"lr": 0.01, **settings})


def numpy_twin(name, params, **settings):
    """`onepass.<name>` over copies of the parameters."""
    arrays = [as_numpy(param).copy() for param in params]
    return op.optim.registry[name.lower()](arrays, **settings), arrays


def as_numpy(tensor):
    """The bits of a tensor as NumPy has them."""
    import ml_dtypes

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
