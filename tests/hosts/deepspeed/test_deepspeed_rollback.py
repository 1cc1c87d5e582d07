"""Steps that are taken back, as SuperOffload does."""

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed_steps import SIZE, tensors, train, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    adamw_mode=st.booleans(),
    bias_correction=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20)
def test_rollback(dtype, steps, seed, **options):
    """A step that is taken back leaves weights and state as they were, to the dtype's precision.

    DeepSpeed takes back float32 alone, and as AdamW with bias correction, whatever it stepped by.
    """
    start, *grads = tensors(steps + 1, dtype, seed=seed)
    param = torch.nn.Parameter(start.clone())
    opt = DeepSpeedCPUAdam([param], lr=0.05, **options)
    for grad in grads:
        param.grad = grad
        before = param.detach().clone(), *(each.clone() for each in moments(opt))
        opt.step_subgroup(0)
    opt.rollback_subgroup(0)
    assert opt.state[0]["step"] == steps - 1
    mean, square = moments(opt)
    # A few roundings of the moments, in float32, and of the weights: these count in a coupled
    # gradient too. No weight nor gradient reaches 6, and no step 4 rates.
    rounded = torch.finfo(torch.float32).eps * 4
    of_weights = 6 * torch.finfo(dtype).eps
    near = rounded * 6 + 0.1 * options["weight_decay"] * of_weights
    torch.testing.assert_close(mean, before[1], rtol=0, atol=near)
    torch.testing.assert_close(square, before[2], rtol=0, atol=6 * near)
    assert (square >= 0).all()
    near = 2 * of_weights + rounded * 10 * (4 * 0.05)
    torch.testing.assert_close(param.detach(), before[0], rtol=0, atol=near)


def test_rollback_without_memory():
    """Betas of 0: nothing is known of the moments before, nor does a step ask for it."""
    start, grad, other = tensors(3)
    param = torch.nn.Parameter(start.clone())
    opt = DeepSpeedCPUAdam([param], lr=0.05, betas=(0.0, 0.0))
    param.grad = grad
    opt.step_subgroup(0)
    opt.rollback_subgroup(0)
    param.grad = other
    opt.step_subgroup(0)
    expected, _ = train(DeepSpeedCPUAdam, {"betas": (0.0, 0.0)}, start, [other])
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=1e-6)


def moments(opt):
    state = opt.state[0]
    return (
        [state[name] for name in ("exp_avg", "exp_avg_sq")]
        if state
        else zeros(torch.zeros(SIZE), 2)
    )
