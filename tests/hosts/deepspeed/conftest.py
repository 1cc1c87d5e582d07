"""DeepSpeed's optimizers step by our operations in a test that asks for `installed`."""

import pytest
from deepspeed_steps import KEPT

import onepass.deepspeed


@pytest.fixture
def installed(monkeypatch):
    # Each DeepSpeedCPUAdam asks for the processor, which takes a second, to warn of float16.
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)
    onepass.deepspeed.install()
    yield
    KEPT.clear()
    onepass.deepspeed.uninstall()
