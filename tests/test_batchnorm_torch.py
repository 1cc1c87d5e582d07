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


def model_of_theirs():
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))


def test_a_layer_of_a_whole_model(rng):
    """By the prefix of its names, both ways."""
    theirs, other, ours = model_of_theirs(), model_of_theirs(), op.BatchNorm(4)
    for _ in range(3):
        theirs(tensor(rng.normal(size=(6, 5)).astype("f")))
    ours.load_state_dict(theirs.state_dict(), prefix="1.")
    state = ours.state_dict(prefix="1.")
    for name, array in state.items():
        np.testing.assert_array_equal(array, theirs.state_dict()[name].numpy())
    assert state["1.num_batches_tracked"] == 3
    loaded = other.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert loaded.unexpected_keys == []
    assert loaded.missing_keys == ["0.weight", "0.bias"]
    assert other[1].num_batches_tracked == 3
    del state["1.num_batches_tracked"]
    ours.load_state_dict(state, prefix="1.")
    assert ours.num_batches_tracked == 0
    with pytest.raises(KeyError, match=r"expected the keys \['0.bias', .* got \['0.bias', '0.weig"):
        ours.load_state_dict(theirs.state_dict(), prefix="0.")
    for call in (lambda: ours.state_dict(prefix=1), lambda: ours.load_state_dict({}, prefix=None)):
        with pytest.raises(TypeError, match="^prefix: expected a string, got "):
            call()


@pytest.mark.parametrize("change", [lambda t: t.to(torch.bfloat16), lambda t: t.requires_grad_()])
def test_tensors_that_numpy_cannot_read(change):
    ours, state = op.BatchNorm(4), torch.nn.BatchNorm1d(4).state_dict()
    state["weight"] = change(state["weight"] + 1)
    with pytest.raises(TypeError, match=r"^state\['weight'\]: expected an array or a tensor that"):
        ours.load_state_dict(state)
    assert (ours.weight == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_is_applied_twice(rng, training):
    """Gradients add up, as theirs do; in evaluation the statistics are constants."""
    p = arrays(rng, (6, 4), np.float64)
    ours = op.BatchNorm(4, dtype=np.float64).train(training)
    theirs = torch.nn.BatchNorm1d(4, dtype=torch.float64).train(training)
    x = tensor(p["x"])
    theirs(torch.tanh(theirs(x))).backward(torch.from_numpy(p["dy"]))
    y, first = ours.forward(p["x"], context=True)
    _, second = ours.forward(np.tanh(y), context=True)
    dy = ours.backward(p["dy"], context=second) * (1 - np.tanh(y) ** 2)
    dx = ours.backward(dy, context=first, accumulate=True)
    for found, other in (
        (dx, x.grad),
        (ours.weight_grad, theirs.weight.grad),
        (ours.bias_grad, theirs.bias.grad),
        (ours.running_var, theirs.running_var),
    ):
        np.testing.assert_allclose(found, other.detach().numpy(), **CLOSE[np.float64])


def test_a_mask_has_the_gradient_that_autograd_finds(rng):
    """Of Keras's forward: statistics of some positions, and all of them normalised."""
    p, mask = arrays(rng, (6, 5, 4), np.float64), rng.random((6, 5)) < 0.6
    ours = op.BatchNorm(4, axis=-1, dtype=np.float64)
    x = tensor(p["x"])
    kept = x[torch.from_numpy(mask)]
    y = (x - kept.mean(0)) / torch.sqrt(kept.var(0, correction=0) + 1e-5)
    y.backward(torch.from_numpy(p["dy"]))
    np.testing.assert_allclose(
        ours.forward(p["x"], mask=mask), y.detach().numpy(), **CLOSE[np.float64]
    )
    np.testing.assert_allclose(ours.backward(p["dy"]), x.grad.numpy(), **CLOSE[np.float64])


def test_statistics_anew(rng):
    batches = [rng.normal(size=(6, 5)).astype(np.float32) for _ in range(3)]
    theirs, ours = model_of_theirs(), op.BatchNorm(4)
    for _ in range(2):
        theirs(tensor(batches[0]))
    torch.optim.swa_utils.update_bn([torch.from_numpy(x) for x in batches], theirs)
    weight, bias = (param.detach().numpy() for param in theirs[0].parameters())
    op.update_bn(ours, batches, lambda x: ours(x @ weight.T + bias))
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, theirs[1].state_dict()[name], **CLOSE[np.float32])


def test_folding_a_convolution(rng):
    ours = op.BatchNorm(4)
    ours.running_mean[:], ours.running_var[:] = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    conv = torch.nn.Conv2d(3, 4, 3)
    x = torch.from_numpy(rng.normal(size=(2, 3, 8, 8)).astype(np.float32))
    expected = ours.forward(conv(x).detach().numpy(), training=False)
    weight, bias = ours.fold_into(conv.weight.detach().numpy(), conv.bias.detach().numpy())
    found = torch.nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias))
    np.testing.assert_allclose(found.numpy(), expected, **CLOSE[np.float32])
