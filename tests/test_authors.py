"""A second implementation for rules of which PyTorch and optax lack a part: their authors' code."""

import numpy as np
import pytest

import onepass as op

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.usefixtures("torch_in_float64")

LR = 0.01


def assert_same_hundred_steps(make_ours, make_theirs, rng):
    ours = [np.array(rng.normal(size=shape)) for shape in [(7, 5), (11,), ()]]
    tensors = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in ours]
    opt, theirs = make_ours(ours), make_theirs(tensors)
    for _ in range(100):
        grads = [np.asarray(rng.normal(size=param.shape)) for param in ours]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad.copy())
        opt.step(grads)
        theirs.step()
    for param, tensor in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*add_:UserWarning")
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.3, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.5, 0.6)}],
)
def test_adabelief(rectify, settings, rng):
    """Theirs adds one epsilon at both places."""
    authors = pytest.importorskip("adabelief_pytorch", reason="it is not installed")
    settings = {"eps": 1e-16, "rectify": rectify, **settings}
    assert_same_hundred_steps(
        lambda params: op.AdaBelief(params, LR, eps_root=settings["eps"], **settings),
        lambda params: authors.AdaBelief(params, LR, print_change_log=False, **settings),
        rng,
    )


SCHEDULE_FREE = [
    ("SGDScheduleFree", {}),
    ("SGDScheduleFree", {"momentum": 0.5, "warmup_steps": 30, "r": 1.5, "weight_lr_power": 1.0}),
    ("AdamWScheduleFree", {}),
    ("AdamWScheduleFree", {"betas": (0.5, 0.9), "warmup_steps": 30, "r": 1.5, "eps": 1e-3}),
    ("RAdamScheduleFree", {}),
    ("RAdamScheduleFree", {"betas": (0.5, 0.9), "r": 1.5, "weight_lr_power": 1.0, "eps": 1e-3}),
    ("RAdamScheduleFree", {"silent_sgd_phase": False}),
]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("name", "settings"), SCHEDULE_FREE)
def test_schedule_free(name, settings, decay, rng):
    authors = pytest.importorskip("schedulefree", reason="it is not installed")
    settings = {**settings, "weight_decay": decay}

    def training(tensors):
        opt = getattr(authors, name)(tensors, LR, foreach=False, **settings)
        opt.train()
        return opt

    assert_same_hundred_steps(
        lambda params: getattr(op, name)(params, LR, **settings), training, rng
    )


@pytest.mark.parametrize(("name", "settings"), SCHEDULE_FREE)
def test_what_schedule_free_shows(name, settings, rng):
    authors = pytest.importorskip("schedulefree", reason="it is not installed")
    param = rng.normal(size=20)
    tensor = torch.nn.Parameter(torch.from_numpy(param.copy()))
    opt = getattr(op, name)(param, LR, **settings)
    theirs = getattr(authors, name)([tensor], LR, foreach=False, **settings)
    theirs.train()
    for _ in range(12):
        grad = rng.normal(size=20)
        tensor.grad = torch.from_numpy(grad.copy())
        opt.step(grad)
        theirs.step()
    theirs.eval()
    with opt.averaged():
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-12)
