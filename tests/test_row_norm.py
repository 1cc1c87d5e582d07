"""LayerNorm and its kind as their users meet them: gradients, memory, errors, layers."""

import contextlib
import copy
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest, misaligned
from interrupting import at_each_place
from row_norm_cases import CASES, ONE_OF_EACH, Case


@pytest.fixture(params=ONE_OF_EACH, ids=lambda case: case.kind)
def kind(request):
    return request.param


@pytest.fixture(params=["forward", "backward"])
def call(request, kind):
    """One of the passes of one of the four, as call(problem, **options)."""
    return getattr(kind, request.param)


def test_gradients_against_finite_differences(rng, kind):
    p = kind.problem(rng, np.float64)

    def loss():
        return float((kind.forward(p)[0] * p["dy"]).sum())

    _, p["mean"], p["invstd"] = kind.forward(p)
    step, names = 1e-6, ("x", "weight", "bias")
    for name, gradient in zip(names, kind.backward(p), strict=False):
        array = p[name]
        for i in np.ndindex(array.shape):
            value = array[i]
            array[i] = value + step
            high = loss()
            array[i] = value - step
            low = loss()
            array[i] = value
            assert gradient[i] == pytest.approx((high - low) / (2 * step), rel=1e-6, abs=1e-7)


CLOSE = {np.float32: {"rtol": 2e-4, "atol": 2e-5}, np.float64: {"rtol": 1e-11, "atol": 1e-11}}


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if np.prod(c.weight_shape) > 1 and np.prod(c.shape) < 150_000],
    ids=str,
)
def test_pytorch(rng, case, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
    theirs = torch.nn.functional
    p = case.problem(rng, dtype)
    x, weight, bias = (
        torch.from_numpy(p[n].copy()).requires_grad_() for n in ("x", "weight", "bias")
    )
    if case.kind == "layer":
        y = theirs.layer_norm(x, case.setting, weight, bias)
    elif case.kind == "rms":
        y = theirs.rms_norm(x, case.setting, weight)
    elif case.kind == "group":
        y = theirs.group_norm(x, case.setting, weight, bias)
    elif np.prod(case.shape[2:]) == 1:
        pytest.skip("PyTorch refuses a channel of one value")
    else:
        y = theirs.instance_norm(x, weight=weight, bias=bias)
    y.backward(torch.from_numpy(p["dy"]))
    found, mean, invstd = case.forward(p)
    gradients = case.backward({**p, "mean": mean, "invstd": invstd})
    expected = [t.numpy() for t in (y.detach(), x.grad, weight.grad, bias.grad) if t is not None]
    for one, other in zip((found, *gradients), expected, strict=True):
        tolerance = CLOSE[dtype]["atol"] * max(1, abs(other).max())
        np.testing.assert_allclose(one, other, rtol=CLOSE[dtype]["rtol"], atol=tolerance)


# Memory


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "misaligned": misaligned,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_may_be_read(rng, call, layout):
    p = call.__self__.problem(rng, np.float64)
    expected = call(p)
    found = call({name: LAYOUTS[layout](array) for name, array in p.items()})
    assert digest(*found) == digest(*expected)
    assert found[0].flags.c_contiguous


def test_statistics_may_be_float32(rng, kind):
    p = kind.problem(rng, np.float64)
    narrow = {**p, "mean": p["mean"].astype(np.float32), "invstd": p["invstd"].astype(np.float32)}
    assert digest(*kind.backward(narrow)) == digest(*kind.backward(p))


def test_out_is_what_is_returned(rng, call):
    p = call.__self__.problem(rng, np.float32)
    out = np.empty_like(p["x"])
    expected = call(p)
    found = call(p, out=out)
    assert found[0] is out
    assert digest(*found) == digest(*expected)


@pytest.mark.parametrize("same", ["x", "dy"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_in_place(rng, case, same):
    p = case.problem(rng, np.float32)
    expected = case.backward(copy.deepcopy(p), num_threads=2)
    found = case.backward(p, out=p[same], num_threads=2)
    assert found[0] is p[same]
    assert digest(*found) == digest(*expected)


def test_arrays_without_elements(kind):
    empty = Case(kind.kind, (0, *kind.shape[1:]), kind.setting)
    p = {name: np.zeros(empty.shape) for name in ("x", "dy")}
    p |= {"weight": np.ones(empty.weight_shape), "bias": np.ones(empty.weight_shape)}
    y, p["mean"], p["invstd"] = empty.forward(p)
    assert y.shape == empty.shape
    assert p["mean"].shape == p["invstd"].shape == empty.statistics_shape
    dx, *gradients = empty.backward(p)
    assert dx.shape == empty.shape
    assert all((g == 0).all() and g.shape == empty.weight_shape for g in gradients)


# Errors

BAD = {
    "a list": ("x", lambda a: a.tolist(), TypeError, "x: expected a NumPy array, got list"),
    "float16": ("x", lambda a: a.astype(np.float16), TypeError, "x: expected dtype float32 or"),
    "x's shape": ("x", lambda a: a[..., 0], ValueError, "x: expected "),
    "weight's shape": (
        "weight",
        lambda a: a[:1],
        ValueError,
        r"weight: expected shape \(\d,\), got",
    ),
    "weight's dtype": (
        "weight",
        lambda a: a.astype(np.float64),
        TypeError,
        "weight: expected x's dtype float32, got float64",
    ),
}
BAD_BACKWARD = {
    "dy's shape": ("dy", lambda a: a[..., :2], ValueError, "dy: expected x's shape"),
    "dy's dtype": ("dy", lambda a: a.astype(np.float64), TypeError, "dy: expected x's dtype"),
    "invstd's shape": (
        "invstd",
        lambda a: a[:2],
        ValueError,
        r"saved_inv\w+: expected shape \(6, ",
    ),
    "invstd's dtype": ("invstd", lambda a: a.astype(int), TypeError, r"saved_inv\w+: expected dty"),
}
BAD_OPTIONS = {
    "threads": ({"num_threads": 0}, ValueError, "num_threads: expected an integer >= 1, got 0"),
    "out's shape": ({"out": np.zeros((6, 4, 4), np.float32)}, ValueError, "out: expected x's sha"),
    "out's dtype": ({"out": np.zeros((6, 4, 5))}, TypeError, "out: expected x's dtype float32"),
    "out's layout": (
        {"out": np.zeros((6, 4, 5), np.float32, order="F")},
        ValueError,
        r"out: expected strides \(80, 20, 4\), as x has in memory, got strides",
    ),
    "a list as out": ({"out": [0.0]}, TypeError, "out: expected a NumPy array, got list"),
}


def expect(error, message, call, p, **options):
    out = options.setdefault("out", np.full((6, 4, 5), 7, np.float32))
    before = digest(p, options)
    with pytest.raises(error, match=f"^{message}"):
        call(p, **options)
    assert digest(p, options) == before
    assert out is options["out"]


@pytest.mark.parametrize("bad", BAD)
def test_bad_arrays(rng, call, bad):
    name, change, error, message = BAD[bad]
    p = call.__self__.problem(rng, np.float32)
    if bad == "x's shape" and call.__self__.kind in ("group", "instance"):
        p["x"] = p["x"][0, 0]
        name, change = "x", np.copy
    expect(error, message, call, {**p, name: change(p[name])})


@pytest.mark.parametrize("bad", BAD_BACKWARD)
def test_bad_arrays_of_backward(rng, kind, bad):
    name, change, error, message = BAD_BACKWARD[bad]
    p = kind.problem(rng, np.float32)
    expect(error, message, kind.backward, {**p, name: change(p[name])})


@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_bad_options(rng, call, bad):
    options, error, message = BAD_OPTIONS[bad]
    expect(error, message, call, call.__self__.problem(rng, np.float32), **options)


@pytest.mark.parametrize("eps", [0.0, -1e-5, np.nan, np.inf, "1e-5", True])
def test_bad_eps(rng, kind, eps):
    error = ValueError if type(eps) is float else TypeError
    message = "eps: expected a finite number > 0"
    expect(error, message, kind.forward, kind.problem(rng, np.float32), eps=eps)


def test_only_rms_norm_has_an_eps_of_its_own(rng):
    p = ONE_OF_EACH[0].problem(rng, np.float32)
    expect(TypeError, "eps: expected a finite number", ONE_OF_EACH[0].forward, p, eps=None)
    rms = ONE_OF_EACH[1]
    for dtype in (np.float32, np.float64):
        p = rms.problem(rng, dtype)
        expected = rms.forward(p, eps=float(np.finfo(dtype).eps))
        assert digest(*rms.forward(p)) == digest(*expected)


SHAPES = [
    (0, ValueError, "integers >= 1"),
    ((3, -1), ValueError, "integers >= 1"),
    ((), TypeError, "an integer or a tuple of integers"),
    (2.0, TypeError, "an integer or a tuple of integers"),
    (True, TypeError, "an integer or a tuple of integers"),
    (None, TypeError, "an integer or a tuple of integers"),
    (("a",), TypeError, "an integer or a tuple of integers"),
]


@pytest.mark.parametrize(("shape", "error", "message"), SHAPES)
def test_bad_normalized_shape(shape, error, message):
    message = f"^normalized_shape: expected {message}, got"
    for call in (op.LayerNorm, op.RMSNorm):
        with pytest.raises(error, match=message):
            call(shape)
    with pytest.raises(error, match=message):
        op.layer_norm(np.ones((2, 3)), normalized_shape=shape)


def test_normalized_shape_must_be_that_of_the_last_axes():
    for shape in (2, (2, 3, 4), (3, 2)):
        with pytest.raises(
            ValueError, match=r"^x: expected a shape that ends with normalized_shap"
        ):
            op.layer_norm(np.ones((2, 3)), normalized_shape=shape)


def test_bad_groups():
    x = np.ones((2, 6, 3))
    message = r"^x: expected channels on axis 1 that make up 4 groups, got shape \(2, 6, 3\)"
    with pytest.raises(ValueError, match=message):
        op.group_norm(x, num_groups=4)
    with pytest.raises(
        ValueError, match="^num_groups: expected a divisor of the 6 channels, got 4"
    ):
        op.GroupNorm(4, 6)
    for bad, error in ((0, ValueError), (True, TypeError), (2.0, TypeError), (2**40, ValueError)):
        with pytest.raises(error, match="^num_groups: expected an integer"):
            op.group_norm(x, num_groups=bad)
    for call in (op.instance_norm, lambda x: op.group_norm(x, num_groups=1)):
        with pytest.raises(ValueError, match="^x: expected at least one value per channel"):
            call(np.ones((2, 6, 0)))
        with pytest.raises(ValueError, match="^x: expected channels on axis 1"):
            call(np.ones((2, 0, 3)))


def test_forward_in_place_is_refused_and_says_why(rng, kind):
    p = kind.problem(rng, np.float32)
    message = "out: expected memory of its own, because the backward pass needs x, got the same"
    expect(ValueError, message, kind.forward, p, out=p["x"])


def test_overlapping_out_is_refused(rng, call):
    p = call.__self__.problem(rng, np.float32)
    buffer = np.zeros(p["x"].size + 8, np.float32)
    p["x"] = buffer[8:].reshape(p["x"].shape)
    out = buffer[:-8].reshape(p["x"].shape)
    expect(ValueError, "out: expected memory of its own, got an overlap", call, p, out=out)


# Layers


def test_layers_do_what_the_functions_do(rng, kind):
    p = kind.problem(rng, np.float32)
    layer = kind.layer()
    layer.weight[...] = p["weight"]
    if kind.centered:
        layer.bias[...] = p["bias"]
    expected, p["mean"], p["invstd"] = kind.forward(p)
    assert_same_bits(layer.forward(p["x"]), expected)
    found = [layer.backward(p["dy"]), layer.weight_grad]
    found += [layer.bias_grad] if kind.centered else []
    assert digest(*found) == digest(*kind.backward(p))


def test_layers_without_parameters(rng, kind):
    p = kind.problem(rng, np.float32)
    layer = kind.layer(affine=False)
    p |= {"weight": None, "bias": None}
    assert layer.weight is layer.bias is layer.weight_grad is layer.bias_grad is None
    expected, p["mean"], p["invstd"] = kind.forward(p)
    assert_same_bits(layer.forward(p["x"]), expected)
    assert_same_bits(layer.backward(p["dy"]), kind.backward(p)[0])
    assert layer.state_dict() == {}


@pytest.mark.parametrize("affine", [True, False])
def test_state_and_defaults_are_pytorchs(rng, kind, affine):
    torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
    names = {
        "layer": "LayerNorm",
        "rms": "RMSNorm",
        "group": "GroupNorm",
        "instance": "InstanceNorm1d",
    }
    cls = getattr(torch.nn, names[kind.kind])
    if kind.kind in ("layer", "rms"):
        theirs = cls(kind.setting, elementwise_affine=affine)
    elif kind.kind == "group":
        theirs = cls(kind.setting, kind.shape[1], affine=affine)
    else:
        theirs = cls(kind.shape[1], affine=affine)
        assert op.InstanceNorm(4).affine is torch.nn.InstanceNorm1d(4).affine
    ours = kind.layer(affine=affine)
    assert ours.eps == theirs.eps
    p = kind.problem(rng, np.float32)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter[...] = torch.from_numpy(p[name])
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(torch.from_numpy(p["x"])).detach().numpy()
    np.testing.assert_allclose(ours.forward(p["x"]), expected, **CLOSE[np.float32])
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in ours.state_dict().items()})
    with pytest.raises(KeyError, match="state: expected the keys"):
        ours.load_state_dict({"gamma": np.ones(5)})


def test_repr_makes_the_layer_again(kind):
    layer = kind.layer(np.float64)
    again = eval(repr(layer), {cls.__name__: cls for cls in (type(layer),)})
    assert repr(again) == repr(layer)


def test_a_copy_and_a_file_keep_the_parameters_and_not_the_input(rng, kind):
    layer = kind.layer()
    p = kind.problem(rng, np.float32)
    layer.weight[...] = p["weight"]
    layer.forward(p["x"])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert digest(other.state_dict()) == digest(layer.state_dict())
        with pytest.raises(
            RuntimeError, match="^backward: expected a forward before it.* got none"
        ):
            other.backward(p["dy"])


def test_a_forward_has_one_backward(rng, kind):
    p, layer = kind.problem(rng, np.float32), kind.layer()
    with pytest.raises(RuntimeError, match="^backward: expected a forward before it.* got none"):
        layer.backward(p["dy"])
    layer.forward(p["x"])
    layer.backward(p["dy"])
    with pytest.raises(RuntimeError, match="got one that has had its backward"):
        layer.backward(p["dy"])


def test_a_failed_call_leaves_the_layer_as_it_was(rng, kind):
    p, layer, other = kind.problem(rng, np.float32), kind.layer(), kind.layer()
    for each in (layer, other):
        each.forward(p["x"])
    wrong = np.zeros((6, 4, 4), np.float32)
    for bad in ((wrong[:, :2],), (p["x"].astype(np.float64),), (p["x"], wrong), (p["x"], p["x"])):
        with pytest.raises((TypeError, ValueError)):
            layer.forward(*bad)
    for bad in ((wrong,), (p["dy"], wrong)):
        with pytest.raises((TypeError, ValueError)):
            layer.backward(*bad)
    kept, layer.weight_grad = layer.weight_grad, np.zeros(9, np.float32)
    out = np.zeros_like(p["x"])
    with pytest.raises(ValueError, match=r"^weight_grad: expected shape \(\d,\), got shape \(9,\)"):
        layer.backward(p["dy"], out=out)
    layer.weight_grad = np.zeros(2 * kept.size, np.float32)[::2]
    with pytest.raises(ValueError, match="^weight_grad: expected C order, got strides"):
        layer.backward(p["dy"], out=out)
    assert not out.any()
    layer.weight_grad = kept
    assert digest(layer.backward(p["dy"])) == digest(other.backward(p["dy"]))


def test_channels_must_be_the_layers(rng):
    for layer in (op.GroupNorm(2, 4), op.InstanceNorm(4)):
        with pytest.raises(ValueError, match=r"^x: expected 4 channels on axis 1, got shape"):
            layer.forward(np.zeros((2, 6, 3), np.float32))
        with pytest.raises(TypeError, match="^x: expected the layer's dtype float32, got float64"):
            layer.forward(np.zeros((2, 4, 3)))


def test_another_dtype_says_what_to_do(rng, kind):
    layer, wide = kind.layer(), kind.problem(rng, np.float64)
    name = type(layer).__name__
    advice = (
        rf"\(pass x\.astype\(np\.float32\), or make the layer with {name}\(\.\.\., dtype=np\.flo"
    )
    with pytest.raises(TypeError, match=f"^x: expected .* float32, got float64 {advice}at64"):
        layer(wide["x"])
    with pytest.raises(TypeError, match=r"got int64 \(pass x\.astype\(np\.float32\)\)$"):
        layer(wide["x"].astype(np.int64))
    layer(wide["x"].astype(np.float32))
    with pytest.raises(TypeError, match=r"got float64 \(pass dy\.astype\(x\.dtype\)\)$"):
        layer.backward(wide["dy"])


def test_a_call_is_a_forward(rng, kind):
    p, layer, other = kind.problem(rng, np.float32), kind.layer(), kind.layer()
    out = np.empty_like(p["x"])
    assert layer(p["x"], out) is out
    assert_same_bits(out, other.forward(p["x"]))
    assert_same_bits(layer.backward(p["dy"]), other.backward(p["dy"]))


def test_parameters_may_be_views_of_one_vector(rng, kind):
    p, layer = kind.problem(rng, np.float32), kind.layer()
    n = layer.weight.size
    vector, grads = np.ones(n, np.float32), np.zeros(n, np.float32)
    layer.weight, layer.weight_grad = (a.reshape(layer.weight.shape) for a in (vector, grads))
    opt = op.SGD(vector, lr=0.5)
    layer.forward(p["x"])
    layer.backward(p["dy"])
    opt.step(grads)
    assert_same_bits(layer.weight, (1 - np.float32(0.5) * grads).reshape(layer.weight.shape))


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_an_interrupt_anywhere_leaves_all_or_nothing(rng, name):
    p = ONE_OF_EACH[0].problem(rng, np.float32)
    tried = []

    def seen(layer):
        return digest(layer.weight_grad, layer.bias_grad)

    def attempt():
        layer = op.LayerNorm(5)
        layer.forward(p["x"])
        tried.append(layer)
        return lambda: getattr(layer, name)(p["x" if name == "forward" else "dy"])

    attempt()
    tried[0].backward(p["dy"])
    before, after = seen(op.LayerNorm(5)), seen(tried[0])
    y = digest(op.LayerNorm(5).forward(p["x"]))
    for where, _ in at_each_place(attempt):
        layer = tried[-1]
        assert seen(layer) in (before, after), where
        with contextlib.suppress(RuntimeError):
            layer.backward(p["dy"])
        assert seen(layer) in (before, after), where
        assert digest(layer.forward(p["x"])) == y, where
    assert len(tried) > 3
