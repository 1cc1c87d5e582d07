"""PyTorch's calls around its optimizers, for which onepass needs one: the second oracle."""

import numpy as np
import pytest

import onepass as op
from helpers import shaped

torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
pytestmark = pytest.mark.usefixtures("torch_in_float64")
THEIRS = [cls for cls in op.optim.registry.values() if hasattr(torch.optim, cls.__name__)]
SHAPES = [(7, 5), (11,), ()]
STEPS = 12


@pytest.fixture(params=THEIRS, ids=lambda cls: cls.__name__)
def optimizer(request):
    """A class that PyTorch has too, in place of conftest's of all classes."""
    return request.param


def start(optimizer, rng):
    values = [shaped(optimizer, {}, np.asarray(rng.normal(size=shape))) for shape in SHAPES]
    return [value.copy() for value in values], [
        torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values
    ]


def gradients(rng, tensors):
    grads = [np.asarray(rng.normal(size=tensor.shape)) for tensor in tensors]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    return grads


def assert_close(arrays, tensors):
    for array, tensor in zip(arrays, tensors, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-10, atol=1e-13)


def theirs(optimizer, tensors):
    return getattr(torch.optim, optimizer.__name__)(tensors, lr=0.01)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
@pytest.mark.parametrize("grad_scale", [1.0, 4096.0])
def test_unscale_clip_step_average(optimizer, max_norm, grad_scale, rng):
    params, tensors = start(optimizer, rng)
    opt = optimizer(params, 0.01, max_grad_norm=max_norm, ema_decay=0.9)
    torch_opt = theirs(optimizer, tensors)
    average = None
    for _ in range(STEPS):
        grads = gradients(rng, tensors)
        for tensor in tensors:
            tensor.grad /= grad_scale
        norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        torch_opt.step()
        weights = [tensor.detach() for tensor in tensors]
        if average is None:  # as AveragedModel begins
            average = [array.clone() for array in weights]
        torch._foreach_lerp_(average, weights, 1 - 0.9)
        info = opt.step(grads, grad_scale=grad_scale)
        assert info.grad_norm == pytest.approx(float(norm), rel=1e-12)
        assert info.clipped == (float(norm) > max_norm)
    assert_close(params, tensors)
    with opt.averaged():
        assert_close(params, average)


def test_clip_by_value(optimizer, rng):
    params, tensors = start(optimizer, rng)
    opt, torch_opt = optimizer(params, 0.01, max_grad_value=0.3), theirs(optimizer, tensors)
    for _ in range(STEPS):
        grads = gradients(rng, tensors)
        torch.nn.utils.clip_grad_value_(tensors, 0.3)
        torch_opt.step()
        opt.step(grads)
    assert_close(params, tensors)


@pytest.mark.parametrize("first", [1, 4])
def test_stochastic_weight_averaging(optimizer, first, rng):
    """`AveragedModel` as its documentation uses it: updated after each step from the first on."""
    params, tensors = start(optimizer, rng)
    opt, torch_opt = optimizer(params, 0.01, swa_start=first), theirs(optimizer, tensors)
    model = torch.nn.ParameterList(tensors)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for step in range(1, STEPS + 1):
        opt.step(gradients(rng, tensors))
        torch_opt.step()
        if step >= first:
            averaged.update_parameters(model)
    with opt.averaged():
        assert_close(params, list(averaged.parameters()))


def test_loss_scaler_is_grad_scaler(optimizer, rng):
    settings = {"init_scale": 64.0, "growth_interval": 3}
    scaler, theirs_ = op.LossScaler(**settings), torch.amp.GradScaler("cpu", **settings)
    params, tensors = start(optimizer, rng)
    opt, torch_opt = optimizer(params, 0.01, nonfinite="skip"), theirs(optimizer, tensors)
    theirs_.scale(torch.ones(()))  # makes the scale
    skipped = 0
    for step in range(30):
        grads = gradients(rng, tensors)
        if step % 7 == 5:
            grads[step % 3].flat[0] = np.nan if step % 2 else np.inf
        grads = [np.asarray(scaler.scale(grad)) for grad in grads]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        theirs_.step(torch_opt)
        theirs_.update()
        skipped += scaler.step(opt, grads).skipped
        scaler.update()
        assert scaler.get_scale() == theirs_.get_scale()
        assert scaler.state_dict() == theirs_.state_dict()
    assert skipped == opt.skipped_steps == 4
    assert_close(params, tensors)
    fresh = op.LossScaler()
    fresh.load_state_dict(theirs_.state_dict())
    assert fresh.state_dict() == scaler.state_dict()
