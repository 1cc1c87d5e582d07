"""What DeepSpeed calls, and what stays its own."""

import re
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.lion import DeepSpeedCPULion
from deepspeed.ops.op_builder import CPUAdagradBuilder, CPUAdamBuilder, CPULionBuilder
from deepspeed_steps import opt_of, tensors, train

import onepass.deepspeed

pytestmark = pytest.mark.usefixtures("installed")

BUILDERS = (CPUAdamBuilder, CPUAdagradBuilder, CPULionBuilder)


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
