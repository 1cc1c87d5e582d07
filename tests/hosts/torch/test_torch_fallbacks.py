"""What is not for the kernels goes to PyTorch's own step, and is counted, or is an error."""

import pytest
import torch
from torch_cases import HOSTED

import onepass.torch

CASES = {
    "complex64 tensor": lambda: torch.ones(3, dtype=torch.complex64),
    "not dense": lambda: torch.ones(6, 2)[::2],
    "16-bit parameters without rounding=": lambda: torch.ones(3, dtype=torch.bfloat16),
}
BEYOND = {"max_grad_norm": 1.0, "nonfinite": "skip", "clear_grads": True, "ema_decay": 0.9}


def steps(cls, value, **settings):
    param = torch.nn.Parameter(value)
    optimizer = cls([param], lr=0.1, **settings)
    for _ in range(3):
        param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    return param, optimizer


@pytest.mark.parametrize("why", CASES)
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_pytorchs_step_runs_and_is_counted(name, why):
    theirs, _ = steps(HOSTED[name], CASES[why]())
    ours, optimizer = steps(getattr(onepass.torch, name), CASES[why]())
    assert bool((theirs == ours).all())
    assert dict(optimizer.fallbacks) == {why: 3}
    assert optimizer.last_step is None


@pytest.mark.parametrize("option", BEYOND)
@pytest.mark.parametrize("why", CASES)
def test_an_option_of_ours_cannot_be_kept_there(why, option):
    value = CASES[why]()
    before = value.clone()
    with pytest.raises(ValueError, match=r"^params\[0\]: expected a dense tensor"):
        steps(onepass.torch.AdamW, value, **{option: BEYOND[option]})
    assert bool((value == before).all())


@pytest.mark.parametrize("why", [why for why in CASES if "rounding" not in why])
def test_classes_that_pytorch_lacks_say_what_they_take(why):
    with pytest.raises(ValueError, match=r"^params\[0\]: expected a dense tensor .*, got "):
        steps(onepass.torch.Lion, CASES[why]())


def test_sparse_gradients():
    table = torch.nn.Embedding(5, 3, sparse=True)
    copy = torch.nn.Embedding.from_pretrained(
        table.weight.detach().clone(), freeze=False, sparse=True
    )
    runs = []
    for layer, cls in ((table, torch.optim.SGD), (copy, onepass.torch.SGD)):
        optimizer = cls(layer.parameters(), lr=0.1)
        layer(torch.tensor([1, 3, 1])).sum().backward()
        optimizer.step()
        runs.append(optimizer)
    assert bool((table.weight == copy.weight).all())
    assert dict(runs[1].fallbacks) == {"gradient: sparse_coo tensor": 1}


@pytest.mark.parametrize("mode", ["capturable", "differentiable"])
def test_modes_of_pytorchs(mode):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = onepass.torch.Adam([param], **{mode: True})
    param.grad = torch.ones(3)
    # On the CPU PyTorch has the one not at all, and the other not for leaves.
    with pytest.raises((AssertionError, RuntimeError), match=r"capturable|leaf"):
        optimizer.step()
    assert dict(optimizer.fallbacks) == {mode: 1}


def test_a_value_that_pytorch_takes_and_we_do_not():
    """PyTorch looks at settings in the constructor alone."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = onepass.torch.SGD([param], lr=0.1)
    optimizer.param_groups[0]["lr"] = -0.5
    param.grad = torch.ones(3)
    optimizer.step()
    assert bool((param == 1.5).all())
    assert dict(optimizer.fallbacks) == {"lr": 1}
    optimizer.param_groups[0]["max_grad_value"] = 1.0
    with pytest.raises(ValueError, match="^lr: expected"):
        optimizer.step()


def test_tensors_that_share_memory():
    memory = torch.ones(6)
    params = [torch.nn.Parameter(memory[:4]), torch.nn.Parameter(memory[2:])]
    for param in params:
        param.grad = torch.ones(4)
    optimizer = onepass.torch.SGD(params, lr=0.1)
    optimizer.step()
    assert dict(optimizer.fallbacks) == {"shared memory": 1}
    with pytest.raises(
        ValueError,
        match=r"^params\[1\]: expected memory of its own, got the same memory as params\[0\]",
    ):
        onepass.torch.SGD(params, lr=0.1, max_grad_norm=1.0).step()


def test_a_gradient_that_is_lazily_negated():
    param = torch.nn.Parameter(torch.zeros(3))
    pairs = torch.view_as_complex(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
    optimizer = onepass.torch.SGD([param], lr=1.0)
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step()
    param.grad = pairs.conj().imag
    assert param.grad.is_neg()
    optimizer.step()
    assert param.tolist() == [-1.0, 0.0, 1.0]
    assert sum(optimizer.fallbacks.values()) == 1


def test_back_on_our_step_after_pytorchs():
    """The state is one, whoever steps."""
    runs = []
    for cls in (torch.optim.AdamW, onepass.torch.AdamW):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = cls([param], lr=0.1)
        for step in range(6):
            param.grad = torch.randn(3, dtype=torch.float64)
            optimizer.param_groups[0]["capturable"] = False
            optimizer.param_groups[0]["lr"] = 0.1 if step % 3 else -0.1
            optimizer.step()
        runs.append(param)
    assert optimizer.fallbacks == {"lr": 2}
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=1e-6)


def test_a_tensor_subclass():
    class Own(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("nothing of it is called")

    from onepass.torch._tensors import unfit

    made = torch.Tensor._make_subclass(Own, torch.ones(3))
    assert unfit(made) == "Own"
    assert unfit(torch.nn.Parameter(torch.ones(3))) is None
