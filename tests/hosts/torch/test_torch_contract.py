"""What PyTorch's optimizers promise, and their users rely on, holds for onepass.torch."""

import copy
import gc
import inspect
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch_cases import HOSTED, arrays_for, as_numpy, make, parameters, run, set_gradients

import onepass as op
import onepass.torch
from helpers import assert_same_bits

EVERY = pytest.mark.parametrize("name", onepass.torch.__all__)
EVERY_HOSTED = pytest.mark.parametrize("name", HOSTED)


def ours(name):
    return getattr(onepass.torch, name)


def pair(name, **settings):
    """PyTorch's optimizer and ours, over the same values."""
    arrays = arrays_for(getattr(op, name))
    made = []
    for cls in (HOSTED[name], ours(name)):
        params = parameters(arrays)
        made.append((make(cls, params, **settings), params))
    return made


def assert_close(theirs, mine):
    for a, b in zip(theirs, mine, strict=True):
        np.testing.assert_allclose(as_numpy(b), as_numpy(a), rtol=2e-5, atol=2e-6)


def test_every_class_of_pytorch_that_we_have_is_behind_ours():
    assert len(HOSTED) == 13
    for name in onepass.torch.__all__:
        host = HOSTED.get(name, torch.optim.Optimizer)
        assert issubclass(ours(name), host)
        assert ours(name).__name__ == name


@EVERY_HOSTED
def test_signature_begins_with_pytorchs(name):
    theirs = inspect.signature(HOSTED[name]).parameters
    mine = inspect.signature(ours(name)).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    assert all(mine[n].default == each.default for n, each in theirs.items())
    assert {"max_grad_norm", "ema_decay", "rounding"} <= set(mine)


@EVERY_HOSTED
def test_errors_of_the_constructor_are_pytorchs(name):
    for settings in ({"lr": -1.0}, {"weight_decay": -1.0}):
        if next(iter(settings)) not in inspect.signature(HOSTED[name]).parameters:
            continue
        (_, params), _ = pair(name)
        with pytest.raises(ValueError) as theirs:  # noqa: PT011
            HOSTED[name](params, **settings)
        with pytest.raises(ValueError) as mine:  # noqa: PT011
            ours(name)(params, **settings)
        assert str(mine.value) == str(theirs.value)


@EVERY
def test_settings_of_ours_are_checked(name):
    params = parameters(arrays_for(getattr(op, name)))
    for setting, value, error in (
        ("max_grad_norm", -1.0, ValueError),
        ("ema_decay", 1.5, ValueError),
        ("nonfinite", "ignore", ValueError),
        ("num_threads", 0, ValueError),
        ("clear_grads", 1, TypeError),
    ):
        with pytest.raises(error, match=f"^{setting}: expected .*, got "):
            ours(name)(params, **{setting: value})
    with pytest.raises(TypeError):
        ours(name)(params, learning_rate=1.0)
    with pytest.raises(TypeError, match=r"lr: expected|not supported"):
        optimizer = ours(name)(params, lr=lambda _: 0.1)
        run(optimizer, params, 1)


@EVERY
def test_closure(name):
    params = parameters(arrays_for(getattr(op, name)))
    optimizer = make(ours(name), params)

    def loss():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        found = sum((param**2).sum() for param in params)
        found.backward()
        return found

    with torch.no_grad():
        first, second = optimizer.step(loss), optimizer.step(closure=loss)
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert optimizer.step() is None


def test_hooks_run_once_each_and_in_order():
    (param,) = parameters([np.ones(3, np.float32)])
    seen = []
    optimizer = onepass.torch.AdamW([param])
    handles = [
        optimizer.register_step_pre_hook(
            lambda o, a, k: seen.append(("pre", o is optimizer, a[1:], k))
        ),
        optimizer.register_step_post_hook(lambda o, *_: seen.append(("post", o.last_step.step))),
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    param.grad = torch.ones(3)
    optimizer.step()
    assert seen == ["global pre", ("pre", True, (), {}), ("post", 1), "global post"]
    seen.clear()
    param.grad = torch.ones(3).to_sparse()  # PyTorch's own step, which must not call them again
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert seen == ["global pre", ("pre", True, (), {})]
    for handle in handles:
        handle.remove()
    seen.clear()
    param.grad = torch.ones(3)
    optimizer.step()
    assert not seen


def test_hooks_of_a_subclass_run_once():
    class Own(onepass.torch.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    (param,) = parameters([np.ones(3, np.float32)])
    optimizer = Own([param])
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    for _ in range(2):
        param.grad = torch.ones(3)
        optimizer.step()
    assert seen == [1, 1]
    assert optimizer.last_step.step == 2


def test_what_a_scaler_has_left_does_not_stay():
    (param,) = parameters([np.zeros(2, np.float32)])
    optimizer = onepass.torch.SGD([param], lr=1.0, clear_grads=True, max_grad_norm=100.0)
    param.grad = torch.full((2,), 8.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    assert param.tolist() == [-2.0, -2.0]
    param.grad = torch.full((2,), 8.0)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert param.tolist() == [-2.0, -2.0]
    assert param.grad.tolist() == [0.0, 0.0]
    assert optimizer.last_step == (1, 1.0, None, False, True, None, "nonfinite", None)
    del optimizer.grad_scale, optimizer.found_inf
    param.grad = torch.full((2,), 8.0)
    optimizer.step()
    assert param.tolist() == [-10.0, -10.0]


def test_the_profiler_sees_a_step():
    (param,) = parameters([np.ones(3, np.float32)])
    param.grad = torch.ones(3)
    optimizer = onepass.torch.AdamW([param])
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.function_events}


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_schedulers(name, schedule, as_tensor):
    """They write rates and betas into the groups, and replace `step` on the instance."""
    settings = {"momentum": 0.9} if name == "SGD" else {}
    runs = pair(name, foreach=False, **settings)
    for optimizer, params in runs:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05) if as_tensor else 0.05
        scheduler = schedule(optimizer)
        for step in range(12):
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
    assert_close(runs[0][1], runs[1][1])
    assert runs[0][0].param_groups[0]["lr"] == runs[1][0].param_groups[0]["lr"]
    assert not runs[1][0].fallbacks


def test_a_rate_that_is_a_tensor_is_read_in_every_step():
    (param,) = parameters([np.zeros(3, np.float32)])
    rate = torch.tensor(1.0)
    optimizer = onepass.torch.SGD([param], lr=rate)
    for value in (1.0, 0.5, 0.25):
        rate.fill_(value)
        param.grad = torch.ones(3)
        before = param.detach().clone()
        optimizer.step()
        assert bool((before - param == value).all())
        assert optimizer.last_step.lr == value


@EVERY
def test_groups_that_are_added(name):
    arrays = arrays_for(getattr(op, name))
    params = parameters(arrays)
    optimizer = make(ours(name), params[:1])
    run(optimizer, params[:1], 2)
    optimizer.add_param_group({"params": params[1:], "max_grad_value": 0.5})
    assert optimizer.param_groups[1]["ema_decay"] is None
    run(optimizer, params, 2, first=2)
    assert int(optimizer.state[params[0]]["step"]) == 4
    assert int(optimizer.state[params[1]]["step"]) == 2
    assert [group["max_grad_value"] for group in optimizer.param_groups] == [None, 0.5]


def test_named_parameters_and_groups_with_settings_of_ours():
    model = torch.nn.Linear(3, 2)
    optimizer = onepass.torch.AdamW(model.named_parameters(), ema_decay=0.5)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    groups = [
        {"params": [model.weight], "max_grad_value": 0.25},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    optimizer = onepass.torch.SGD(groups, lr=1.0)
    before = model.weight.detach().clone()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    np.testing.assert_allclose((before - model.weight).detach(), 0.25, rtol=1e-6)
    with pytest.raises(ValueError, match="^max_grad_value: expected"):
        onepass.torch.SGD([{"params": [model.weight], "max_grad_value": -1.0}])


def replace_list(optimizer):
    group = optimizer.param_groups[0]
    group["params"] = list(group["params"])


def replace_data(optimizer):
    for param in optimizer.param_groups[0]["params"]:
        param.data = param.data.clone()


def tensors_of_state(optimizer):
    for entry in optimizer.state.values():
        for key, kept in entry.items():
            if isinstance(kept, torch.Tensor):
                yield entry, key, kept


def replace_state(optimizer):
    for entry, key, kept in list(tensors_of_state(optimizer)):
        entry[key] = kept.clone()


def replace_data_of_state(optimizer):
    for *_, kept in tensors_of_state(optimizer):
        if kept.ndim:
            kept.data = kept.data.clone()


def replace_entries(optimizer):
    for param in list(optimizer.state):
        optimizer.state[param] = dict(optimizer.state[param])


def replace_groups(optimizer):
    optimizer.param_groups = list(map(dict, optimizer.param_groups))


@EVERY
def test_what_others_replace_is_seen(name):
    """Lists of parameters, `.data`, state and its tensors, between steps."""
    cls = getattr(op, name)
    arrays = arrays_for(cls)
    expected = parameters(arrays)
    run(make(ours(name), expected), expected, 6)
    params = parameters(arrays)
    optimizer = make(ours(name), params)
    replacements = (
        *(replace_list, replace_data, replace_state),
        *(replace_data_of_state, replace_entries, replace_groups),
    )
    for step, replace in enumerate(replacements):
        replace(optimizer)
        run(optimizer, params, 1, first=step)
    for a, b in zip(expected, params, strict=True):
        assert_same_bits(as_numpy(b), as_numpy(a))


@EVERY
def test_parameters_without_gradients_are_left_alone(name):
    params = parameters(arrays_for(getattr(op, name)))
    optimizer = make(ours(name), params)
    for step in range(4):
        set_gradients(params, step)
        params[step % 2].grad = None
        before = params[step % 2].detach().clone()
        optimizer.step()
        assert_same_bits(as_numpy(params[step % 2]), as_numpy(before))
    assert [int(optimizer.state[p]["step"]) for p in params[:2]] == [2, 2]
    for param in params:
        param.grad = None
    optimizer.step()  # nothing to do


@EVERY
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_continue_the_run(name, how):
    cls = getattr(op, name)
    params = parameters(arrays_for(cls))
    can_average = cls.own_average is None or name == "ASGD"
    optimizer = make(
        ours(name), params, max_grad_norm=5.0, **({"ema_decay": 0.9} if can_average else {})
    )
    run(optimizer, params, 3)
    copied = how(optimizer)
    others = copied.param_groups[0]["params"]
    assert copied._options == optimizer._options
    run(optimizer, params, 3, first=3)
    run(copied, others, 3, first=3)
    for a, b in zip(params, others, strict=True):
        assert a is not b
        assert_same_bits(as_numpy(b), as_numpy(a))


def test_steps_of_a_copy_do_not_count_for_the_original():
    params = parameters(arrays_for(op.AdamW))
    optimizer = onepass.torch.AdamW(params)
    run(optimizer, params, 2)
    copied = copy.deepcopy(optimizer)
    run(copied, copied.param_groups[0]["params"], 1)
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [2] * len(params)
    assert len({entry["step"].data_ptr() for entry in optimizer.state.values()}) == len(params)


def test_a_step_bumps_versions():
    """Else a backward pass through a graph that saved the weights would be silently wrong."""
    (param,) = parameters([np.ones(3, np.float32)])
    optimizer = onepass.torch.SGD([param], lr=0.1, clear_grads=True)
    loss = (param**2).sum()
    loss.backward(retain_graph=True)
    versions = param._version, param.grad._version
    optimizer.step()
    assert param._version > versions[0]
    assert param.grad._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_gradient_is_kept_alive():
    (param,) = parameters([np.ones(3, np.float32)])
    optimizer = onepass.torch.AdamW([param])
    for _ in range(3):
        param.grad = torch.ones(3)
        seen = weakref.ref(param.grad)
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert seen() is None


def test_the_loss_scaler():
    """With an overflow, that it sees, on the CPU: nothing moves, and the scale falls."""
    runs = []
    for cls, settings in (
        (torch.optim.AdamW, {}),
        (onepass.torch.AdamW, {}),
        (onepass.torch.AdamW, {"fused": True}),
    ):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = cls(model.parameters(), lr=0.1, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(6):
            optimizer.zero_grad()
            loss = (model(torch.ones(2, 4)) ** 2).sum() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 512.0
        assert {int(entry["step"]) for entry in optimizer.state.values()} == {5}
        runs.append(list(model.parameters()))
    assert_close(runs[0], runs[1])
    assert_close(runs[0], runs[2])


def test_averaged():
    params = parameters([np.array([1.0, 2.0], np.float32)])
    optimizer = onepass.torch.SGD(params, lr=1.0, ema_decay=0.5)
    for _ in range(2):
        params[0].grad = torch.ones(2)
        optimizer.step()
    with optimizer.averaged():
        np.testing.assert_allclose(params[0].detach(), [-0.5, 0.5])
        with pytest.raises(RuntimeError, match="^step: expected the block of averaged"):
            optimizer.step()
        with pytest.raises(ValueError, match="no block of averaged"), optimizer.averaged():
            pass
    np.testing.assert_allclose(params[0].detach(), [-1.0, 0.0])
    with (
        pytest.raises(ValueError, match="^ema_decay: expected it"),
        onepass.torch.SGD(params).averaged(),
    ):
        pass


@EVERY
def test_an_average_may_begin_late_and_end(name):
    cls = getattr(op, name)
    if cls.own_average is not None and name != "ASGD":
        pytest.skip("it averages weights itself, and refuses another average")
    params = parameters(arrays_for(cls))
    arrays = [as_numpy(param).copy() for param in params]
    optimizer, twin = make(ours(name), params), cls(arrays, lr=0.01)
    twin_settings, settings = twin.param_groups[0], optimizer.param_groups[0]
    for name_of_setting in ("weight_decay", "momentum"):
        if name_of_setting in settings:
            twin_settings[name_of_setting] = settings[name_of_setting]
    for step, decay in enumerate([None, None, 0.5, 0.5, 0.9, None, 0.5, 0.5]):
        for each in (settings, twin_settings):
            each["ema_decay"] = decay
        set_gradients(params, step)
        twin.step([as_numpy(param.grad).copy() for param in params])
        optimizer.step()
    with optimizer.averaged(), twin.averaged():
        for param, array in zip(params, arrays, strict=True):
            assert_same_bits(as_numpy(param), array)


def test_lr_of_0_and_huge_counts():
    (param,) = parameters([np.ones(3, np.float32)])
    optimizer = onepass.torch.AdamW([param], lr=0.0)
    param.grad = torch.ones(3)
    optimizer.step()
    assert bool((param == 1).all())
    optimizer.state[param]["step"].fill_(2.0**24)  # where float32 counts no further
    optimizer.step()
    assert optimizer.state[param]["step"] == 2.0**24
