"""The second oracle: PyTorch's classes of the same names, and their checkpoints."""

import inspect

import numpy as np
import pytest

import onepass as op
from helpers import CASES, case_id, entry_names, kept_names, state_names

torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
pytestmark = pytest.mark.usefixtures("torch_in_float64")


def torch_class(cls):
    return getattr(torch.optim, cls.__name__, None)


def torch_has(cls, settings):
    theirs = torch_class(cls)
    return theirs is not None and all(
        name in inspect.signature(theirs.__init__).parameters for name in settings
    )


# Every case whose options PyTorch has too.
SHARED = [pytest.param(case, id=case_id(case)) for case in CASES if torch_has(*case)]
SCHEDULED = [param for param in SHARED if param.values[0][0].checks["lr"].schedulable]


def as_numpy(state_dict):
    """PyTorch's state dictionary with its tensors as arrays."""
    state = {
        key: {name: v.numpy() if torch.is_tensor(v) else v for name, v in entry.items()}
        for key, entry in state_dict["state"].items()
    }
    return {"state": state, "param_groups": state_dict["param_groups"]}


def twins(cls, settings, dtype, rng, lr=0.01):
    start = [rng.normal(size=shape).astype(dtype) for shape in [(7, 5), (11,), (), (2, 3, 4)]]
    params = [np.array(p) for p in start]
    tensors = [torch.nn.Parameter(torch.from_numpy(np.array(p))) for p in start]
    theirs = torch_class(cls)(tensors, lr, foreach=False, **settings)
    return params, tensors, cls(params, lr, **settings), theirs


def step_both(params, tensors, opt, torch_opt, rng):
    grads = [np.asarray(rng.normal(size=p.shape)).astype(p.dtype) for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    opt.step(grads)
    torch_opt.step()


def assert_same_path(params, tensors, opt, torch_opt, rng, steps):
    for step in range(1, steps + 1):
        step_both(params, tensors, opt, torch_opt, rng)
        for param, tensor in zip(params, tensors, strict=True):
            assert_alike(param, tensor.detach().numpy(), step)


def assert_alike(actual, expected, steps):
    # Each step rounds a few times in either library; the values here are of the order of 1.
    eps = np.finfo(actual.dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=8 * eps * steps, atol=8 * eps * steps)


@pytest.mark.parametrize("settings", SHARED)
def test_same_path(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    assert_same_path(*both, rng, steps=100)
    params, _, opt, torch_opt = both
    ours, theirs = opt.state_dict()["state"], as_numpy(torch_opt.state_dict())["state"]
    for key, entry in ours.items():
        assert list(entry) == entry_names(cls, options, params[key].shape)
        assert theirs.get(key, {}).keys() <= entry.keys()  # their SGD may have none
        for name in (*cls.saved_scalars, *kept_names(cls, options, params[key].shape)):
            assert_alike(np.asarray(entry[name]), theirs[key][name], 100)


@pytest.mark.parametrize("settings", SHARED)
def test_their_checkpoint_continues_here(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    _, tensors, _, torch_opt = both
    params = [t.detach().numpy().copy() for t in tensors]
    opt = cls(params, lr=0.5)  # the checkpoint's settings take over
    opt.load_state_dict(as_numpy(torch_opt.state_dict()))
    assert opt.param_groups[0]["lr"] == 0.01
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


@pytest.mark.parametrize("settings", SCHEDULED)
def test_a_schedule_continues_where_their_run_stopped(settings, rng):
    """Their SGD keeps no count of its steps; with momentum its buffer tells of one at least."""
    cls, options = settings
    both = twins(cls, options, np.float64, rng)
    for _ in range(5):
        step_both(*both, rng)
    params, _, _, torch_opt = both
    asked = []
    opt = cls(params, lr=lambda step: asked.append(step) or 0.01, **options)
    saved = as_numpy(torch_opt.state_dict())
    opt.load_state_dict(saved)
    opt.step([np.zeros_like(p) for p in params])
    entry = saved["state"].get(0, {})
    assert asked == [5 if "step" in entry else int(bool(state_names(cls, options)))]


@pytest.mark.parametrize("settings", SHARED)
def test_our_checkpoint_continues_there(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    params, _, opt, _ = both
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    torch_opt = torch_class(cls)(tensors, **options)
    saved = opt.state_dict()
    state = {
        key: {n: torch.as_tensor(v if n != "step" else float(v)) for n, v in entry.items()}
        for key, entry in saved["state"].items()
    }
    groups = [{**torch_opt.param_groups[0], **saved["param_groups"][0]}]
    torch_opt.load_state_dict({"state": state, "param_groups": groups})
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


@pytest.mark.parametrize("optimizer", [*filter(torch_class, op.optim.registry.values())])
def test_the_defaults_are_theirs(optimizer):
    theirs = inspect.signature(torch_class(optimizer).__init__).parameters
    for name, value in optimizer.defaults.items():
        if name in theirs:
            assert value == theirs[name].default, name


@pytest.mark.parametrize("cls", [op.Adam, op.AdamW])
def test_their_adamw_continues_in_either_class(cls, dtype, rng):
    both = twins(op.AdamW, {"weight_decay": 0.3}, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    _, tensors, _, torch_opt = both
    params = [t.detach().numpy().copy() for t in tensors]
    opt = cls(params)
    opt.load_state_dict(as_numpy(torch_opt.state_dict()))
    assert opt.param_groups[0]["decoupled_weight_decay"] is True
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


def test_their_adam_is_not_taken_for_adamw(rng):
    """Its decay is coupled; in PyTorch the same call turns it into the decoupled one."""
    tensor = torch.nn.Parameter(torch.ones(3))
    tensor.grad = torch.ones(3)
    torch_opt = torch.optim.Adam([tensor])
    torch_opt.step()
    with pytest.raises(ValueError, match="^decoupled_weight_decay: expected True"):
        op.AdamW([np.ones(3, np.float32)]).load_state_dict(as_numpy(torch_opt.state_dict()))


def test_groups_hold_what_theirs_hold():
    """Which decay it is stands in the groups of both classes, as in PyTorch's."""
    for name in ("Adam", "AdamW"):
        (theirs,) = getattr(torch.optim, name)([torch.ones(3)]).param_groups
        (ours,) = getattr(op, name)([np.ones(3)]).param_groups
        assert ours["decoupled_weight_decay"] is theirs["decoupled_weight_decay"]
