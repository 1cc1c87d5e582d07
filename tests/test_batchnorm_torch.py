"""The second oracle of BatchNorm: PyTorch's functions and layers."""

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import arrays

torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")

# PyTorch saves float32 statistics: a few roundings apart, near a mean of 0.
CLOSE = {np.float32: {"rtol": 1e-4, "atol": 1e-5}, np.float64: {"rtol": 1e-12, "atol": 1e-12}}
SHAPES = [(10, 4), (6, 4, 5), (6, 4, 5, 7), (3, 4, 2, 5, 3)]


def tensor(array, grad=True):
    return torch.from_numpy(array.copy()).requires_grad_(grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["plain", "relu", "add and relu"])
def test_functions(rng, dtype, shape, training, form):
    p = arrays(rng, shape, dtype)
    running = [rng.normal(size=4).astype(dtype), rng.uniform(0.5, 2, 4).astype(dtype)]
    theirs = {name: tensor(p[name]) for name in ("x", "weight", "bias")}
    their_running = [tensor(array, grad=False) for array in running]
    their_residual = tensor(p["dy"][::-1].copy())
    y = torch.nn.functional.batch_norm(
        theirs["x"], *their_running, theirs["weight"], theirs["bias"], training, 0.1, 1e-3
    )
    if form == "add and relu":
        y = y + their_residual
    y = torch.relu(y) if form != "plain" else y
    y.backward(torch.from_numpy(p["dy"]))

    options = {"relu": form != "plain"}
    if form == "add and relu":
        options["residual"] = their_residual.detach().numpy()
    options |= {"weight": p["weight"], "bias": p["bias"]}
    if training:
        found, mean, invstd = op.batch_norm_train(
            p["x"], running_mean=running[0], running_var=running[1], eps=1e-3, **options
        )
        gradients = op.batch_norm_backward(
            p["dy"], p["x"], saved_mean=mean, saved_invstd=invstd, **options
        )
    else:
        options |= {"mean": running[0].copy(), "var": running[1].copy(), "eps": 1e-3}
        found = op.batch_norm_infer(p["x"], **options)
        gradients = op.batch_norm_infer_backward(p["dy"], p["x"], **options)
    expected = [y, *(theirs[name].grad for name in ("x", "weight", "bias")), *their_running]
    if form == "add and relu":
        expected.insert(4, their_residual.grad)
    for ours, other in zip([found, *gradients, *running], expected, strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), **CLOSE[dtype])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_layers_over_a_run(rng, dtype, momentum, affine, tracked):
    settings = {"momentum": momentum, "affine": affine, "track_running_stats": tracked}
    ours = op.BatchNorm(4, dtype=dtype, **settings)
    theirs = torch.nn.BatchNorm2d(4, dtype=torch.from_numpy(np.zeros(1, dtype)).dtype, **settings)
    for training in (True, True, False, True):
        p = arrays(rng, (6, 4, 5, 3), dtype)
        x = tensor(p["x"])
        theirs.train(training)
        theirs.zero_grad()
        y = theirs(x)
        y.backward(torch.from_numpy(p["dy"]))
        found = [ours.forward(p["x"], training), ours.backward(p["dy"])]
        expected = [y, x.grad]
        if affine:
            found += [ours.weight_grad, ours.bias_grad]
            expected += [theirs.weight.grad, theirs.bias.grad]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.detach().numpy(), **CLOSE[dtype])
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert ours.state_dict().keys() == state.keys()
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, state[name], **CLOSE[dtype])
        assert array.dtype == state[name].dtype


def test_a_state_of_theirs_continues_here(rng):
    theirs = torch.nn.BatchNorm1d(4)
    theirs(tensor(arrays(rng, (6, 4))["x"]))
    ours = op.BatchNorm(4)
    ours.load_state_dict(theirs.state_dict())
    x = arrays(rng, (6, 4))["x"]
    expected = theirs.eval()(tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours.forward(x, training=False), expected, **CLOSE[np.float32])
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})


def test_folding_a_convolution(rng):
    ours = op.BatchNorm(4)
    ours.running_mean[:], ours.running_var[:] = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    conv = torch.nn.Conv2d(3, 4, 3)
    x = torch.from_numpy(rng.normal(size=(2, 3, 8, 8)).astype(np.float32))
    expected = ours.forward(conv(x).detach().numpy(), training=False)
    weight, bias = ours.fold_into(conv.weight.detach().numpy(), conv.bias.detach().numpy())
    found = torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias))
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE[np.float32])
