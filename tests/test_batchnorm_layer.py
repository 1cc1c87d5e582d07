"""The BatchNorm layer: its equations, its state, its errors."""

import copy
import pickle

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import FUNCTIONS, arrays, read_only
from helpers import assert_same_bits, digest


def test_running_statistics_are_their_equation(rng):
    x = rng.normal(size=(3, 10, 4))
    bn = op.BatchNorm(4, axis=-1, momentum=0.25, dtype=np.float64)
    mean, var = np.zeros(4), np.ones(4)
    for batch in x:
        bn.forward(batch)
        mean = 0.75 * mean + 0.25 * batch.mean(axis=0)
        var = 0.75 * var + 0.25 * batch.var(axis=0, ddof=1)
    np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(bn.running_var, var, rtol=1e-14)
    assert bn.num_batches_tracked == 3
    assert bn.num_batches_tracked.dtype == np.int64


def test_keras_and_onnx_track_the_biased_variance(rng):
    """Keras: moving = 0.99 * moving + 0.01 * batch, with the biased variance."""
    x, mean, var = rng.normal(size=(10, 4)), np.zeros(4), np.ones(4)
    op.batch_norm_train(
        x,
        running_mean=mean,
        running_var=var,
        momentum=1 - 0.99,
        eps=1e-3,
        unbiased_running_var=False,
    )
    np.testing.assert_allclose(mean, 0.01 * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(var, 0.99 + 0.01 * x.var(axis=0), rtol=1e-14)


def test_without_momentum_all_batches_count_alike(rng):
    batches = rng.normal(size=(5, 10, 4))
    bn = op.BatchNorm(4, momentum=None, dtype=np.float64)
    for batch in batches:
        bn.forward(batch)
    np.testing.assert_allclose(bn.running_mean, batches.mean(axis=(0, 1)), rtol=1e-13)
    expected = batches.var(axis=1, ddof=1).mean(axis=0)
    np.testing.assert_allclose(bn.running_var, expected, rtol=1e-13)


def test_evaluation_uses_the_running_statistics(rng):
    x = rng.normal(size=(10, 4))
    bn = op.BatchNorm(4, dtype=np.float64)
    bn.forward(x)
    before = digest(bn.state_dict())
    y = bn.forward(x, training=False)
    expected = (x - bn.running_mean) / np.sqrt(bn.running_var + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-15)
    assert digest(bn.state_dict()) == before


def test_without_tracking_the_batch_counts_always(rng):
    x = rng.normal(size=(10, 4))
    bn = op.BatchNorm(4, track_running_stats=False, dtype=np.float64)
    assert bn.running_mean is None
    assert bn.running_var is None
    assert bn.num_batches_tracked is None
    assert_same_bits(bn.forward(x, training=False), bn.forward(x))
    assert set(bn.state_dict()) == {"weight", "bias"}


def test_without_affine_there_are_no_parameters(rng):
    bn = op.BatchNorm(4, affine=False)
    assert bn.weight is None
    assert bn.bias_grad is None
    bn.forward(arrays(rng)["x"])
    bn.backward(arrays(rng)["x"])
    assert set(bn.state_dict()) == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axis", [1, -1])
def test_backward_belongs_to_the_last_forward(rng, training, axis):
    p = arrays(rng, (6, 4, 5) if axis == 1 else (6, 5, 4))
    bn = op.BatchNorm(4, axis=axis, eps=0.1, relu=True)
    bn.weight[:], bn.bias[:] = p["weight"], p["bias"]
    bn.forward(p["dy"], training=not training)
    y = bn.forward(p["x"], training)
    if training:
        expected_y, mean, invstd = FUNCTIONS["train"](p, axis=axis, eps=0.1, relu=True)
        saved = {**p, "mean": mean, "var": invstd}
        expected = FUNCTIONS["backward"](saved, axis=axis, relu=True)
    else:
        saved = {**p, "mean": bn.running_mean.copy(), "var": bn.running_var.copy()}
        expected_y = FUNCTIONS["infer"](saved, axis=axis, eps=0.1, relu=True)
        expected = FUNCTIONS["infer_backward"](saved, axis=axis, eps=0.1, relu=True)
        bn.running_mean += 1  # what a forward used stays what it was
    assert_same_bits(y, expected_y)
    gradients = bn.weight_grad, bn.bias_grad
    dx = bn.backward(p["dy"])
    for found, other in zip([dx, *gradients], expected, strict=True):
        assert_same_bits(found, other)
    assert bn.weight_grad is gradients[0]


def test_parameters_may_lie_in_one_vector(rng):
    params, grads = np.ones(8, np.float32), np.zeros(8, np.float32)
    bn = op.BatchNorm(4)
    bn.weight, bn.bias, bn.weight_grad, bn.bias_grad = params[:4], params[4:], grads[:4], grads[4:]
    x = arrays(rng)["x"]
    assert_same_bits(bn.forward(x), op.batch_norm_train(x, weight=params[:4], bias=params[4:])[0])
    bn.backward(x)
    assert grads.all()


@pytest.mark.parametrize(
    "grad", [np.zeros(3, np.float32), np.zeros(4), read_only(np.zeros(4, "f"))]
)
def test_a_bad_gradient_array_changes_nothing(rng, grad):
    x, out = arrays(rng)["x"], np.zeros((6, 4, 5), np.float32)
    bn = op.BatchNorm(4)
    bn.bias_grad = grad
    bn.forward(x)
    with pytest.raises((TypeError, ValueError), match="^bias_grad: expected "):
        bn.backward(x, out=out)
    assert not bn.weight_grad.any()
    assert not out.any()


def test_backward_needs_a_forward_whose_input_is_there(rng):
    x = arrays(rng)["x"]
    bn = op.BatchNorm(4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^backward: expected a forward before it .*, got"):
            bn.backward(x)
        bn.forward(x.copy())
        bn.forward(x, training=False, out=x[:])
    residual = x.copy()
    bn.forward(x, training=False, out=residual, residual=residual)
    with pytest.raises(RuntimeError, match="got one that wrote over what it was given$"):
        bn.backward(x)
    with pytest.raises(ValueError, match="^out: .* because the backward pass needs x"):
        bn.forward(x, out=x)
    bn.forward(x)
    bn.backward(x.copy(), out=x)
    with pytest.raises(RuntimeError, match="^backward: expected a forward before it"):
        bn.backward(x)


def test_a_forward_has_one_backward(rng):
    """A second one would be meant for another forward, which is forgotten."""
    p, grads = arrays(rng), np.zeros((2, 4), np.float32)
    bn = op.BatchNorm(4)
    bn.forward(p["dy"])
    bn.forward(p["x"])
    with pytest.raises(ValueError, match="^dy: "):  # one that fails does not count
        bn.backward(p["dy"][:2])
    _, mean, invstd = op.batch_norm_train(p["x"])
    expected = op.batch_norm_backward(p["dy"], p["x"], saved_mean=mean, saved_invstd=invstd)
    assert_same_bits(bn.backward(p["dy"]), expected[0])
    bn.weight_grad, bn.bias_grad = grads
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no backward yet, got one that has had its backwar"):
            bn.backward(p["dy"])
    assert not grads.any()
    bn.forward(p["x"])
    assert_same_bits(bn.backward(p["dy"]), expected[0])


def test_a_layer_in_two_places(rng):
    """As `backward` documents it: a copy shares all but what the gradients are written to."""
    p = arrays(rng, (6, 4, 5), np.float64)
    bn = op.BatchNorm(4, dtype=np.float64)
    bn.weight[:], bn.bias[:] = p["weight"], p["bias"]
    twin = copy.copy(bn)
    twin.weight_grad, twin.bias_grad = np.zeros((2, 4))
    y = twin.forward(bn.forward(p["x"]))
    dx = bn.backward(twin.backward(p["dy"]))
    affine = {"weight": p["weight"], "bias": p["bias"]}
    first, mean, invstd = op.batch_norm_train(p["x"], **affine)
    expected, *saved = op.batch_norm_train(first, **affine)
    upstream, *outer = op.batch_norm_backward(
        p["dy"], first, saved_mean=saved[0], saved_invstd=saved[1], **affine
    )
    inner_dx, *inner = op.batch_norm_backward(
        upstream, p["x"], saved_mean=mean, saved_invstd=invstd, **affine
    )
    assert_same_bits(y, expected)
    assert_same_bits(dx, inner_dx)
    for own, other, one, two in zip(
        (bn.weight_grad, bn.bias_grad),
        (twin.weight_grad, twin.bias_grad),
        inner,
        outer,
        strict=True,
    ):
        assert_same_bits(own + other, one + two)
    assert bn.num_batches_tracked == 2
    assert twin.running_mean is bn.running_mean


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_a_residual_and_its_gradient(rng, training, relu):
    p = arrays(rng)
    residual = rng.normal(size=(6, 4, 5)).astype(np.float32)
    bn = op.BatchNorm(4, relu=relu)
    bn.weight[:], bn.bias[:] = p["weight"], p["bias"]
    bn.running_mean[:], bn.running_var[:] = p["mean"], p["var"]
    options = {"relu": relu, "residual": residual}
    if training:
        expected_y, mean, invstd = FUNCTIONS["train"](p, **options)
        expected = FUNCTIONS["backward"]({**p, "mean": mean, "var": invstd}, **options)
    else:
        p["mean"], p["var"] = bn.running_mean.copy(), bn.running_var.copy()
        expected_y = FUNCTIONS["infer"](p, **options)
        expected = FUNCTIONS["infer_backward"](p, **options)
    assert_same_bits(bn.forward(p["x"], training, residual=residual), expected_y)
    dx, dresidual = bn.backward(p["dy"])
    for found, other in zip((dx, bn.weight_grad, bn.bias_grad, dresidual), expected, strict=True):
        assert_same_bits(found, other)
    bn.forward(p["x"], training)
    assert isinstance(bn.backward(p["dy"]), np.ndarray)


def test_backward_uses_what_forward_did(rng):
    """Settings may have been changed in between."""
    p = arrays(rng, (4, 4, 4))
    bn, other = op.BatchNorm(4, relu=True), op.BatchNorm(4, relu=True)
    for layer in (bn, other):
        layer.forward(p["x"])
    bn.relu, bn.axis, bn.eps = False, 2, 1.0
    assert_same_bits(bn.backward(p["dy"]), other.backward(p["dy"]))


def test_the_biased_running_variance(rng):
    """ONNX' and Keras': then a layer infers what it has trained on."""
    x = rng.normal(size=(10, 4))
    bn = op.BatchNorm(4, momentum=1.0, unbiased_running_var=False, dtype=np.float64)
    y = bn.forward(x)
    np.testing.assert_allclose(bn.running_var, x.var(axis=0), rtol=1e-14)
    np.testing.assert_allclose(bn.forward(x, training=False), y, rtol=1e-13, atol=1e-15)


def test_a_layers_own_number_of_threads(rng):
    x = rng.normal(size=(64, 4, 40, 40)).astype(np.float32)
    expected = op.BatchNorm(4).forward(x)
    bn = op.BatchNorm(4, num_threads=3)
    assert_same_bits(bn.forward(x), expected)
    bn.num_threads = 0
    for call in (bn.forward, bn.backward):
        with pytest.raises(ValueError, match="^num_threads: expected an integer >= 1, got 0"):
            call(x)
    bn.num_threads = None
    bn.backward(x)


BAD_BATCHES = {
    "a NaN": lambda x: x[0].fill(np.nan),
    "an infinity": lambda x: x[1:2, 3].fill(np.inf),
    "beyond the dtype's squares": lambda x: x[:3, 2].fill(np.finfo(x.dtype).max / 4),
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_that_is_not_finite_may_be_skipped(rng, dtype, bad, momentum):
    """Its statistics would stay in the running ones for good."""
    batches = [rng.normal(size=(10, 4)).astype(dtype) for _ in range(3)]
    BAD_BATCHES[bad](batches[1])
    given = {"momentum": momentum, "dtype": dtype}
    bn, ruined = op.BatchNorm(4, nonfinite="skip", **given), op.BatchNorm(4, **given)
    results = [(bn.forward(x), ruined.forward(x)) for x in batches]
    for y, other in results:
        assert_same_bits(y, other)
    assert not np.isfinite(ruined.running_var).all()
    assert ruined.num_batches_tracked == 3
    other = op.BatchNorm(4, **given)
    for x in batches[::2]:
        other.forward(x)
    assert digest(bn.state_dict()) == digest(other.state_dict())


def test_the_function_skips_as_the_layer_does(rng):
    x = rng.normal(size=(10, 4))
    x[3, 2] = np.inf
    mean, var = np.zeros(4), np.ones(4)
    options = {"running_mean": mean, "running_var": var}
    op.batch_norm_train(x, nonfinite="skip", **options)
    assert (mean == 0).all()
    assert (var == 1).all()
    op.batch_norm_train(x, nonfinite="propagate", **options)
    assert np.isfinite(mean).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="^nonfinite: expected one of 'propagate', 'skip', got"):
        op.batch_norm_train(x, nonfinite="raise")


def test_the_layer_checks_its_input(rng):
    x = arrays(rng)["x"]
    bn = op.BatchNorm(5)
    before = digest(bn.state_dict())
    with pytest.raises(ValueError, match=r"^x: expected 5 channels on axis 1, got shape \(6, 4, 5"):
        bn.forward(x)
    expected = "^x: expected the layer's dtype float32, float16 or bfloat16, got float64 "
    advice = (
        r"\(pass x\.astype\(np\.float32\), or make the layer with BatchNorm\(\.\.\., dtype=np\.f"
    )
    with pytest.raises(TypeError, match=f"{expected}{advice}loat64"):
        bn.forward(np.zeros((3, 5)))
    with pytest.raises(TypeError, match="^x: expected a NumPy array, got list"):
        bn.forward([[1.0] * 5])
    with pytest.raises(TypeError, match="^training: expected True or False, got 1"):
        bn.forward(np.zeros((3, 5), np.float32), 1)
    with pytest.raises(RuntimeError, match="^backward: "):
        bn.backward(x)
    assert digest(bn.state_dict()) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected an integer >= 1, got 0"),
        ({"num_features": 2.0}, TypeError, r"num_features: expected an integer >= 1, got 2\.0"),
        ({"eps": 0}, ValueError, "eps: expected a finite number > 0, got 0"),
        ({"momentum": 2.0}, ValueError, r"momentum: expected a number in \[0, 1\], got 2\.0"),
        ({"unbiased_running_var": 1}, TypeError, "unbiased_running_var: expected True or False"),
        ({"nonfinite": "raise"}, ValueError, "nonfinite: expected one of 'propagate', 'skip'"),
        ({"num_threads": 0}, ValueError, "num_threads: expected an integer >= 1, got 0"),
        ({"affine": None}, TypeError, "affine: expected True or False"),
        ({"relu": "yes"}, TypeError, "relu: expected True or False"),
        ({"axis": 0.5}, TypeError, r"axis: expected an integer, got 0\.5"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64"),
        ({"dtype": "word"}, TypeError, "dtype: expected float32 or float64, got 'word'"),
    ],
)
def test_bad_constructor_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        op.BatchNorm(**{"num_features": 4, **arguments})


def test_reset_running_stats(rng):
    bn = op.BatchNorm(4)
    fresh = digest(bn.state_dict())
    bn.forward(arrays(rng)["x"])
    assert digest(bn.state_dict()) != fresh
    bn.reset_running_stats()
    assert digest(bn.state_dict()) == fresh
    op.BatchNorm(4, track_running_stats=False).reset_running_stats()


def test_a_loaded_state_continues_to_the_bit(rng):
    x = arrays(rng)["x"]
    bn, other = op.BatchNorm(4, momentum=None), op.BatchNorm(4, momentum=None)
    bn.forward(x)
    bn.weight[:] = 3
    other.load_state_dict(bn.state_dict())
    for layer in (bn, other, pickle.loads(pickle.dumps(bn)), copy.deepcopy(bn)):
        layer.forward(x + 1)
        assert digest(layer.state_dict()) == digest(bn.state_dict())
    state = bn.state_dict()
    state["weight"][:] = 0
    assert (bn.weight == 3).all()


def test_loading_reads_before_it_writes(rng):
    """What is given may be the layer's own arrays."""
    bn = op.BatchNorm(4)
    bn.weight[:], bn.bias[:] = 1, 2
    own = {**bn.state_dict(), "weight": bn.bias, "bias": bn.weight, "running_mean": bn.weight}
    bn.load_state_dict(own)
    assert (bn.weight == 2).all()
    assert (bn.bias == 1).all()
    assert (bn.running_mean == 1).all()
    both = np.arange(8, dtype=np.float32)
    bn.weight, bn.bias = both[:4], both[4:]
    bn.load_state_dict({**bn.state_dict(), "weight": both[2:6], "bias": both[:4][::-1]})
    assert both.tolist() == [2, 3, 4, 5, 3, 2, 1, 0]


def test_loading_fills_the_arrays_that_are_there():
    params = np.ones(8, np.float32)
    bn = op.BatchNorm(4)
    bn.weight, bn.bias = params[:4], params[4:]
    bn.load_state_dict({**bn.state_dict(), "weight": np.arange(4)})
    assert params.tolist() == [0, 1, 2, 3, 1, 1, 1, 1]
    bn.bias = read_only(bn.bias)
    with pytest.raises(ValueError, match=r"^state\['bias'\]: expected a writable array"):
        bn.load_state_dict({**bn.state_dict(), "weight": np.ones(4)})
    assert params[3] == 3


def test_a_copy_leaves_the_last_input_behind(rng):
    bn = op.BatchNorm(4)
    bn.forward(rng.normal(size=(1000, 4)).astype(np.float32))
    assert len(pickle.dumps(bn)) < 2000
    with pytest.raises(RuntimeError, match="^backward: "):
        copy.deepcopy(bn).backward(np.zeros((1000, 4), np.float32))


def test_strided_parameters_and_statistics(rng):
    """What is not contiguous is written where it is."""
    p, both = arrays(rng), np.zeros((4, 4), np.float32)
    bn, plain = op.BatchNorm(4), op.BatchNorm(4)
    bn.running_mean, bn.running_var = np.zeros((4, 9), "f")[:, 2], np.ones((4, 9), "f")[:, 2]
    bn.weight_grad, bn.bias_grad = np.zeros((4, 9), "f")[:, 2], both[:, 0]
    for layer in (bn, plain):
        layer.forward(p["x"])
        layer.backward(p["dy"])
    for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
        assert_same_bits(getattr(bn, name), getattr(plain, name))
    assert not both[:, 1:].any()


def test_an_old_state_has_no_count(rng):
    bn = op.BatchNorm(4)
    bn.forward(arrays(rng)["x"])
    state = bn.state_dict()
    del state["num_batches_tracked"]
    bn.load_state_dict(state)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": None}, KeyError, "state: expected the keys"),
        ({"gamma": np.ones(4)}, KeyError, "state: expected the keys"),
        ({"running_var": np.ones(3)}, ValueError, r"state\['running_var'\]: expected shape \(4,\)"),
        (
            {"running_var": np.full(4, -1)},
            ValueError,
            r"state\['running_var'\]: expected values >=",
        ),
        ({"num_batches_tracked": np.array(-1)}, ValueError, r"state\['num_batches_tracked'\]: "),
        ({"num_batches_tracked": np.array(1.5)}, TypeError, r"state\['num_batches_tracked'\]: "),
        ({"num_batches_tracked": np.uint64(2**63 + 5)}, ValueError, r"state\['num_batches_tr"),
        ({"num_batches_tracked": np.array(2**53)}, ValueError, r"state\['num_batches_tracked'\]: "),
        (
            {"bias": np.full(4, 1e300)},
            RuntimeWarning,
            r"state\['bias'\]: values beyond the range of float32 become infinite",
        ),
        ({"bias": np.array(["a"] * 4)}, TypeError, r"state\['bias'\]: expected dtype float32"),
    ],
)
def test_a_bad_state_changes_nothing(change, error, message):
    bn = op.BatchNorm(4)
    with pytest.raises(TypeError, match="^state: expected a mapping, got list"):
        bn.load_state_dict([1])
    before = digest(bn.state_dict())
    state = {"weight": np.full(4, 7.0), **bn.state_dict(), "running_mean": np.full(4, 9), **change}
    with pytest.raises(error, match=message):
        bn.load_state_dict({name: value for name, value in state.items() if value is not None})
    assert digest(bn.state_dict()) == before


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("with_bias", [True, False])
def test_folding_does_the_work_of_both_layers(rng, affine, axis, with_bias):
    bn = op.BatchNorm(4, eps=0.1, affine=affine, dtype=np.float64)
    for array in (bn.weight, bn.bias, bn.running_mean):
        if array is not None:
            array[:] = rng.normal(size=4)
    bn.running_var[:] = rng.uniform(0.5, 2, 4)
    x, weight = rng.normal(size=(10, 3)), rng.normal(size=(4, 3))
    bias = rng.normal(size=4) if with_bias else None
    before = digest(weight, bias)
    expected = bn.forward(x @ weight.T + (0 if bias is None else bias), training=False)
    given = weight if axis == 0 else np.ascontiguousarray(weight.T)
    folded, shift = bn.fold_into(given, bias, axis=axis)
    y = x @ (folded.T if axis == 0 else folded) + shift
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert digest(weight, bias) == before
    assert folded.shape == given.shape
    assert folded.dtype == shift.dtype == np.float64


def test_folding_needs_statistics_and_matching_shapes():
    with pytest.raises(ValueError, match="^fold_into: expected running statistics"):
        op.BatchNorm(4, track_running_stats=False).fold_into(np.ones((4, 3)))
    bn = op.BatchNorm(4)
    with pytest.raises(ValueError, match=r"^weight: expected 4 output channels on axis 0, got"):
        bn.fold_into(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"^weight: expected 4 output channels on axis 2, got"):
        bn.fold_into(np.ones((3, 4)), axis=2)
    with pytest.raises(ValueError, match=r"^bias: expected shape \(4,\), got shape \(1, 4\)"):
        bn.fold_into(np.ones((4, 3)), np.ones((1, 4)))
    for weight, bias in (
        (np.ones((4, 3), int), None),
        ([[1.0]] * 4, None),
        (np.ones((4, 3)), [0] * 4),
    ):
        with pytest.raises(
            TypeError, match="^(weight|bias): expected an array of floating-point num"
        ):
            bn.fold_into(weight, bias)


def test_repr_makes_the_layer():
    bn = op.BatchNorm(
        4,
        axis=-1,
        eps=1.23456789e-5,
        unbiased_running_var=False,
        relu=True,
        nonfinite="skip",
        num_threads=3,
        dtype=np.float64,
    )
    for twin in (eval(repr(bn), {"BatchNorm": op.BatchNorm}), pickle.loads(pickle.dumps(bn))):
        assert (twin.unbiased_running_var, twin.nonfinite, twin.num_threads) == (False, "skip", 3)
    assert repr(eval(repr(bn), {"BatchNorm": op.BatchNorm})) == repr(bn)
    assert repr(bn).startswith("BatchNorm(4, axis=-1, eps=1.23456789e-05, momentum=0.1, ")
