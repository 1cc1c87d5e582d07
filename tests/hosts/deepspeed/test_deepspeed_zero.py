"""ZeRO-Offload, DeepSpeed's engine with its optimizer on the CPU, steps by our operations.

Its device is the CPU here, too, where there is no other.
"""

import socket

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam

import onepass.deepspeed

pytestmark = pytest.mark.filterwarnings("ignore")  # DeepSpeed's use of PyTorch


@pytest.fixture
def alone(monkeypatch):
    """A process group of one, without the operations that DeepSpeed would compile for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in {**world, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    yield
    deepspeed.comm.destroy_process_group()


def train(stage, optimizer):
    torch.manual_seed(0)
    layers = torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
    model = torch.nn.Sequential(*layers)
    config = {
        "train_micro_batch_size_per_gpu": 16,
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": not optimizer.get("torch_adam"),
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1, **optimizer}},
    }
    parameters = model.parameters()
    engine, wrapper, *_ = deepspeed.initialize(
        model=model, model_parameters=parameters, config=config
    )
    assert engine.basic_optimizer is wrapper.optimizer  # what the page has its reader look at
    x = torch.randn(64, 20, dtype=torch.bfloat16)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(engine(x), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return wrapper.optimizer, losses


@pytest.mark.skipif(get_accelerator().device_name() != "cpu", reason="the device is another")
@pytest.mark.parametrize("stage", [2, 3])
def test_offload(stage, alone):
    """The losses of PyTorch's AdamW in the same place, to bfloat16's rounding of the weights."""
    onepass.deepspeed.install()
    try:
        optimizer, losses = train(stage, {})
    finally:
        onepass.deepspeed.uninstall()
    assert type(optimizer) is DeepSpeedCPUAdam
    assert type(optimizer.ds_opt_adam).__module__ == "onepass.deepspeed"
    other, expected = train(stage, {"torch_adam": True})
    assert type(other) is torch.optim.AdamW
    assert losses[-1] < losses[0] / 4
    torch.testing.assert_close(losses, expected, rtol=4 * 2**-8, atol=0)
