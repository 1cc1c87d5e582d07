"""What could go wrong: foreign shapes, other orders of axes, threads, interrupts, wrong values."""

import threading

import numpy as np
import pytest
import torch
from torch_cases import arrays_for, as_numpy, make, parameters, run, set_gradients

import onepass as op
import onepass.torch
from helpers import assert_same_bits

KEPT = {
    "moments": {},
    "average": {"ema_decay": 0.5},
    "slow weights": {"lookahead_every": 3},
    "codes": {"state_format": "q8"},
}


def one(values, **settings):
    param = torch.nn.Parameter(torch.as_tensor(values))
    return param, onepass.torch.AdamW([param], **{"lr": 0.1, **settings})


@pytest.mark.parametrize("settings", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("n", [4, 8, 5000])
def test_state_of_another_shape_is_refused(settings, n):
    """PyTorch does not look at shapes where it loads; the kernels would write beyond the end."""
    param, optimizer = one(torch.zeros(n, 2), **settings)
    param.grad = torch.ones(n, 2)
    optimizer.step()
    other, target = one(torch.zeros(5, 3), **settings)
    target.load_state_dict(optimizer.state_dict())
    other.grad = torch.ones(5, 3)
    with pytest.raises((ValueError, RuntimeError), match="shape|size"):
        target.step()
    assert bool((other == 0).all())


def test_state_of_another_shape_in_a_class_that_pytorch_lacks():
    param = torch.nn.Parameter(torch.zeros(4))
    optimizer = onepass.torch.Lion([param], lr=0.1)
    param.grad = torch.ones(4)
    optimizer.step()
    other = torch.nn.Parameter(torch.zeros(5))
    target = onepass.torch.Lion([other], lr=0.1)
    target.load_state_dict(optimizer.state_dict())
    other.grad = torch.ones(5)
    with pytest.raises(
        ValueError, match=r"^params\[0\]: exp_avg: expected shape \(5,\), got \(4,\)$"
    ):
        target.step()


def test_a_gradient_of_another_shape_is_refused():
    param, optimizer = one(torch.zeros(4), clear_grads=True)
    memory = torch.arange(1.0, 101.0)
    param.grad = memory[:4]
    param.data = torch.zeros(20)
    with pytest.raises(ValueError, match="got a gradient of shape"):
        optimizer.step()
    assert_same_bits(as_numpy(memory), np.arange(1, 101, dtype=np.float32))


@pytest.mark.parametrize("settings", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("how", ["file", "layout"])
def test_everything_kept_follows_another_order_of_axes(settings, how):
    """A model may become channels_last between steps, or between a file and what loads it."""
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.standard_normal((32, 16, 8, 8)).astype(np.float32))
    plain, optimizer = one(start.clone(), **settings)
    other, target = one(start.clone(), **settings)
    for step in range(8):
        if step == 4 and how == "layout":
            other.data = other.data.to(memory_format=torch.channels_last)
        if step == 4 and how == "file":
            state = target.state_dict()
            values = other.detach().to(memory_format=torch.channels_last)
            other, target = one(values, **settings)
            target.load_state_dict(state)
        for param, each in ((plain, optimizer), (other, target)):
            set_gradients([param], step)
            each.step()
    # Codes of 8 bits are rounded at random, by other bits for another place in memory.
    bound = 0.1 if "state_format" in settings else 0.0
    assert (plain - other).abs().max() <= bound
    if "ema_decay" in settings:
        with optimizer.averaged(), target.averaged():
            assert bool((plain == other).all())


@pytest.mark.parametrize("how", ["file", "layout"])
def test_a_master_follows_another_order_of_axes(how):
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.standard_normal((4, 3, 5, 2))).to(torch.bfloat16)
    plain, optimizer = one(start.clone(), rounding="master")
    other, target = one(start.clone(), rounding="master")
    for step in range(8):
        if step == 4 and how == "layout":
            other.data = other.data.to(memory_format=torch.channels_last)
        if step == 4 and how == "file":
            state = target.state_dict()
            values = other.detach().to(memory_format=torch.channels_last)
            other, target = one(values, rounding="master")
            target.load_state_dict(state)
        for param, each in ((plain, optimizer), (other, target)):
            set_gradients([param], step)
            each.step()
    assert bool((plain == other).all())
    kept = [each.state[param]["master"] for param, each in ((plain, optimizer), (other, target))]
    assert bool((kept[0] == kept[1]).all())


OWN = [name for name in onepass.torch.__all__ if getattr(op, name).own_average is not None]


@pytest.mark.parametrize("name", OWN)
def test_averages_that_a_rule_keeps_itself(name):
    cls = getattr(op, name)
    params = parameters(arrays_for(cls))
    arrays = [as_numpy(param).copy() for param in params]
    settings = {"lr": 0.01, "t0": 2.0} if name == "ASGD" else {"lr": 0.01}
    optimizer, twin = getattr(onepass.torch, name)(params, **settings), cls(arrays, **settings)
    for step in range(5):
        set_gradients(params, step)
        twin.step([param.grad.numpy().copy() for param in params])
        optimizer.step()
    before = [as_numpy(param).copy() for param in params]
    with optimizer.averaged(), twin.averaged():
        for param, array in zip(params, arrays, strict=True):
            assert_same_bits(as_numpy(param), array)
    for param, array in zip(params, before, strict=True):
        assert_same_bits(as_numpy(param), array)


def test_two_threads_that_step_at_once():
    """Each step happens whole; which comes first, nobody knows."""
    param, optimizer = one(torch.zeros(1_000_000))
    param.grad = torch.ones(1_000_000)

    def steps():
        for _ in range(10):
            param.grad = torch.ones(1_000_000)
            optimizer.step()

    threads = [threading.Thread(target=steps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(optimizer.state[param]["step"]) == 20
    assert bool((param == param[0]).all())


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Prodigy"])
def test_an_interrupt_that_comes_with_the_end_of_a_step(name, monkeypatch):
    """The weights have moved: the step counts, and what the rule remembers goes with it."""
    from onepass import _capi

    cls = getattr(onepass.torch, name)
    params, expected = (parameters(arrays_for(getattr(op, name))) for _ in range(2))
    optimizer, twin = make(cls, params), make(cls, expected)
    run(optimizer, params, 2)
    run(twin, expected, 4)
    take = _capi.Step.run

    def interrupted(self):
        take(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_capi.Step, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(optimizer, params, 1, first=2)
    run(optimizer, params, 1, first=3)
    for a, b in zip(params, expected, strict=True):
        assert_same_bits(as_numpy(a), as_numpy(b))


def test_options_are_attributes_that_are_checked():
    param, optimizer = one(torch.zeros(2), max_grad_norm=1.0)
    param.grad = torch.full((2,), 30.0)
    optimizer.step()
    assert optimizer.last_step.clipped
    optimizer.max_grad_norm = 1000.0
    optimizer.step()
    assert not optimizer.last_step.clipped
    assert optimizer.max_grad_norm == 1000.0
    with pytest.raises(ValueError, match="^max_grad_norm: expected"):
        optimizer.max_grad_norm = -1.0
    optimizer.nonfinite = "skip"
    param.grad = torch.full((2,), float("nan"))
    optimizer.step()
    assert optimizer.last_step.skipped


def test_settings_may_be_tensors_lists_and_arrays():
    for betas in ([0.9, 0.99], np.array([0.9, 0.99]), (torch.tensor(0.9), torch.tensor(0.99))):
        param = torch.nn.Parameter(torch.zeros(3))
        optimizer = onepass.torch.Lion([param], lr=torch.tensor(1.0), betas=betas)
        for _ in range(2):
            param.grad = torch.ones(3)
            optimizer.step()
        assert bool((param == -2).all())
    assert (
        onepass.torch.AdamW([param], ema_decay=torch.tensor(0.9)).defaults["ema_decay"] is not None
    )


def test_a_list_that_is_changed_in_place():
    param = torch.nn.Parameter(torch.zeros(1))
    betas = [0.9, 0.99]
    optimizer = onepass.torch.Lion([{"params": [param], "betas": betas}], lr=1.0)
    param.grad = torch.ones(1)
    optimizer.step()
    betas[0] = 0.0  # the sign is now that of the gradient alone
    param.grad = -torch.full((1,), 1e-3)
    optimizer.step()
    assert param.item() == 0.0


def test_settings_that_change_between_steps():
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 1.0}, {"params": [params[1]], "lr": 2.0}]
    optimizer = onepass.torch.SGD(groups, lr=0.0)
    first, second = optimizer.param_groups

    def weights():
        for param in params:
            param.grad = torch.ones(1)
        optimizer.step()
        return [param.item() for param in params]

    assert weights() == [-1, -2]
    first["lr"], second["lr"] = 0.5, 0.25
    assert weights() == [-1.5, -2.25]
    first["lr"], second["lr"] = second["lr"], first["lr"]
    assert weights() == [-1.75, -2.75]
    second["name"] = "last"
    first["maximize"] = True
    assert weights() == [-1.5, -3.25]
    del second["name"]
    second["lr"] = torch.tensor(1.0)
    assert weights() == [-1.25, -4.25]
    second["lr"].fill_(2.0)
    assert weights() == [-1, -6.25]
    first["params"].append(second["params"].pop())
    assert weights() == [-0.75, -6]
    assert not optimizer.fallbacks


def test_a_mode_of_pytorchs_that_is_set_between_steps():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = onepass.torch.SGD([param], lr=1.0)
    for is_on in (False, True, False):
        optimizer.param_groups[0]["differentiable"] = is_on
        param.grad = torch.ones(1)
        with torch.no_grad():
            optimizer.step()
    assert param.item() == -3.0
    assert dict(optimizer.fallbacks) == {"differentiable": 1}


def test_settings_that_pytorch_takes_together():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = onepass.torch.SGD([param], lr=0.1, momentum=0.9, nesterov=True)
    param.grad = torch.ones(1)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0
    optimizer.step()
    assert dict(optimizer.fallbacks) == {"settings": 1}


def test_groups_of_classes_that_pytorch_lacks_are_checked_when_they_are_added():
    param = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="^lr: expected"):
        onepass.torch.Lion([{"params": [param], "lr": -1.0}])


def test_what_a_failed_step_reports():
    param, optimizer = one(torch.zeros(2), nonfinite="raise")
    param.grad = torch.ones(2)
    optimizer.step()
    param.grad = torch.full((2,), float("inf"))
    with pytest.raises(ValueError, match="finite"):
        optimizer.step()
    assert optimizer.last_step is None


def test_the_gradient_that_is_wrong_is_named():
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = onepass.torch.SGD(params, lr=1.0, max_grad_norm=1.0)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(3)
        optimizer.step()
    pairs = torch.view_as_complex(torch.ones(3, 2))
    params[1].grad = pairs.conj().imag
    with pytest.raises(ValueError, match=r"^params\[1\]: .* lazily negated"):
        optimizer.step()


def test_errors_of_settings_are_ours():
    param, optimizer = one(torch.zeros(3, dtype=torch.float64), state_format="q8")
    param.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="^state_format: expected None beside float64 parameters"):
        optimizer.step()
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 1.0}, {"params": [params[1]], "lr": 0.5}]
    optimizer = onepass.torch.Prodigy(groups)
    for param in params:
        param.grad = torch.ones(2)
    with pytest.raises(ValueError, match="^Prodigy: expected the same settings in all groups"):
        optimizer.step()


def test_no_groups():
    param, optimizer = one(torch.zeros(3))
    optimizer.param_groups = []
    optimizer.step()
    assert bool((param == 0).all())
