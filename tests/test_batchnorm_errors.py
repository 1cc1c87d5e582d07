"""What BatchNorm refuses: each a clear message, and nothing has changed."""

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import FUNCTIONS, arrays, read_only
from helpers import digest

BAD_ARRAYS = {
    "a list": ("x", lambda a: a.tolist(), TypeError, r"x: expected a NumPy array, got list"),
    "complex": (
        "x",
        lambda a: a.astype(complex),
        TypeError,
        r"x: expected dtype float32, float64,",
    ),
    "integers": ("x", lambda a: a.astype(int), TypeError, r"x: expected dtype float32, float64"),
    "a masked x": ("x", np.ma.masked_array, TypeError, r"x: expected an array without a mask"),
    "one axis": ("x", lambda a: a.ravel(), ValueError, r"x: expected at least 2 axes"),
    "weight's length": ("weight", lambda a: a[:3], ValueError, r"weight: expected shape \(4,\)"),
    "bias's rank": ("bias", lambda a: a[None], ValueError, r"bias: expected shape \(4,\)"),
    "weight's dtype": (
        "weight",
        lambda a: a.astype(np.float64),
        TypeError,
        "weight: expected x's dtype float32, got float64",
    ),
}
BAD_STATISTICS = {
    "mean's length": ("mean", lambda a: a[:3], ValueError, r"\w*mean: expected shape \(4,\)"),
    "var's length": ("var", lambda a: a[:3], ValueError, r"\w+: expected shape \(4,\)"),
    "mean's dtype": ("mean", lambda a: a.astype(int), TypeError, r"\w*mean: expected dtype float"),
}
BAD_UPSTREAM = {
    "dy's shape": ("dy", lambda a: a[:, :, :2], ValueError, "dy: expected x's shape"),
    "dy's dtype": (
        "dy",
        lambda a: a.astype(np.float64),
        TypeError,
        r"dy: expected x's dtype float32, got float64 \(pass dy\.astype\(x\.dtype\)\)$",
    ),
}
BAD_OPTIONS = {
    "axis too large": ({"axis": 3}, ValueError, "axis: expected an axis of x, from -3 to 2, got 3"),
    "axis too small": ({"axis": -4}, ValueError, "axis: expected an axis of x"),
    "an axis beyond all": ({"axis": 2**70}, ValueError, "axis: expected an axis of x, got 1180"),
    "a float axis": ({"axis": 1.0}, TypeError, r"axis: expected an integer, got 1\.0"),
    "a bool axis": ({"axis": True}, TypeError, "axis: expected an integer, got True"),
    "relu": ({"relu": 1}, TypeError, "relu: expected True or False, got 1"),
    "threads": ({"num_threads": 0}, ValueError, "num_threads: expected an integer >= 1, got 0"),
    "residual's shape": (
        {"residual": np.zeros((6, 4, 4), np.float32)},
        ValueError,
        "residual: expected x's shape",
    ),
    "residual's dtype": (
        {"residual": np.zeros((6, 4, 5))},
        TypeError,
        "residual: expected x's dtype float32, got float64",
    ),
    "out's shape": ({"out": np.zeros((6, 4, 4), np.float32)}, ValueError, "out: expected x's sha"),
    "out's dtype": (
        {"out": np.zeros((6, 4, 5))},
        TypeError,
        "out: expected x's dtype float32, got float64$",
    ),
    "out's layout": (
        {"out": np.zeros((6, 4, 5), np.float32, order="F")},
        ValueError,
        "out: expected strides .* as x has in memory, got strides",
    ),
    "an object as out": ({"out": object()}, TypeError, "out: expected a NumPy array, got object"),
    "a list as out": ({"out": [0.0]}, TypeError, "out: expected a NumPy array, got list"),
}
EPS = [
    (0.0, ValueError),
    (-1e-5, ValueError),
    (np.nan, ValueError),
    (np.inf, ValueError),
    ("1e-5", TypeError),
    (True, TypeError),
]


def expect(error, message, function, p, **options):
    running = {"running_mean": np.zeros(4, np.float32), "running_var": np.ones(4, np.float32)}
    p = {"running": running, **p}
    out = options.setdefault("out", np.full((6, 4, 5), 7, np.float32))
    before = digest(p, options)
    with pytest.raises(error, match=f"^{message}"):
        function(p, **options)
    assert digest(p, options) == before
    assert out is options["out"]


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(rng, function, case):
    name, change, error, message = BAD_ARRAYS[case]
    p = arrays(rng)
    expect(error, message, function, {**p, name: change(p[name])})


@pytest.mark.parametrize("case", BAD_STATISTICS)
@pytest.mark.parametrize("name", ["infer", "backward", "infer_backward"])
def test_bad_statistics(rng, name, case):
    which, change, error, message = BAD_STATISTICS[case]
    p = arrays(rng)
    expect(error, message, FUNCTIONS[name], {**p, which: change(p[which])})


@pytest.mark.parametrize("case", BAD_UPSTREAM)
@pytest.mark.parametrize("name", ["backward", "infer_backward"])
def test_bad_upstream(rng, name, case):
    which, change, error, message = BAD_UPSTREAM[case]
    p = arrays(rng)
    expect(error, message, FUNCTIONS[name], {**p, which: change(p[which])})


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(rng, function, case):
    options, error, message = BAD_OPTIONS[case]
    expect(error, message, function, arrays(rng), **options)


@pytest.mark.parametrize(("eps", "error"), EPS)
@pytest.mark.parametrize("name", ["train", "infer", "infer_backward"])
def test_bad_eps(rng, name, eps, error):
    expect(error, "eps: expected a finite number > 0", FUNCTIONS[name], arrays(rng), eps=eps)


@pytest.mark.parametrize("name", ["infer", "infer_backward"])
def test_negative_variance(rng, name):
    p = arrays(rng)
    p["var"][2] = -0.5
    message = r"var: expected values >= 0, got -0\.5 in channel 2"
    expect(ValueError, message, FUNCTIONS[name], p)


def test_read_only_out(rng, function):
    out = np.zeros((6, 4, 5), np.float32)
    out.flags.writeable = False
    expect(ValueError, "out: expected a writable array", function, arrays(rng), out=out)


RUNNING = {
    "one only": ("var", lambda _: None, TypeError, "running_var: expected an array, as running_m"),
    "other only": ("mean", lambda _: None, TypeError, "running_mean: expected an array, as runnin"),
    "length": ("var", lambda a: a[:3], ValueError, r"running_var: expected shape \(4,\)"),
    "dtype": ("mean", lambda a: a.astype(int), TypeError, "running_mean: expected dtype float32"),
    "a list": ("mean", list, TypeError, "running_mean: expected a NumPy array"),
    "one number for all": (
        "mean",
        lambda a: np.broadcast_to(a[:1], a.shape),
        ValueError,
        "running_mean: expected a writable array",
    ),
    "no strides": (
        "mean",
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, (0,)),
        ValueError,
        "running_mean: expected memory for each channel",
    ),
    "read-only": ("var", read_only, ValueError, "running_var: expected a writable"),
}


@pytest.mark.parametrize("case", RUNNING)
def test_bad_running_statistics(rng, case):
    which, change, error, message = RUNNING[case]
    running = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    running[which] = change(running[which])
    options = {f"running_{name}": array for name, array in running.items()}
    expect(error, message, FUNCTIONS["train"], arrays(rng), **options)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, np.nan, None, "0.1"])
def test_bad_momentum(rng, momentum):
    error = ValueError if isinstance(momentum, float) else TypeError
    message = r"momentum: expected a number in \[0, 1\]"
    expect(error, message, FUNCTIONS["train"], arrays(rng), momentum=momentum)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 4), "one has no variance"),
        ((1, 4, 1, 1), "one has no variance"),
        ((0, 4), "none has no mean"),
        ((2, 4, 0), "none has no mean"),
    ],
)
def test_a_batch_without_a_variance(rng, shape, reason):
    running = np.zeros(4), np.ones(4)
    before = digest(running)
    message = f"^x: expected more than one value per channel, because {reason}, got shape"
    with pytest.raises(ValueError, match=message):
        op.batch_norm_train(np.zeros(shape), running_mean=running[0], running_var=running[1])
    bn = op.BatchNorm(4, dtype=np.float64)
    fresh = digest(bn.state_dict())
    with pytest.raises(ValueError, match=message):
        bn.forward(np.zeros(shape))
    assert digest(running) == before
    assert digest(bn.state_dict()) == fresh


def test_an_empty_batch_may_be_inferred():
    y = op.batch_norm_infer(np.zeros((0, 4, 3)), mean=np.zeros(4), var=np.ones(4))
    assert y.shape == (0, 4, 3)
    dx, dweight, dbias = op.batch_norm_infer_backward(y, y, mean=np.zeros(4), var=np.ones(4))
    assert dx.shape == (0, 4, 3)
    assert (dweight == 0).all()
    assert (dbias == 0).all()


def test_out_like_a_slice_that_is_copied(rng, function):
    p = arrays(rng)
    p["x"] = np.repeat(p["x"], 2, axis=0)[::2]
    message = r"out: expected strides \(80, 20, 4\), as x has when it is copied"
    expect(ValueError, message, function, p, out=np.zeros((12, 4, 5), np.float32)[::2])


def test_a_failed_forward_leaves_the_layer_as_it_was(rng):
    p = arrays(rng)
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    for layer in (bn, other):
        layer.forward(p["x"])
    before = digest(bn.state_dict())
    wrong = np.zeros((6, 4, 4), np.float32)
    for arguments in ((True, wrong), (False, wrong), (True, p["x"]), ("yes",)):
        with pytest.raises((TypeError, ValueError)):
            bn.forward(p["x"], *arguments)
    for setting, value in (("eps", -1.0), ("momentum", 2.0)):
        kept = getattr(bn, setting)
        setattr(bn, setting, value)
        with pytest.raises(ValueError, match=f"^{setting}: expected "):
            bn.forward(p["x"])
        setattr(bn, setting, kept)
    assert digest(bn.state_dict()) == before
    assert digest(bn.backward(p["dy"])) == digest(other.backward(p["dy"]))
