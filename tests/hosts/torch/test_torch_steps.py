"""The steps of onepass.torch: the bits of our own classes, and PyTorch's numbers."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch_cases import (
    HOSTED,
    arrays_for,
    as_numpy,
    make,
    parameters,
    run,
    set_gradients,
    shapes_for,
)

import onepass as op
import onepass.torch
from helpers import CASES, assert_same_bits, case_id

STAGES = (
    {"max_grad_norm": 3.0, "ema_decay": 0.9, "ema_warmup": True},
    {"max_grad_norm": math.inf, "max_grad_value": 0.5, "swa_start": 3},
    {"max_grad_norm_each": 1.0, "lookahead_every": 2, "ema_decay": 0.9},
    {"state_format": "q8", "max_grad_norm": 1.0},
    {"state_format": "bf16", "seed": 3, "nonfinite": "skip"},
)
SMALL = (
    {"rounding": "master"},
    {"rounding": "stochastic", "seed": 5},
    {"rounding": "nearest", "state_format": "q8"},
    {"rounding": "master", "state_format": "bf16", "ema_decay": 0.9, "max_grad_norm": 1.0},
)


def accepts(cls, settings):
    own = {n: v for n, v in settings.items() if n in cls.group_checks}
    values = {**cls.defaults, **op.optim._settings.GROUP_DEFAULTS, **own}
    try:
        cls._check_together(values)
    except ValueError:
        return False
    return True


def twins(cls, settings, dtype=np.float32, tensor_dtype=None):
    """An optimizer of PyTorch's kind, and ours of NumPy arrays, over the same values."""
    params = parameters(arrays_for(cls, dtype), tensor_dtype)
    arrays = [as_numpy(param).copy() for param in params]
    options = {"lr": 0.01, **settings}
    return (
        getattr(onepass.torch, cls.__name__)(params, **options),
        params,
        cls(arrays, **options),
        arrays,
    )


def assert_same_run(cls, settings, dtype=np.float32, tensor_dtype=None, steps=6):
    optimizer, params, twin, arrays = twins(cls, settings, dtype, tensor_dtype)
    for step in range(steps):
        set_gradients(params, step)
        info = twin.step([as_numpy(param.grad).copy() for param in params])
        optimizer.step()
        assert optimizer.last_step == info
    for param, array in zip(params, arrays, strict=True):
        assert_same_bits(as_numpy(param), array)
    state = twin.state_dict()["state"]
    for index, param in enumerate(params):
        for name, kept in state.get(index, {}).items():
            if isinstance(kept, np.ndarray) and name != "master":
                assert_same_bits(as_numpy(optimizer.state[param][name]), kept)
    assert not optimizer.fallbacks
    return optimizer, params, twin, arrays


@pytest.mark.parametrize(("cls", "settings"), CASES, ids=map(case_id, CASES))
def test_bits_are_those_of_our_classes(cls, settings):
    assert_same_run(cls, settings)


@pytest.mark.parametrize("name", onepass.torch.__all__)
def test_bits_in_float64(name):
    assert_same_run(getattr(op, name), {}, np.float64)


@pytest.mark.parametrize("stages", STAGES, ids=str)
@pytest.mark.parametrize("name", onepass.torch.__all__)
def test_stages(name, stages):
    cls = getattr(op, name)
    if not accepts(cls, stages):
        with pytest.raises(ValueError, match="expected"):
            optimizer, params, *_ = twins(cls, {})
            run(getattr(onepass.torch, name)(params, **stages), params, 1)
        return
    optimizer, params, twin, arrays = assert_same_run(cls, stages)
    if "ema_decay" in stages or "swa_start" in stages:
        with optimizer.averaged(), twin.averaged():
            for param, array in zip(params, arrays, strict=True):
                assert_same_bits(as_numpy(param), array)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", SMALL, ids=str)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "NAdam", "LAMB"])
def test_parameters_of_16_bits(name, settings, dtype):
    assert_same_run(getattr(op, name), settings, tensor_dtype=dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_for_any_number_of_threads(threads):
    rng = np.random.default_rng(3)
    start = [rng.standard_normal(n).astype(np.float32) for n in (300_000, 17)]
    params = parameters(start)
    arrays = [array.copy() for array in start]
    twin = op.AdamW(arrays, lr=0.01, max_grad_norm=1.0)
    optimizer = onepass.torch.AdamW(
        params, lr=0.01, max_grad_norm=1.0, weight_decay=0.01, num_threads=threads
    )
    for step in range(3):
        set_gradients(params, step)
        twin.step([param.grad.numpy().copy() for param in params])
        optimizer.step()
    for param, array in zip(params, arrays, strict=True):
        assert_same_bits(as_numpy(param), array)


@pytest.mark.parametrize("name", HOSTED)
@pytest.mark.usefixtures("torch_in_float64")
def test_pytorchs_numbers(name):
    """In float64, where a difference is one of meaning: it stays below 1e-12 of a weight."""
    arrays = arrays_for(getattr(op, name), np.float64)
    theirs, ours = parameters(arrays), parameters(arrays)
    for cls, params in ((HOSTED[name], theirs), (getattr(onepass.torch, name), ours)):
        run(
            make(cls, params, weight_decay=0.1) if name != "Rprop" else make(cls, params),
            params,
            30,
        )
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(as_numpy(b), as_numpy(a), rtol=1e-12, atol=1e-12)


def permuted(array):
    return torch.from_numpy(array.copy()).permute(*range(array.ndim)[::-1])


@pytest.mark.parametrize("name", HOSTED)
@pytest.mark.usefixtures("torch_in_float64")
def test_any_order_of_axes(name):
    """channels_last and transposed parameters, and gradients that have another order."""
    rng = np.random.default_rng(4)
    cls, results = getattr(op, name), []
    shape = (6, 5) if name == "Muon" else (2, 3, 4, 5)
    start = rng.standard_normal(shape)
    grads = rng.standard_normal((5, *shape))
    as_they_are = torch.from_numpy(start.copy())
    turned = (
        as_they_are.to(memory_format=torch.channels_last)
        if len(shape) == 4
        else as_they_are.t().contiguous().t()
    )
    for data, host in (
        (as_they_are.clone(), True),
        (turned.clone(), False),
        (turned.clone(), True),
    ):
        param = torch.nn.Parameter(data)
        optimizer = make(HOSTED[name] if host else getattr(onepass.torch, name), [param])
        for k, grad in enumerate(grads):
            param.grad = torch.from_numpy(grad.copy())
            if k % 2:
                param.grad = torch.empty_like(param).copy_(param.grad)
            optimizer.step()
        assert param.stride() == data.stride()
        results.append(as_numpy(param))
        if not host and not cls.row.factored:
            assert not optimizer.fallbacks
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(results[1], results[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_another_dtype(dtype, other):
    """As NumPy's arrays are taken: widened, or rounded to the nearest float32."""
    start = np.ones(100, dtype)
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    param.grad_dtype = None  # any
    twin = op.AdamW(array := start.copy(), lr=0.01)
    optimizer = onepass.torch.AdamW([param], lr=0.01)
    grad = torch.randn(100, dtype=torch.float64).to(other)
    param.grad = grad.clone()
    optimizer.step()
    twin.step(as_numpy(grad))
    assert_same_bits(as_numpy(param), array)
    assert not optimizer.fallbacks


def test_clear_grads_zeroes_also_where_the_order_differs():
    params = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(4, 3).t())]
    optimizer = onepass.torch.AdamW(params, clear_grads=True)
    for param in params:
        param.grad = torch.ones(3, 4)
    optimizer.step()
    assert all(bool((param.grad == 0).all()) for param in params)
    assert_same_bits(as_numpy(params[0]), as_numpy(params[1]))


def test_a_norm_above_which_a_step_is_left_out():
    """Of gradients 3 and 4, beside clipping, which sees the same norm."""
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = onepass.torch.AdamW(params, skip_grad_norm=4.5, max_grad_norm=1.0)
    seen = []
    for scale in (1.0, 0.5, math.nan, 0.8):
        before = [param.detach().clone() for param in params]
        for param, grad in zip(params, (3.0, 4.0), strict=True):
            param.grad = torch.full((1,), scale * grad)
        optimizer.step()
        last = optimizer.last_step
        seen.append((last.step, last.skipped, last.skip_reason, last.clipped))
        moved = not all(bool((p == was).all()) for p, was in zip(params, before, strict=True))
        assert moved != last.skipped
        assert last.grad_norm == pytest.approx(5 * scale, nan_ok=True)
    assert seen == [
        (0, True, "grad_norm", False),
        (1, False, None, True),
        (1, True, "nonfinite", False),
        (2, False, None, True),
    ]
    assert not optimizer.fallbacks
    optimizer.skip_grad_norm = None
    params[0].grad.fill_(1e9)
    optimizer.step()
    assert optimizer.last_step.step == 3
    with pytest.raises(ValueError, match="^skip_grad_norm: expected a finite number > 0"):
        optimizer.skip_grad_norm = 0.0


def test_a_limit_alone_measures_the_norm():
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = onepass.torch.SGD([param], lr=1.0, skip_grad_norm=4.0, clear_grads=True)
    for grad, reason in ((4.0, None), (5.0, "grad_norm")):
        param.grad = torch.full((1,), grad)
        optimizer.step()
        assert (optimizer.last_step.grad_norm, optimizer.last_step.skip_reason) == (grad, reason)
        assert param.grad.item() == 0.0
    assert param.item() == -3.0


def test_a_spike_does_not_lower_the_scale_of_a_scaler():
    """To torch.amp an overflow is what is not finite."""
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = onepass.torch.SGD([param], lr=1.0, skip_grad_norm=4.0, nonfinite="skip")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for size, reason, scale in ((5.0, "grad_norm", 8.0), (math.inf, "nonfinite", 4.0)):
        scaler.scale(param.sum() * size).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        last = optimizer.last_step
        assert (last.skipped, scaler.get_scale()) == (True, scale)
        if not math.isinf(size):
            assert last.skip_reason == reason
        assert param.item() == 1.0


def test_a_gradient_that_is_not_finite():
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = onepass.torch.Adam([param], nonfinite="skip")
    param.grad = torch.tensor([1.0, math.nan, 1.0, 1.0, 1.0])
    optimizer.step()
    assert optimizer.last_step.skipped
    assert optimizer.last_step.step == 0
    assert bool((param == 1).all())
    param.grad = torch.ones(5)
    optimizer.step()
    assert (optimizer.last_step.step, optimizer.last_step.skipped) == (1, False)
    assert optimizer.state[param]["step"] == 1
    before = param.detach().clone()
    strict = onepass.torch.Adam([param], nonfinite="raise")
    param.grad = torch.full((5,), math.inf)
    with pytest.raises(ValueError, match=r"^params\[0\]: expected a gradient of finite values"):
        strict.step()
    assert bool((param == before).all())
    assert not strict.state


def test_bfloat16_is_read_as_ml_dtypes_has_it():
    assert as_numpy(torch.ones(1, dtype=torch.bfloat16)).dtype == ml_dtypes.bfloat16
    assert shapes_for(op.Muon)
