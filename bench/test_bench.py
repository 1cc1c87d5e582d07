"""Benchmarks under pytest-benchmark, which also check what they time.

pytest bench --benchmark-only
"""

import numpy as np
import pytest

import batch_norm
import contenders
import formats
import full_step
from timing import alternate
from workloads import OPERATIONS, WORKLOADS, batches, cases

SMALL = [WORKLOADS[name] for name in ("1e3", "1e5", "1e6", "mlp")]
SMALL_BATCHES = batches((4, 64, 14, 14), (2, 256, 7, 5), (5, 512, 3, 3), (32, 1024))


@pytest.fixture(params=cases(), ids=str)
def case(request):
    return request.param


@pytest.fixture(params=SMALL, ids=lambda workload: workload.name)
def workload(request):
    return request.param


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request):
    return request.param


@pytest.fixture(params=SMALL_BATCHES, ids=lambda batch: f"{batch.name}-{batch.layout}")
def batch(request):
    return request.param


def assert_same_bits(ours, theirs):
    assert [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


def test_step(benchmark, case, workload):
    ours, reference = contenders.Onepass(case, workload), contenders.NumPy(case, workload)
    ours.step()
    reference.step()
    assert_same_bits(ours.params, reference.params)
    for index, states in enumerate(reference.states):
        state = ours.optimizer.state_dict()["state"][index]
        for name, array in zip(case.states, states, strict=True):
            if name:
                assert_same_bits([state[name]], [array])
    benchmark(ours.step)


def test_kernel(benchmark, case):
    workload = WORKLOADS["1e3"]
    ours, reference = contenders.Kernel(case, workload), contenders.NumPy(case, workload)
    ours.step()
    reference.step()
    assert_same_bits([ours.param], reference.params)
    benchmark(ours.step)


def test_copy_limit_keeps_its_values(benchmark, case):
    copy = contenders.CopyLimit(case, WORKLOADS["mlp"])
    benchmark(copy.step)
    assert_same_bits(copy.params, WORKLOADS["mlp"].weights())


def test_torch_does_the_same(case):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, torchs = (make(case, WORKLOADS["mlp"]) for make in (contenders.Onepass, contenders.Torch))
    for _ in range(3):
        ours.step()
        torchs.step()
    for array, tensor in zip(ours.params, torchs.params, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_full_step(benchmark, case):
    ours = full_step.rivals(case, WORKLOADS["mlp"])["onepass"]
    ours.before()
    info = ours.step()
    # 0.01 each, so about 0.01 times the root of their number
    assert info.grad_norm == pytest.approx(0.01 * WORKLOADS["mlp"].elements ** 0.5, rel=0.05)
    assert not any(grad.any() for grad in ours.before.grads)
    benchmark(ours.step)


def test_torchs_full_step_does_the_same(case):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    rivals = full_step.rivals(case, WORKLOADS["mlp"])
    ours, torchs = rivals["onepass"], rivals["torch"]
    for step in range(3):
        for rival in (ours, torchs):
            ours.before()
            rival.step()
            assert not any(grad.any() for grad in ours.before.grads)
        if step == 0:  # as torch.optim.swa_utils.AveragedModel begins, and ours
            for average, values in zip(torchs.average, torchs.values, strict=True):
                average.copy_(values)
    for array, tensor in zip(ours.params, torchs.params, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
    with ours.optimizer.averaged():
        for array, tensor in zip(ours.params, torchs.average, strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-6)


def test_formats(case):
    """What is timed does what it says: it reads the gradients it has, and writes the copy."""
    workload = WORKLOADS["mlp"]
    rivals = formats.rivals(case, workload)
    for name, rival in rivals.items():
        before = [param.copy() for param in rival.params] if name != "torch" else []
        rival.step()
        for param, copy in zip(rival.params, getattr(rival, "copies", ()), strict=False):
            np.testing.assert_array_equal(copy, param.astype(copy.dtype))
        assert all((a != b).any() for a, b in zip(before, rival.params, strict=False))
    for ours, same in zip(rivals["onepass"].params, rivals["bf16 copy"].params, strict=True):
        np.testing.assert_array_equal(ours, same)


def assert_nearly_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_norm(benchmark, operation, batch):
    ours, numpys = (make(operation, batch) for make in (batch_norm.Onepass, batch_norm.NumPy))
    for array, other in zip(results(ours), results(numpys), strict=True):
        assert_nearly_equal(array, other)
    benchmark(ours.step)


def test_torchs_batch_norm_does_the_same(operation, batch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, torchs = (make(operation, batch) for make in (batch_norm.Onepass, batch_norm.Torch))
    for array, tensor in zip(results(ours), results(torchs), strict=True):
        in_layout = tensor.movedim(1, batch.axis) if tensor.ndim > 1 else tensor
        assert in_layout.is_contiguous()
        assert_nearly_equal(array, in_layout)


def results(rival):
    """What a step returns, then the running statistics."""
    returned = rival.step()
    return [*(returned if isinstance(returned, tuple) else [returned]), *rival.running]


def test_batch_norms_copy_limit_keeps_its_values(benchmark, operation, batch):
    copy = batch_norm.CopyLimit(operation, batch)
    before = copy.values.copy()
    benchmark(copy.step)
    assert_same_bits([copy.values], [before])


def test_resnet50_is_resnet50():
    assert len(WORKLOADS["resnet50"].shapes) == 161
    assert WORKLOADS["resnet50"].elements == WORKLOADS["resnet50-flat"].elements == 25_557_032


def test_the_first_contender_takes_part_in_every_round():
    rounds = alternate({"fast": lambda: None, "slow": lambda: sum(range(100_000))}, seconds=0.1)
    assert len(rounds["fast"]) >= len(rounds["slow"]) >= 3
