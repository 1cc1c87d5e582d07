"""DeepSpeed's optimizers for the CPU, stepped by our operations."""

import re
from pathlib import Path

import deepspeed
import numpy as np
import pytest
import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.lion import DeepSpeedCPULion
from deepspeed.ops.op_builder import CPUAdagradBuilder, CPUAdamBuilder, CPULionBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
import onepass.deepspeed

BUILDERS = (CPUAdamBuilder, CPUAdagradBuilder, CPULionBuilder)
SIZE = 1003  # no whole number of any instruction set's vectors

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


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    # Each DeepSpeedCPUAdam asks for the processor, which takes a second, to warn of float16.
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)
    onepass.deepspeed.install()
    yield
    KEPT.clear()
    onepass.deepspeed.uninstall()


def tensors(n, dtype=torch.float32, shape=(SIZE,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(n)]


def train(cls, options, start, grads, **more):
    param = torch.nn.Parameter(start.clone())
    opt = cls([param], lr=0.05, **options, **more)
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
    return param.detach(), opt.state[param]


def zeros(like, n):
    return [torch.zeros_like(like) for _ in range(n)]


def opt_of(param, **options):
    """Return the number of an optimizer that stays until the test is over."""
    opt = DeepSpeedCPUAdam([torch.nn.Parameter(param)], **options)
    KEPT.append(opt)
    return opt.opt_id


KEPT = []


def arguments_of(kind, source):
    """Return the names of the arguments that DeepSpeed's C++ gives to a step."""
    (found,) = re.findall(rf"^int ds_{kind}_step\((.*?)\)", source, re.M | re.S)
    return [argument.split()[-1] for argument in found.split(",")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "adam",
            "optimizer_id step lr beta1 beta2 epsilon weight_decay bias_correction"
            " params grads exp_avg exp_avg_sq",
        ),
        ("adagrad", "optimizer_id step lr epsilon weight_decay params grads exp_avg_sq"),
        ("lion", "optimizer_id step lr beta1 beta2 weight_decay params grads exp_avg"),
    ],
)
def test_contract(kind, expected):
    """What DeepSpeed compiles has the functions, and the arguments, that ours are written for."""
    folder = Path(deepspeed.__file__).parent / "ops" / "csrc" / kind
    source = "".join(path.read_text() for path in sorted(folder.glob("cpu_*.cpp")))
    assert arguments_of(kind, source) == expected.split(), f"DeepSpeed calls {kind} otherwise"
    functions = {f"create_{kind}", f"{kind}_update", f"destroy_{kind}"}
    if kind == "adam":
        functions.add("adam_rollback")
        (mode,) = re.findall(r"^int create_adam_optimizer\((.*?)\)", source, re.M | re.S)
        assert mode.split(",")[6].split() == ["bool", "adamw_mode"]
    defined = {name for name in re.findall(r'm\.def\(\s*"(\w+)"', source) if "zenflow" not in name}
    assert defined == functions, f"DeepSpeed calls other functions of {kind}"


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


class Theirs:
    """What a builder of DeepSpeed's loads: it writes down what it is called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def theirs(installed, monkeypatch):
    onepass.deepspeed.uninstall()
    theirs = Theirs()
    for builder in BUILDERS:
        monkeypatch.setattr(builder, "load", lambda *_: theirs)
    onepass.deepspeed.install()
    yield theirs
    onepass.deepspeed.uninstall()  # before the builders have their own again


@pytest.mark.parametrize("cls", [DeepSpeedCPUAdam, DeepSpeedCPUAdagrad, DeepSpeedCPULion])
def test_float16_state_is_theirs(cls, theirs):
    """Their operation is loaded when it is first needed, and told of the optimizer then."""
    kind = cls.__name__.removeprefix("DeepSpeedCPU").lower()
    start, grad = tensors(2, torch.float16)
    opt = cls([torch.nn.Parameter(start.clone())], lr=0.05, fp32_optimizer_states=False)
    assert theirs.calls == []
    (param,) = opt.param_groups[0]["params"]
    param.grad = grad
    opt.step()
    opt.step()
    number = opt.opt_id
    del opt
    names = [(name, *arguments[:1]) for name, *arguments in theirs.calls]
    update = (f"{kind}_update", number)
    assert names == [(f"create_{kind}", number), update, update, (f"destroy_{kind}", number)]
    created, first, second, _ = theirs.calls
    assert created[2] == 0.05
    assert [first[2], second[2]] == [1, 2]
    assert first[-len(first) + 3] == 0.05
    assert any(one is param or torch.equal(one, param) for one in first if torch.is_tensor(one))
    assert torch.equal(param, start)  # ours has not touched it


def test_float16_state_where_theirs_does_not_build(theirs, monkeypatch):
    def fail(self):
        raise OSError("no compiler")

    onepass.deepspeed.uninstall()
    monkeypatch.setattr(CPUAdamBuilder, "load", fail)
    onepass.deepspeed.install()
    start, grad = tensors(2, torch.float16)
    with pytest.raises(TypeError, match="exp_avg: expected torch.float32 or torch.bfloat16, got"):
        train(DeepSpeedCPUAdam, {"fp32_optimizer_states": False}, start, [grad])


def test_functions_of_zenflow_are_theirs(theirs):
    """They step optimizers by their number, in a process of their own."""
    operation = CPUAdamBuilder().load()
    number = opt_of(torch.zeros(3), lr=0.25)
    operation.zenflow_adam_create(number, [0])
    assert [call[:3] for call in theirs.calls] == [
        ("create_adam", number, 0.25),
        ("zenflow_adam_create", number, [0]),
    ]


def test_install_and_uninstall(theirs):
    onepass.deepspeed.install()  # once more changes nothing
    ours = [builder().load() for builder in BUILDERS]
    assert ours == [builder().load(verbose=False) for builder in BUILDERS]
    assert not any(one is theirs for one in ours)
    stays = DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(3))])
    onepass.deepspeed.uninstall()
    onepass.deepspeed.uninstall()
    assert all(builder().load() is theirs for builder in BUILDERS)
    stays.param_groups[0]["params"][0].grad = torch.ones(3)
    stays.step()
    assert theirs.calls == []


def test_optimizers_are_forgotten():
    operation = CPUAdamBuilder().load()
    opt = DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(3))])
    number = opt.opt_id
    del opt
    with pytest.raises(KeyError):
        operation.adam_update(number, 1, 1e-3, 0.9, 0.999, 1e-8, 0.0, True, *tensors(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(
    adamw_mode=st.booleans(),
    bias_correction=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20, deadline=None)
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
