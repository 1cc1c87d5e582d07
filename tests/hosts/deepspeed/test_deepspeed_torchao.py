"""torchao's CPUOffloadOptimizer takes our classes. Its device is the CPU here, as a stand-in."""

import contextlib
import copy
import types
import warnings

import pytest
import torch

import onepass.torch

with warnings.catch_warnings():  # of escapes in its strings, where nobody has compiled it yet
    warnings.simplefilter("ignore")
    from torchao.optim import CPUOffloadOptimizer, cpu_offload


class Stream:
    """The stand-in's: what is queued is done at once."""

    def wait_stream(self, other): ...

    def synchronize(self): ...

    def record_event(self):
        return self


class Torch(types.SimpleNamespace):
    """PyTorch, with a device whose memory is the CPU's, and no pinned memory."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def empty_like(like, *, pin_memory, device=None):
        assert pin_memory
        return torch.empty_like(like, device=device)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    cuda = types.SimpleNamespace(
        Stream=Stream, current_stream=Stream, stream=lambda _: contextlib.nullcontext()
    )
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(cpu_offload, "torch", Torch(cuda=cuda))


def make(cls, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4))
    model.to(dtype)
    return model, CPUOffloadOptimizer(model.parameters(), cls, lr=0.01, **options)


def train(model, opt, steps=10):
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 32, generator=generator).to(model[0].weight.dtype)
        loss = torch.nn.functional.mse_loss(model(x), x[:, :4].sin())
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def test_losses_are_pytorchs():
    losses = train(*make(onepass.torch.AdamW, weight_decay=0.1))
    expected = train(*make(torch.optim.AdamW, weight_decay=0.1))
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)


def test_our_step_runs_for_each_large_parameter():
    """Each has an optimizer of its own; one more steps the small ones, where they are."""
    model, opt = make(onepass.torch.AdamW)
    train(model, opt, steps=2)
    large = [p for p in model.parameters() if p.numel() >= 4096]
    assert large
    assert len(opt.optim_dict) == len(large)
    for each in (*opt.optim_dict.values(), opt.d_opt):
        assert type(each) is onepass.torch.AdamW
        assert not each.fallbacks
        assert each.last_step.step == 2


def test_bfloat16_with_our_options():
    """What torchao's page advises, all of it in 16 bits, without losing small updates."""
    options = {"rounding": "stochastic", "state_format": "q8"}
    model, opt = make(onepass.torch.AdamW, torch.bfloat16, minimal_size=0, **options)
    losses = train(model, opt, steps=40)
    assert losses[-1] < losses[0] / 2
    for each in opt.optim_dict.values():
        assert not each.fallbacks
        ((param, state),) = each.state.items()
        assert state["exp_avg"].dtype == (torch.uint8 if param.numel() >= 4096 else torch.float32)
    assert opt.d_opt is None


def test_checkpoint():
    """Training that goes on from a file is training that went on."""
    model, opt = make(onepass.torch.AdamW)
    train(model, opt)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    saved = copy.deepcopy(opt.state_dict())
    other, again = make(onepass.torch.AdamW)
    other.load_state_dict(weights)
    for host, param in zip(again.param_d2h_map.values(), again.param_d2h_map, strict=True):
        host.copy_(param.detach())  # the weights on the host are made when the optimizer is
    again.load_state_dict(saved)
    assert train(other, again) == train(model, opt)
