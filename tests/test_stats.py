"""What a step with stats=True says of each parameter, and that it is the same step.

The oracle is NumPy's, in `_reference.param_stats`: the same sums, in the same order.
"""

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import CASES, RICHEST, SMALL_FORMATS, case_id, digest, shaped
from interrupting import at_each_place
from onepass.optim._reference import param_stats

# Longer than a block of the sums and no multiple of a tile; a few elements; none; no axes.
SHAPES = {"large": (129, 157), "small": (5, 1), "none": (0, 3), "scalar": (1, 1)}


def normal(rng, shapes, dtype):
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def copied(arrays):
    return {name: array.copy(order="K") for name, array in arrays.items()}


def expected(grads, before, after, grad_scale=1.0):
    return {
        name: param_stats(grad, before[name], after[name], grad_scale)
        for name, grad in grads.items()
        if grad is not None
    }


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_rule(case, dtype, rng):
    """The norms are the oracle's, to the bit, and the step is that without stats."""
    cls, settings = case
    params = {k: shaped(cls, settings, v) for k, v in normal(rng, SHAPES, dtype).items()}
    others = copied(params)
    opt, other = cls(params, **settings), cls(others, **settings)
    for _ in range(2):
        grads, before = normal(rng, SHAPES, dtype), copied(params)
        grads["large"][3] = 0
        info = opt.step(grads, stats=True)
        assert info.stats == expected(grads, before, params)
        assert other.step(grads) == info._replace(stats=None)
        assert digest(params, opt.state_dict()) == digest(others, other.state_dict())


LIVES = [
    {},
    {"weight_decay": 0.1, "lookahead_every": 1, "ema_decay": 0.5},
    {"max_grad_norm": 0.5, "max_grad_value": 0.1, "maximize": True},
    {"max_grad_norm_each": 0.5, "state_format": "bf16"},
    {"state_format": "q8", "seed": 5, "clear_grads": True},
]


@pytest.mark.parametrize("settings", LIVES, ids=lambda settings: "-".join(settings) or "none")
def test_every_stage(settings, rng):
    """The gradient is as it is given, and the update is all that has happened to the weights."""
    params = {**normal(rng, SHAPES, np.float32), "frozen": np.ones(3, np.float32)}
    opt = RICHEST(params, lr=0.1, **settings)
    for scale in (1.0, 4.0):
        grads, before = {**normal(rng, SHAPES, np.float32), "frozen": None}, copied(params)
        given = copy.deepcopy(grads)
        info = opt.step(given, grad_scale=scale, stats=True)
        assert info.stats == expected(grads, before, params, scale)
        assert list(info.stats) == list(SHAPES)
        if "clear_grads" in settings:
            assert not any(given[name].any() for name in SHAPES)


@pytest.mark.parametrize("small", SMALL_FORMATS)
@pytest.mark.parametrize("rounding", ["master", "stochastic", "nearest"])
def test_weights_of_16_bits(small, rounding, rng):
    """Those of a parameter with a master are the master's, also where the user writes into it."""
    param = rng.normal(size=20_000).astype(small)
    opt = op.Adam({"w": param}, lr=1e-3, rounding=rounding)
    opt.step({"w": np.ones(20_000, small)})

    def weights():
        master = opt.state_dict()["state"]["w"].get("master", param)
        assert (rounding == "master") == (master is not param)
        return master.astype(np.float32)

    for way in ("left", "changed"):
        if way == "changed":
            param[::7] = -3
        before = weights()
        grad = rng.normal(size=20_000).astype(small)
        grad[:100] = [0.0, -0.0] * 50
        info = opt.step({"w": grad}, stats=True)
        found = expected({"w": grad.astype(np.float32)}, {"w": before}, {"w": weights()})
        assert info.stats == found
        assert info.stats["w"].grad_zero_fraction == (grad == 0).mean() >= 0.005


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_layout(order, rng):
    """The sums go by the memory, so a gradient that lies otherwise is the parameter's."""
    param = np.asarray(rng.normal(size=(150, 130)), order=order)
    before = param.copy(order="K")
    grad = rng.normal(size=(130, 150)).T
    stats = op.SGD(param, lr=0.5).step(grad, stats=True).stats
    assert stats == {0: param_stats(np.asarray(grad, order=order), before, param)}


@pytest.mark.parametrize("cls", [op.Adam, op.LAMB, op.Adafactor])
def test_any_number_of_threads(cls, rng):
    shapes = {"a": (300, 300), "b": (7, 3), "c": (50, 1001)}
    start, grads = normal(rng, shapes, np.float32), normal(rng, shapes, np.float32)
    infos = set()
    for threads in (1, 2, 3, 8):
        params = copied(start)
        info = cls(params, lr=0.1).step(grads, stats=True, num_threads=threads)
        infos.add((tuple(info.stats.items()), digest(params)))
    assert len(infos) == 1


def test_the_norms_are_those_of_clipping(rng):
    grads = normal(rng, SHAPES, np.float32)
    opt = op.SGD(normal(rng, SHAPES, np.float32), lr=0.1, max_grad_norm=math.inf)
    for name in SHAPES:
        only = {other: grads[other] if other == name else None for other in SHAPES}
        info = opt.step(only, stats=True)
        assert info.grad_norm == info.stats[name].grad_norm


def test_zeros():
    """-0.0 is one; a NaN and a subnormal number are not."""
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        param_dtype = np.float64 if dtype == np.float64 else np.float32
        smallest = ml_dtypes.finfo(dtype).smallest_subnormal
        grad = np.array([0.0, -0.0, smallest, -smallest, np.nan, np.inf, 1.0, 0.0], dtype)
        stats = op.SGD(np.ones(8, param_dtype), lr=0.1).step(grad, stats=True).stats
        assert stats[0].grad_zero_fraction == 3 / 8


def test_a_parameter_that_stays():
    """The ratio is 0 where nothing moves, and infinite where a weight ends at 0."""
    still = op.SGD(np.zeros(2), lr=0.1).step(np.zeros(2), stats=True).stats[0]
    assert still == op.ParamStats(0.0, 1.0, 0.0, 0.0, 0.0)
    gone = op.SGD(np.full(1, 2.0), lr=1.0).step(np.full(1, 2.0), stats=True).stats[0]
    assert gone == op.ParamStats(2.0, 0.0, 2.0, 0.0, math.inf)


SCALES = {
    "huge": (1e200,),
    "tiny": (1e-200,),
    "huge and tiny": (1e-200, 1e200),
    "huge and usual": (1.0, 1e200, 1e-3),
    "tiny and usual": (1e-200, 1.0),
    "just beyond": (1e154,),
    "subnormal": (1e-310,),
}


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_norms_beyond_the_range_of_squares(scales, rng):
    """Whatever the blocks' magnitudes are: `math.hypot` takes the largest as its unit."""
    n = 16_384 * len(scales) + 3
    factors = np.repeat(np.array(scales), 16_384)
    grad = rng.normal(size=n)
    grad[: len(factors)] *= factors
    grad[len(factors) :] *= scales[-1]
    param = grad[::-1].copy()
    before = param.copy()
    stats = op.SGD(param, lr=0.5).step(grad, stats=True).stats[0]
    approximately = {"rel": 1e-13, "abs": 0.0}
    assert stats.grad_norm == pytest.approx(math.hypot(*grad), **approximately)
    assert stats.param_norm == pytest.approx(math.hypot(*param), **approximately)
    assert stats.update_norm == pytest.approx(math.hypot(*(param - before)), **approximately)


def test_sums_that_overflow_together():
    """Each block's sum of squares is finite, and that of all is not."""
    grad = np.full(4 * 16_384, 1e152)
    stats = op.SGD(np.zeros(grad.size), lr=1.0).step(grad, stats=True).stats[0]
    norms = stats.grad_norm, stats.update_norm, stats.param_norm
    assert norms == pytest.approx((256e152,) * 3, rel=1e-13)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite(value):
    """It says which parameter it is; a step that is skipped moves nothing."""
    grads = {"a": np.array([3.0, 4.0]), "b": np.array([1.0, value])}
    for nonfinite in ("propagate", "skip"):
        params = {"a": np.array([6.0, 8.0]), "b": np.array([1.0, 0.0])}
        opt = op.SGD(params, lr=0.5, nonfinite=nonfinite, clear_grads=True)
        info = opt.step(copy.deepcopy(grads), stats=True)
        assert info.skipped == (nonfinite == "skip")
        assert info.stats["a"].grad_norm == 5.0
        np.testing.assert_equal(info.stats["b"].grad_norm, value)
        if info.skipped:
            assert info.stats["a"] == op.ParamStats(5.0, 0.0, 0.0, 10.0, 0.0)
            assert info.stats["b"][1:] == (0.0, 0.0, 1.0, 0.0)
        else:
            assert info.stats["a"] == op.ParamStats(5.0, 0.0, 2.5, 7.5, 2.5 / 7.5)
            assert not math.isfinite(info.stats["b"].param_norm)


# Ways to step


def test_accumulated_and_bound_gradients(rng):
    param, grads = np.ones(3), rng.normal(size=(2, 3))
    opt = op.SGD(param, lr=0.1)
    for grad in grads:
        opt.accumulate(grad)
    before = param.copy()
    info = opt.step(grad_scale=2, stats=True)
    assert info.stats == {0: param_stats(grads[0] + grads[1], before, param, 2)}
    opt.bind(grads[0])
    before = param.copy()
    assert opt.step(stats=True).stats == {0: param_stats(grads[0], before, param)}


def test_one_parameter_at_a_time(rng):
    params = normal(rng, SHAPES, np.float32)
    opt = op.AdamW(params, lr=0.1)
    for name in ("large", "small", "large"):
        grad, before = rng.normal(size=SHAPES[name]).astype("f4"), params[name].copy()
        info = opt.step_one(name, grad, grad_scale=2.0, stats=True)
        assert info.stats == {name: param_stats(grad, before, params[name], 2.0)}
    assert opt.step_one("none", None, stats=True).stats == {}
    assert opt.step_one("large", grad).stats is None


def test_without_gradients():
    opt = op.SGD([np.ones(2)], lr=0.1)
    assert opt.step([None], stats=True).stats == {}
    assert opt.step([np.ones(2)]).stats is None


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_another_flag(value):
    opt = op.SGD(np.ones(2), lr=0.1)
    before = digest(opt)
    for call in (
        lambda: opt.step(np.ones(2), stats=value),
        lambda: opt.step_one(0, np.ones(2), stats=value),
    ):
        with pytest.raises(TypeError, match="stats: expected True or False, got"):
            call()
    assert digest(opt) == before


def test_rows_have_none():
    opt = op.SGD(np.ones((2, 2)), lr=0.1)
    with pytest.raises(TypeError, match="stats"):
        opt.step_rows((np.array([0]), np.ones((1, 2))), stats=True)


def test_a_call_that_fails_changes_nothing():
    opt = op.SGD({"w": np.ones(2)}, lr=0.1, nonfinite="raise")
    kept = opt.step({"w": np.ones(2)}, stats=True)
    before = digest(opt, kept.stats)
    for grad in (np.ones(3), np.full(2, np.nan)):
        with pytest.raises(ValueError, match="grads"):
            opt.step({"w": grad}, stats=True)
    assert digest(opt, kept.stats) == before


def test_interrupts():
    """Ctrl-C at every line of Python in a step: it has happened, or it has not."""
    runs = []

    def new():
        opt = op.Adam({"w": np.ones(2)}, lr=0.1)
        opt.step({"w": np.ones(2)}, stats=True)
        return opt

    def attempt():
        runs.append(new())
        return lambda: runs[-1].step({"w": np.ones(2)}, stats=True)

    before = digest(new())
    for where, _ in at_each_place(attempt):
        assert digest(runs[-1]) == before, where
    assert len(runs) > 2
    assert digest(runs[-1]) != before


# The mapping


def test_it_stays_as_it_was(rng):
    """An info that somebody keeps is not written to by later steps."""
    param = rng.normal(size=10)
    opt = op.Adam({"layers": [{"w": param}]}, lr=0.1)
    infos = [opt.step({"layers": [{"w": rng.normal(size=10)}]}, stats=True) for _ in range(3)]
    seen = [dict(info.stats) for info in infos]
    opt.step({"layers": [{"w": rng.normal(size=10)}]}, stats=True)
    assert [dict(info.stats) for info in infos] == seen
    assert len({each["layers.0.w"].grad_norm for each in seen}) == 3


def test_it_is_a_mapping():
    stats = (
        op.SGD({"a": np.full(1, 2.0), "b": np.zeros(2)}, lr=0.5)
        .step({"a": np.ones(1), "b": np.zeros(2)}, stats=True)
        .stats
    )
    a, b = op.ParamStats(1.0, 0.0, 0.5, 1.5, 0.5 / 1.5), op.ParamStats(0.0, 1.0, 0.0, 0.0, 0.0)
    assert list(stats) == ["a", "b"]
    assert len(stats) == 2
    assert dict(stats) == {"a": a, "b": b}
    assert repr(stats) == repr({"a": a, "b": b})
    with pytest.raises(KeyError):
        stats["c"]
    for other in (pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)):
        assert other == stats
