"""DeepSpeed's optimizers for the CPU, stepped by our operations."""

import re

import numpy as np
import pytest
import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.lion import DeepSpeedCPULion
from deepspeed.ops.op_builder import CPUAdamBuilder
from deepspeed_steps import SIZE, opt_of, tensors, train, zeros

import onepass as op

pytestmark = pytest.mark.usefixtures("installed")

OPTIMIZERS = {
    "AdamW": (
        DeepSpeedCPUAdam,
        {"betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        op.kernels.adamw,
        torch.optim.AdamW,
    ),
    "Adam": (
        DeepSpeedCPUAdam,
        {"eps": 1e-6, "weight_decay": 0.1, "adamw_mode": False},
        op.kernels.adam,
        torch.optim.Adam,
    ),
    "Adagrad": (
        DeepSpeedCPUAdagrad,
        {"eps": 1e-6, "weight_decay": 0.1},
        op.kernels.adagrad,
        torch.optim.Adagrad,
    ),
    "Lion": (DeepSpeedCPULion, {"betas": (0.8, 0.99), "weight_decay": 0.1}, op.kernels.lion, None),
}
"""DeepSpeed's class with settings, and whose rule that is: ours and PyTorch's."""
RULES = {
    op.kernels.adamw: ("exp_avg", "exp_avg_sq"),
    op.kernels.adam: ("exp_avg", "exp_avg_sq"),
    op.kernels.adagrad: ("exp_avg_sq",),
    op.kernels.lion: ("exp_avg",),
}
"""What DeepSpeed calls the state of our rules, in their order."""


def known(options):
    return {name: value for name, value in options.items() if name != "adamw_mode"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_our_rule(name):
    cls, options, rule, _ = OPTIMIZERS[name]
    start, *grads = tensors(5)
    param, state = train(cls, options, start, grads)
    arrays = [start.numpy().copy(), *(np.zeros(SIZE, np.float32) for _ in RULES[rule])]
    for i, grad in enumerate(grads):
        rule(arrays[0], grad.numpy(), *arrays[1:], step=i + 1, lr=0.05, **known(options))
    np.testing.assert_array_equal(param, arrays[0])
    for kept, array in zip(RULES[rule], arrays[1:], strict=True):
        np.testing.assert_array_equal(state[kept], array)


@pytest.mark.parametrize("name", [name for name, (*_, host) in OPTIMIZERS.items() if host])
def test_steps_are_those_of_pytorch_in_float64(name):
    cls, options, _, host = OPTIMIZERS[name]
    start, *grads = tensors(21)
    param, _ = train(cls, options, start, grads)
    expected, _ = train(host, known(options), start.double(), [grad.double() for grad in grads])
    # Each step rounds the weights, below 4, once more, and its own length, 0.05, a few times.
    np.testing.assert_allclose(param, expected, rtol=0, atol=20 * 2 * np.finfo(np.float32).eps)


def test_without_bias_correction():
    start, *grads = tensors(3)
    options = {"bias_correction": False}
    param, _ = train(DeepSpeedCPUAdam, options, start, grads)
    expected = start.numpy().copy()
    opt = op.AdamW(expected, lr=0.05, weight_decay=0.0, **options)
    for grad in grads:
        opt.step(grad.numpy())
    np.testing.assert_array_equal(param, expected)


def test_settings_may_change_between_steps():
    """The rate by a schedule, also as a tensor that is changed in place."""
    start, *grads = tensors(4)
    param, expected = torch.nn.Parameter(start.clone()), start.numpy().copy()
    opt, ours = DeepSpeedCPUAdam([param]), op.AdamW(expected, weight_decay=0.0)
    rate = torch.tensor(0.0)
    for lr, grad in zip((0.5, 0.25, 0.125), grads, strict=True):
        rate.fill_(lr)
        opt.param_groups[0]["lr"] = rate
        ours.param_groups[0]["lr"] = lr
        param.grad = grad
        opt.step()
        ours.step(grad.numpy())
    np.testing.assert_array_equal(param.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_parameters_are_rounded_to_nearest(name, dtype):
    """The step of float32 from the same numbers, rounded as PyTorch rounds."""
    cls, options, *_ = OPTIMIZERS[name]
    start, grad = tensors(2, dtype)
    param, state = train(cls, options, start, [grad])
    wide, wide_state = train(cls, options, start.float(), [grad.float()])
    assert param.dtype == dtype
    assert torch.equal(param, wide.to(dtype))
    for key, value in state.items():
        assert value == wide_state[key] if key == "step" else torch.equal(value, wide_state[key])


def test_gradients_may_be_of_fewer_bits():
    """DeepSpeed reads any gradient as if it were of the parameter's dtype."""
    start, grad = tensors(2)
    grad = grad.bfloat16()
    expected, _ = train(DeepSpeedCPUAdam, {}, start, [grad.float()])
    param = start.clone()
    update = CPUAdamBuilder().load().adam_update
    update(opt_of(start), 1, 0.05, 0.9, 0.999, 1e-8, 0.0, True, param, grad, *zeros(start, 2))
    assert torch.equal(param, expected)


def test_bfloat16_state_is_rounded_at_random():
    """Repeatably, and differently for each tensor of a step, so that errors do not add up."""
    starts = [tensors(1, torch.bfloat16)[0]] * 2
    (grad,) = tensors(1, torch.bfloat16, seed=1)

    def run():
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        opt = DeepSpeedCPUAdam(params, fp32_optimizer_states=False)
        for _ in range(3):
            for param in params:
                param.grad = grad.clone()
            opt.step()
        return [opt.state[param]["exp_avg_sq"] for param in params]

    once, again = run(), run()
    assert once[0].dtype == torch.bfloat16
    assert all(map(torch.equal, once, again))
    assert not torch.equal(*once)
    _, full = train(DeepSpeedCPUAdam, {}, starts[0], [grad] * 3)
    # Between the two neighbours of what is exact, three times.
    torch.testing.assert_close(once[0].float(), full["exp_avg_sq"], rtol=3 * 2**-7, atol=0)


def test_bfloat16_state_follows_the_gradients():
    """1 - 0.999**1000 after as many gradients of 1, which rounding to nearest leaves at 0.25."""
    grads = [torch.ones(SIZE, dtype=torch.bfloat16)] * 1000
    start = torch.zeros(SIZE, dtype=torch.bfloat16)
    _, state = train(DeepSpeedCPUAdam, {"fp32_optimizer_states": False}, start, grads)
    assert state["exp_avg_sq"].float().mean() == pytest.approx(1 - 0.999**1000, rel=0.01)


LAYOUTS = {
    "transposed": lambda x: x.view(17, 59).t().contiguous().t(),
    "cut out": lambda x: torch.stack([x, x], -1)[..., 0],
    "backwards in memory": lambda x: x.view(17, 59).t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_of_any_strides(name, layout):
    """DeepSpeed 0.19.8 steps on a copy of what is not contiguous, and drops it."""
    cls, options, *_ = OPTIMIZERS[name]
    start, *grads = (LAYOUTS[layout](x) for x in tensors(3, shape=(1003,)))
    start = LAYOUTS[layout](tensors(1)[0])
    expected, _ = train(cls, options, start.contiguous(), [g.contiguous() for g in grads])
    param = torch.nn.Parameter(start)
    opt = cls([param], lr=0.05, **options)
    for grad in grads:
        param.grad = grad
        opt.step()
    assert not param.is_contiguous()
    assert torch.equal(param, expected)


def test_expanded_gradient():
    (start,) = tensors(1)
    param = torch.nn.Parameter(start.clone())
    opt = DeepSpeedCPUAdam([param], lr=0.05)
    param.grad = torch.ones(()).expand(SIZE)
    opt.step()
    expected, _ = train(DeepSpeedCPUAdam, {}, start, [torch.ones(SIZE)])
    assert torch.equal(param, expected)


def test_empty_parameter():
    """As partitions of ZeRO may be."""
    param, _ = train(DeepSpeedCPUAdam, {}, torch.zeros(0), [torch.zeros(0)])
    assert param.numel() == 0


WRONG = {
    "grads of float64": ("grads", lambda x: x.double(), TypeError, "expected torch.float32"),
    "grads on a device": (
        "grads",
        lambda x: x.to("meta"),
        TypeError,
        "expected a dense tensor in the CPU's memory, got a META tensor",
    ),
    "sparse grads": (
        "grads",
        lambda x: x.to_sparse(),
        TypeError,
        "expected a dense tensor in the CPU's memory, got a sparse_coo tensor",
    ),
    "fewer grads": ("grads", lambda x: x[1:], ValueError, f"expected {SIZE} elements, as params"),
    "complex params": (
        "params",
        lambda x: x + 0j,
        TypeError,
        "expected a dense tensor in the CPU's memory, got a complex64 tensor",
    ),
    "other state": ("exp_avg_sq", torch.Tensor.bfloat16, TypeError, "expected torch.float32, as"),
    "no state": ("exp_avg", lambda x: x[:0], ValueError, "expected 1003 elements"),
    "rate": ("lr", -1.0, ValueError, "expected a finite number >= 0"),
    "beta": ("betas", 1.0, ValueError, "expected"),
    "shared": ("exp_avg", None, ValueError, "expected memory of its own, got the same memory as"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_change_nothing(wrong):
    name, change, error, message = WRONG[wrong]
    operation = CPUAdamBuilder().load()
    arrays = dict(zip(("params", "grads"), tensors(2), strict=True))
    arrays |= {name: torch.zeros(SIZE) for name in ("exp_avg", "exp_avg_sq")}
    numbers = {"lr": 1e-3, "beta1": 0.9, "betas": 0.999}
    if change is None:
        arrays["exp_avg"] = arrays["params"]
    elif name in arrays:
        arrays[name] = change(arrays[name])
    else:
        numbers[name] = change
    before = {n: array.clone() for n, array in arrays.items()}
    update = operation.adam_update
    number = opt_of(torch.zeros(1))
    with pytest.raises(error, match=f"^{name}: {re.escape(message)}"):
        update(number, 1, *numbers.values(), 1e-8, 0.0, True, *arrays.values())
    for n, array in arrays.items():
        assert array.is_meta or torch.equal(array.to_dense(), before[n].to_dense())
