"""BatchNorm of arrays in 16 bits: the results of float32, rounded to nearest even."""

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from batchnorm_cases import SHAPE_IDS, SHAPES, Problem, arrays, exact
from helpers import SMALL_FORMATS, assert_same_bits, digest
from onepass.batchnorm import reference

SMALL = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: np.dtype(dtype).name)
FORMS = pytest.mark.parametrize(("relu", "residual"), [(False, False), (True, False), (True, True)])


def normal(rng, shape, dtype):
    return rng.normal(3, 2, shape).astype(dtype)


def everything(given, **options):
    """All results, those in 16 bits first."""
    x, dy, z = given["x"], given["dy"], given["residual"]
    options |= {"weight": given["weight"], "bias": given["bias"], "residual": z}
    running = np.zeros(len(given["weight"]), "f"), np.ones(len(given["weight"]), "f")
    y, mean, invstd = op.batch_norm_train(
        x, running_mean=running[0], running_var=running[1], **options
    )
    fixed = {"mean": running[0], "var": running[1]}
    saved = {"saved_mean": mean, "saved_invstd": invstd}
    dx, *gradients = op.batch_norm_backward(dy, x, **saved, **options)
    frozen, *others = op.batch_norm_infer_backward(dy, x, **fixed, **options)
    moments = op.batch_norm_moments(x, axis=options["axis"])
    sums = op.batch_norm_gradient_sums(dy, x, **saved, **options)
    pieces = [op.batch_norm_normalize(x, moments, **options)[0]]
    back = op.batch_norm_input_gradient(dy, x, sums, **saved, **options)
    pieces += back if z is not None else [back]
    small = [y, op.batch_norm_infer(x, **fixed, **options), dx, frozen, *pieces]
    small += gradients[2:] + others[2:]  # of the residual
    rest = [mean, invstd, *running, *gradients[:2], *others[:2], *moments[1:], *sums[1:]]
    return small, rest


@SMALL
@FORMS
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=SHAPE_IDS)
def test_it_is_the_result_of_float32_rounded(rng, small, shape, axis, relu, residual):
    n = shape[axis]
    given = {
        "x": normal(rng, shape, small),
        "dy": normal(rng, shape, small),
        "residual": normal(rng, shape, small) if residual else None,
        "weight": rng.normal(size=n).astype("f"),
        "bias": rng.normal(size=n).astype("f"),
    }
    wide = {name: None if a is None else a.astype(np.float32) for name, a in given.items()}
    options = {"axis": axis, "relu": relu}
    expected, expected_rest = everything(wide, **options)
    for threads in (1, 3):
        found, rest = everything(given, **options, num_threads=threads)
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other.astype(small))
        assert digest(rest) == digest(expected_rest)


@SMALL
@FORMS
@pytest.mark.parametrize(("shape", "axis"), [((40, 3, 7), 1), ((2, 3, 40, 50), 1), ((9, 8, 5), -1)])
def test_it_is_the_reference_rounded(rng, small, shape, axis, relu, residual):
    problem = Problem(rng, shape, axis, np.float32, exact, residual)
    statistics = reference.statistics(problem.last(problem.x), 1e-5)
    options = {"weight": problem.weight, "bias": problem.bias, "axis": axis, "relu": relu}
    options["residual"] = None if problem.residual is None else problem.residual.astype(small)
    x, dy = problem.x.astype(small), problem.dy.astype(small)
    y, mean, invstd = op.batch_norm_train(x, **options)
    assert_same_bits(mean, statistics.mean)
    expected = problem.expected_y(statistics.mean, statistics.invstd, relu)
    assert_same_bits(y, expected.astype(small))
    mean = exact(rng, len(mean), np.float64)
    dx, dweight, dbias, *dz = op.batch_norm_backward(
        dy, x, saved_mean=mean, saved_invstd=invstd, **options
    )
    wide = problem.expected_gradients(mean, invstd, relu, frozen=False)
    for one, other in zip([dx, *dz], [wide[0], *wide[3:]], strict=True):
        assert_same_bits(one, other.astype(small))
    assert_same_bits(dweight, wide[1])
    assert_same_bits(dbias, wide[2])


@SMALL
@pytest.mark.parametrize("inner", [1, 2048])
def test_every_number_of_the_format(small, inner):
    """NaN, infinities and subnormal numbers, in both layouts of channels."""
    x = np.arange(2**16, dtype=np.uint16).view(small).reshape(-1, 32, inner)
    mean, var = np.linspace(-1, 1, 32), np.geomspace(1e-3, 1e3, 32)
    given = {"mean": mean, "var": var, "bias": mean.astype("f")}
    with np.errstate(all="ignore"):
        wide = op.batch_norm_infer(x.astype(np.float32), **given)
        assert_same_bits(op.batch_norm_infer(x, **given), wide.astype(small))
        dx, *sums = op.batch_norm_infer_backward(x, x, **given, residual=x, relu=True)
        others = op.batch_norm_infer_backward(
            *[x.astype(np.float32)] * 2, **given, residual=x.astype(np.float32), relu=True
        )
        assert_same_bits(dx, others[0].astype(small))
        assert_same_bits(sums[2], others[3].astype(small))


def test_squares_beyond_float16():
    x = np.array([[300.0], [-300.0]], np.float16)
    y, mean, invstd = op.batch_norm_train(x)
    assert y.dtype == np.float16
    assert y.ravel().tolist() == [1, -1]
    assert mean == 0
    assert invstd == pytest.approx(1 / 300)


def test_what_is_too_large_becomes_infinite():
    x = np.array([[1.0], [-1.0], [0.5], [-0.5]], np.float16)
    y, *_ = op.batch_norm_train(x, weight=np.full(1, 7e4, "f"))
    assert np.isposinf(y[0, 0])
    assert np.isneginf(y[1, 0])
    assert np.isfinite(y[2:]).all()


@SMALL
def test_a_layer_of_float32_takes_them(rng, small):
    p = {name: normal(rng, (6, 4, 5), small) for name in ("x", "dy", "z")}
    layer, other = op.BatchNorm(4, relu=True), op.BatchNorm(4, relu=True)
    for training in (True, False):
        y = layer.forward(p["x"], training, residual=p["z"])
        wide = {name: array.astype(np.float32) for name, array in p.items()}
        expected = other.forward(wide["x"], training, residual=wide["z"])
        assert_same_bits(y, expected.astype(small))
        for one, two in zip(layer.backward(p["dy"]), other.backward(wide["dy"]), strict=True):
            assert_same_bits(one, two.astype(small))
        assert digest(layer.state_dict(), layer.weight_grad, layer.bias_grad) == digest(
            other.state_dict(), other.weight_grad, other.bias_grad
        )
    assert layer.running_mean.dtype == np.float32
    with pytest.raises(
        TypeError, match=r"float64, got b?float16 \(pass x\.astype\(np\.float64\)\)$"
    ):
        op.BatchNorm(4, dtype=np.float64).forward(p["x"])


@SMALL
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", np.ones(4, np.float16), "weight: expected dtype float32"),
        ("weight", np.ones(4), "weight: expected dtype float32, got float64"),
        ("bias", np.ones(4, ml_dtypes.bfloat16), "bias: expected dtype float32"),
        ("running_mean", np.ones(4, np.float16), "running_mean: expected dtype float32 or float64"),
        ("residual", np.ones((6, 4, 5), np.float32), "residual: expected x's dtype"),
        ("out", np.ones((6, 4, 5), np.float32), "out: expected x's dtype"),
    ],
)
def test_other_arrays_of_the_call(rng, small, name, value, message):
    x, out = arrays(rng)["x"].astype(small), np.full((6, 4, 5), 7, small)
    options = {"out": out, "running_mean": np.zeros(4, "f"), "running_var": np.ones(4, "f")}
    options[name] = value
    before = digest(options)
    with pytest.raises(TypeError, match=f"^{message}"):
        op.batch_norm_train(x, **options)
    assert digest(options) == before


def test_the_two_formats_do_not_mix(rng):
    x = arrays(rng)["x"].astype(np.float16)
    with pytest.raises(TypeError, match="^dy: expected x's dtype float16, got bfloat16"):
        op.batch_norm_backward(
            x.astype(ml_dtypes.bfloat16), x, saved_mean=np.zeros(4), saved_invstd=np.ones(4)
        )


@SMALL
@pytest.mark.parametrize("layout", ["F", "slice", "misaligned", "in place", "offset"])
def test_any_memory(rng, small, layout):
    x, dy = normal(rng, (2, 6, 40, 50), small)
    mean = np.zeros(40)
    expected = op.batch_norm_infer_backward(dy, x, mean=mean, var=mean + 1)
    out = None
    if layout == "F":
        x, dy = np.asfortranarray(x), np.asfortranarray(dy)
    elif layout == "slice":
        x = np.repeat(x, 2, axis=2)[:, :, ::2]
    elif layout == "misaligned":
        buffer = np.empty(x.nbytes + 1, np.uint8)[1:]
        buffer.view(small).reshape(x.shape)[...] = x
        x = buffer.view(small).reshape(x.shape)
    elif layout == "in place":
        out = dy
    else:  # not where a value of 32 bits may lie
        out = np.empty(x.size + 1, small)[1:].reshape(x.shape)
    dx, *_ = op.batch_norm_infer_backward(dy, x, mean=mean, var=mean + 1, out=out)
    assert dx.dtype == small
    assert out is None or dx is out
    assert_same_bits(np.ascontiguousarray(dx), expected[0])


def test_bfloat16_against_pytorch(rng):
    """Theirs has float32 weights beside bfloat16 too, and computes in float32."""
    torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
    x, dy = normal(rng, (2, 8, 4, 9, 9), ml_dtypes.bfloat16)
    weight, bias = rng.normal(size=(2, 4)).astype("f")

    def tensor(array):
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)

    theirs = torch.ops.aten.native_batch_norm(
        tensor(x), torch.tensor(weight), torch.tensor(bias), None, None, True, 0.1, 1e-5
    )
    their_dx, *their_sums = torch.ops.aten.native_batch_norm_backward(
        tensor(dy), tensor(x), torch.tensor(weight), None, None, *theirs[1:], True, 1e-5, [True] * 3
    )
    y, mean, invstd = op.batch_norm_train(x, weight=weight, bias=bias)
    dx, *sums = op.batch_norm_backward(dy, x, saved_mean=mean, saved_invstd=invstd, weight=weight)
    unit = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
    for ours, other in ((y, theirs[0]), (dx, their_dx)):
        np.testing.assert_allclose(
            ours.astype("f"), other.float().numpy(), rtol=unit, atol=unit / 16
        )
    for ours, other in zip(sums, their_sums, strict=True):
        np.testing.assert_allclose(ours, other.float().numpy(), rtol=1e-4, atol=1e-3)


@SMALL
def test_large_results_go_past_the_caches(rng, small):
    """Of an odd number of elements, from an odd place."""
    shape = (5, 3, 640, 641)
    x = normal(rng, shape, small)
    mean, var = np.zeros(3), np.ones(3)
    expected = op.batch_norm_infer(x.astype("f"), mean=mean, var=var).astype(small)
    buffer = np.full(x.size + 100, 7, small)
    for offset in (0, 1, 33):
        out = buffer[offset : offset + x.size].reshape(shape)
        op.batch_norm_infer(x, mean=mean, var=var, out=out, num_threads=2)
        assert_same_bits(out, expected)
        assert (buffer[offset + x.size :] == 7).all()
        y, *_ = op.batch_norm_train(x, out=out)
        assert y is out
