"""Files of PyTorch's and ours: each continues the other's run, and nothing loses its dtype."""

import io

import ml_dtypes
import numpy as np
import pytest
import torch
from torch_cases import HOSTED, arrays_for, as_numpy, make, parameters, run

import onepass as op
import onepass.torch
from helpers import assert_same_bits

SETTINGS = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}


def saved(optimizer):
    """A state as a file has it, which is read without pickles."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(cls, params, state, **settings):
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    optimizer = make(cls, copies, **settings)
    optimizer.load_state_dict(state)
    return optimizer, copies


def ours(name):
    return getattr(onepass.torch, name)


@pytest.mark.parametrize("name", HOSTED)
@pytest.mark.parametrize("to_ours", [True, False])
@pytest.mark.usefixtures("torch_in_float64")
def test_a_run_goes_on_in_the_other_class(name, to_ours):
    classes = (HOSTED[name], ours(name)) if to_ours else (ours(name), HOSTED[name])
    settings = SETTINGS.get(name, {})
    params = parameters(arrays_for(getattr(op, name), np.float64))
    optimizer = make(classes[0], params, **settings)
    run(optimizer, params, 4)
    other, copies = resumed(classes[1], params, saved(optimizer), **settings)
    run(optimizer, params, 8, first=4)
    run(other, copies, 8, first=4)
    for a, b in zip(params, copies, strict=True):
        np.testing.assert_allclose(as_numpy(b), as_numpy(a), rtol=1e-12, atol=1e-12)
    if to_ours:
        assert not other.fallbacks


@pytest.mark.parametrize("name", onepass.torch.__all__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_has_the_same_bits(name, dtype):
    cls = getattr(op, name)
    params = parameters(arrays_for(cls), dtype)
    averages = cls.own_average is None or name == "ASGD"
    settings = {"max_grad_norm": 2.0, **({"ema_decay": 0.9} if averages else {})}
    optimizer = make(ours(name), params, **settings)
    run(optimizer, params, 5)
    other, copies = resumed(ours(name), params, saved(optimizer), **settings)
    run(optimizer, params, 3, first=5)
    run(other, copies, 3, first=5)
    for a, b in zip(params, copies, strict=True):
        assert_same_bits(as_numpy(b), as_numpy(a))
    with optimizer.averaged() if averages else torch.no_grad():
        shown = [as_numpy(param).copy() for param in params]
    with other.averaged() if averages else torch.no_grad():
        for a, b in zip(shown, copies, strict=True):
            assert_same_bits(as_numpy(b), a)


@pytest.mark.parametrize(
    "settings",
    [
        {"state_format": "q8"},
        {"state_format": "bf16"},
        {"rounding": "master"},
        {"rounding": "stochastic", "state_format": "q8"},
        {"rounding": "nearest", "ema_decay": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["AdamW", "Lion", "NAdam"])
def test_state_keeps_its_dtype(name, settings):
    """PyTorch casts what it loads to the parameter's dtype."""
    dtype = torch.bfloat16 if "rounding" in settings else None
    params = parameters(arrays_for(getattr(op, name)), dtype)
    optimizer = make(ours(name), params, **settings)
    run(optimizer, params, 3)
    other, copies = resumed(ours(name), params, saved(optimizer))
    for a, b in zip(params, copies, strict=True):
        for key, kept in optimizer.state[a].items():
            if isinstance(kept, torch.Tensor):
                assert other.state[b][key].dtype == kept.dtype
                assert_same_bits(as_numpy(other.state[b][key]), as_numpy(kept))
    run(optimizer, params, 3, first=3)
    run(other, copies, 3, first=3)
    for a, b in zip(params, copies, strict=True):
        assert_same_bits(as_numpy(b), as_numpy(a))


@pytest.mark.parametrize("state_format", ["q8", "bf16"])
def test_pytorchs_state_is_taken_into_fewer_bits(state_format):
    """Rounded to nearest by the next step, as `onepass.AdamW.load_state_dict` has it."""
    params = parameters(arrays_for(op.AdamW))
    theirs = make(torch.optim.AdamW, params)
    run(theirs, params, 3)
    other, copies = resumed(onepass.torch.AdamW, params, saved(theirs), state_format=state_format)
    twin_arrays = [as_numpy(param).copy() for param in params]
    twin = op.AdamW(twin_arrays, lr=0.01, state_format=state_format)
    twin.load_state_dict(
        {
            "state": {
                i: {
                    name: float(kept) if name == "step" else as_numpy(kept)
                    for name, kept in entry.items()
                }
                for i, entry in enumerate(theirs.state.values())
            },
            "param_groups": twin.state_dict()["param_groups"],
        }
    )
    for step in range(3, 5):
        run(other, copies, 1, first=step)
        twin.step([as_numpy(copy.grad).copy() for copy in copies])
    for a, b in zip(twin_arrays, copies, strict=True):
        assert_same_bits(as_numpy(b), a)
    largest = max(copies, key=torch.Tensor.numel)
    stored = as_numpy(other.state[largest]["exp_avg"])
    assert stored.dtype == (np.uint8 if state_format == "q8" else ml_dtypes.bfloat16)


def test_pytorch_loads_our_file():
    """Also one with settings of ours, which PyTorch's class keeps in its groups."""
    params = parameters(arrays_for(op.AdamW))
    optimizer = make(onepass.torch.AdamW, params, max_grad_norm=1.0)
    run(optimizer, params, 2)
    other, copies = resumed(torch.optim.AdamW, params, saved(optimizer))
    run(other, copies, 2, first=2)
    assert all(int(entry["step"]) == 4 for entry in other.state.values())


def test_hooks_of_the_file_see_plain_tensors():
    params = parameters(arrays_for(op.AdamW), torch.bfloat16)
    optimizer = make(onepass.torch.AdamW, params, rounding="master")
    run(optimizer, params, 2)
    seen = []

    def look(_, state_dict):
        seen.extend(v for entry in state_dict["state"].values() for v in entry.values())

    optimizer.register_load_state_dict_pre_hook(look)
    optimizer.load_state_dict(saved(optimizer))
    assert all(isinstance(value, torch.Tensor) for value in seen)
    assert len(seen) == len(params) * 4  # two moments, the master and the count


def test_a_file_of_another_model_is_refused_as_pytorch_does():
    params = parameters(arrays_for(op.AdamW))
    optimizer = make(onepass.torch.AdamW, params)
    run(optimizer, params, 2)
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(onepass.torch.AdamW, params[:2]).load_state_dict(optimizer.state_dict())
