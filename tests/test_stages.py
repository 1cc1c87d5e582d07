"""The whole step equals its NumPy reference bit for bit: scale, clipping, rule, average, zeros."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import SMALL_FORMATS, accepts, assert_same_bits, fresh_state, kept_names, shaped
from onepass.optim import _reference, _settings

# More than a block of the norm, a part of one, parts of its rows; orders and empty ones.
SHAPES = [(40_000,), (3, 5), (257,), (0,), (), (300, 70)]
EVERYTHING = {
    "clipped by norm": {"max_grad_norm": 1.0},
    "not clipped": {"max_grad_norm": 1e9, "nonfinite": "raise"},
    "clipped by value": {"max_grad_value": 0.3},
    "clipped one by one": {"max_grad_norm_each": 0.7},
    "clipped together and one by one": {"max_grad_norm": 30.0, "max_grad_norm_each": 3.0},
    "Lookahead": {"lookahead_every": 2, "lookahead_weight": 0.25},
    "Lookahead in every step, and average": {"lookahead_every": 1, "ema_decay": 0.9},
    "average": {"ema_decay": 0.9},
    "average, far": {"ema_decay": 0.3},
    "average, warm-up": {"ema_decay": 0.99, "ema_warmup": True},
    "plain mean": {"swa_start": 2},
    "average in float32": {"ema_decay": 0.9, "average_dtype": "float32"},
    "average in float32, far": {"ema_decay": 0.3, "average_dtype": "float32"},
    "mean in float32": {"swa_start": 2, "average_dtype": "float32"},
    "average of every second step": {"ema_decay": 0.9, "average_every": 2, "ema_warmup": True},
    "mean of every second step": {"swa_start": 1, "average_every": 2},
    "zeros": {"clear_grads": True},
    "some left out": {"skip_grad_norm": 16.5},
    "all": {
        "max_grad_norm": 1.0,
        "max_grad_norm_each": 0.5,
        "max_grad_value": 0.01,
        "nonfinite": "skip",
        "clear_grads": True,
        "ema_decay": 0.999,
        "lookahead_every": 2,
    },
}


MEASURING = {"max_grad_norm", "max_grad_norm_each", "skip_grad_norm", "nonfinite"}


def make(rng, dtype, shapes=SHAPES):
    arrays = [np.asarray(rng.normal(size=shape)).astype(dtype) for shape in shapes]
    arrays[-1] = np.asfortranarray(arrays[-1])
    return arrays


def reference_run(cls, options, params, steps, grad_scale=1.0):
    """What whole steps in NumPy come to; each one's norm, whether it clipped, was left out."""
    own = {name: value for name, value in options.items() if name not in _settings.CHECKS}
    group = {**_settings.GROUP_DEFAULTS, **own}
    others = _settings.averages(group) + ("lookahead_every" in own)
    rule = {name: value for name, value in own.items() if name not in _settings.GROUP_CHECKS}
    arrays = [
        (param.copy(order="K"), *fresh_state(cls, rule, param), *[param.copy()] * others)
        for param in params
    ]
    norms, clipped, skipped = [], [], []
    t = 1
    for grads in steps:
        norms.append(_reference.grad_norm(grads, grad_scale))
        skipped.append(norms[-1] > options.get("skip_grad_norm", math.inf))
        if skipped[-1]:
            clipped.append(False)
            continue
        max_norm = options.get("max_grad_norm")
        coefficient = _reference.clip_coefficient(norms[-1], max_norm) if max_norm else 1.0
        factor = coefficient / grad_scale
        own_coefficients = [_reference.own_clipping(grad, factor, group) for grad in grads]
        clipped.append(min(coefficient, *own_coefficients) < 1)
        arrays = [
            cls.reference_step(own_[0], grad, *own_[1:], step=t, grad_factor=factor, **own)
            for own_, grad in zip(arrays, grads, strict=True)
        ]
        t += 1
    return arrays, norms, clipped, skipped


def check_run(cls, options, params, steps, grad_scale=1.0, threads=None):
    widened = [
        [np.asarray(grad).astype(param.dtype) for param, grad in zip(params, grads, strict=True)]
        for grads in steps
    ]
    expected, norms, clipped, skipped = reference_run(cls, options, params, widened, grad_scale)
    params = [param.copy(order="K") for param in params]
    opt = cls(params, **options)
    for grads, norm, is_clipped, is_skipped in zip(steps, norms, clipped, skipped, strict=True):
        given_ = [grad.copy(order="K") for grad in grads]
        info = opt.step(given_, grad_scale=grad_scale, num_threads=threads)
        assert info.clipped == is_clipped
        assert info.skip_reason == ("grad_norm" if is_skipped else None)
        if MEASURING & options.keys():
            assert_same_bits(np.float64(info.grad_norm), np.float64(norm))
        else:
            assert info.grad_norm is None
        for array, grad in zip(given_, grads, strict=True):
            assert_same_bits(array, np.zeros_like(grad) if opt.clear_grads else grad)
    state = opt.state_dict()["state"]
    for index, (param, arrays) in enumerate(zip(params, expected, strict=True)):
        assert_same_bits(param, arrays[0])
        if all(skipped):
            assert state == {}
            continue
        names = kept_names(cls, rule_of(options))
        names += [name for name in ("slow", "average") if name in state[index]]
        kept = [array for array in arrays[1:] if array is not None]
        for name, array in zip(names, kept, strict=True):
            assert_same_bits(state[index][name], array)


def rule_of(options):
    return {
        k: v for k, v in options.items() if k not in (*_settings.CHECKS, *_settings.GROUP_CHECKS)
    }


def test_every_stage(case, dtype, rng):
    cls, options = case
    for stages in EVERYTHING.values():
        steps = [make(rng, dtype, SHAPES[1:-1]) for _ in range(3)]
        check_run(cls, {**options, **stages}, make(rng, dtype, SHAPES[1:-1]), steps)


DTYPES_BESIDE = [
    *((np.float32, other) for other in (*SMALL_FORMATS, np.float64)),
    *((np.float64, other) for other in (*SMALL_FORMATS, np.float32)),
]
"""Of a parameter, and of a gradient that is widened or rounded beside it."""


@pytest.mark.parametrize(("dtype", "other"), DTYPES_BESIDE)
@pytest.mark.parametrize("stages", EVERYTHING.values(), ids=EVERYTHING)
def test_gradients_of_another_dtype(optimizer, dtype, other, stages, rng):
    """As if NumPy had converted them; the parameters' own dtype may stand among them."""
    steps = [make(rng, other, SHAPES[1:]) for _ in range(3)]
    for grads in steps:
        grads[1] = grads[1].astype(dtype)
    check_run(optimizer, stages, make(rng, dtype, SHAPES[1:]), steps, grad_scale=2.0)


@pytest.mark.parametrize(("dtype", "other"), DTYPES_BESIDE)
def test_gradients_of_another_dtype_for_every_case(case, dtype, other, rng):
    cls, options = case
    steps = [make(rng, other, SHAPES[1:-1]) for _ in range(3)]
    check_run(cls, options, make(rng, dtype, SHAPES[1:-1]), steps)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_number_of_threads(optimizer, dtype, threads, rng):
    steps = [make(rng, dtype) for _ in range(2)]
    other = np.float64 if dtype == np.float32 else np.float32
    others = [
        [grad.astype(d) for grad, d in zip(grads, [np.float16, *[other] * 5], strict=True)]
        for grads in steps
    ]
    for stages in (EVERYTHING["all"], EVERYTHING["clipped by norm"]):
        check_run(optimizer, stages, make(rng, dtype), steps, grad_scale=3.0, threads=threads)
        check_run(optimizer, stages, make(rng, dtype), others, grad_scale=3.0, threads=threads)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 255, 256, 257, 16_383, 16_384, 16_385, 50_000])
def test_norm_of_every_length(dtype, n, rng):
    grad = rng.normal(size=n).astype(dtype)
    info = op.SGD(np.zeros(n, dtype), max_grad_norm=math.inf).step(grad)
    assert info.grad_norm == _reference.grad_norm([grad])
    exact = math.sqrt(math.fsum(float(g) ** 2 for g in grad))
    assert info.grad_norm == pytest.approx(exact, rel=1e-13)
    assert not info.clipped


def test_norm_where_squares_overflow_or_vanish():
    for size in (1e300, 1e160, 1e-157, 1e-170, 1e-300, 5e-324):
        grad = np.array([3 * size, -4 * size])
        info = op.SGD(np.zeros(2), max_grad_norm=math.inf, nonfinite="raise").step(grad)
        assert info.grad_norm == pytest.approx(5 * size, rel=1e-14, abs=0)
    mixed = [np.array([3e160]), np.array([1.0], np.float32), np.array([4e160])]
    params = [np.zeros(1), np.zeros(1, np.float32), np.zeros(1)]
    assert op.SGD(params, max_grad_norm=1.0).step(mixed).grad_norm == pytest.approx(5e160)
    largest = np.finfo(np.float32).max
    grad = np.full(1000, largest, np.float32)
    info = op.SGD(np.zeros(1000, np.float32), max_grad_norm=1.0, nonfinite="raise").step(grad)
    assert info.grad_norm == pytest.approx(float(largest) * math.sqrt(1000), rel=1e-15)


def test_norm_over_dtypes_and_groups(optimizer):
    """3, 4, 12: norm 13, of arrays of two dtypes in two groups."""
    params = [np.zeros(2, np.float32), np.zeros(1)]
    grads = [np.array([3, -4], np.float32), np.array([12.0])]
    opt = optimizer([{"params": [p], "lr": 0.1} for p in params], max_grad_norm=13 / 4)
    info = opt.step([[g] for g in grads])
    assert info.grad_norm == 13.0
    assert info.clipped
    for param, grad in zip(params, grads, strict=True):
        alone = np.zeros_like(param)
        optimizer(alone, lr=0.1).step(grad * (3.25 / (13.0 + 1e-6)))
        np.testing.assert_allclose(param, alone, rtol=1e-6)


def test_gradients_of_any_strides_have_one_norm(optimizer, rng):
    grad = rng.normal(size=(60, 70))
    for layout in (grad, np.asfortranarray(grad), np.repeat(grad, 2, axis=1)[:, ::2]):
        info = optimizer(np.ones((60, 70)), max_grad_norm=1.0).step(layout)
        assert info.grad_norm == _reference.grad_norm([grad])


def test_special_values_spread_through_every_stage(optimizer, dtype):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 1e-30], dtype)
    for stages in ({"max_grad_value": 0.5}, {"ema_decay": 0.9}, {"max_grad_norm": 1.0}):
        with np.errstate(all="ignore"):
            check_run(optimizer, stages, [np.ones(7, dtype)], [[special], [np.ones(7, dtype)]])


numbers = {
    "max_grad_norm": st.none() | st.floats(1e-3, 1e3),
    "max_grad_norm_each": st.none() | st.floats(1e-3, 1e3),
    "skip_grad_norm": st.none() | st.floats(1e-3, 1e3),
    "max_grad_value": st.none() | st.floats(1e-3, 1e3),
    "lookahead_every": st.none() | st.integers(1, 3),
    "lookahead_weight": st.floats(2.0**-126, 1),
    "clear_grads": st.booleans(),
    "ema_decay": st.none() | st.floats(0, 1),
    "average_dtype": st.sampled_from(["float64", "float32"]),
}


@given(
    options=st.fixed_dictionaries(numbers),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    grad_scale=st.floats(1e-3, 1e5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=60)
def test_any_options(optimizer, options, sizes, grad_scale, seed, dtype):
    rng = np.random.default_rng(seed)
    options = {name: value for name, value in options.items() if value is not None}
    shapes = [(size,) for size in sizes]
    steps = [make(rng, dtype, shapes) for _ in range(2)]
    check_run(optimizer, options, make(rng, dtype, shapes), steps, grad_scale)


def test_bound_and_accumulated_gradients_give_the_same_bits(case, dtype, rng):
    cls, options = case
    start = make(rng, dtype)
    steps = [make(rng, dtype) for _ in range(3)]
    given_ = [p.copy(order="K") for p in start]
    opt = cls(given_, **options, **EVERYTHING["all"])
    bound = [p.copy(order="K") for p in start]
    buffers = [np.empty_like(p) for p in start]
    fast = cls(bound, **options, **EVERYTHING["all"], grads=buffers)
    summed = [p.copy(order="K") for p in start]
    slow = cls(summed, **options, **EVERYTHING["all"])
    for grads in steps:
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer[...] = grad
        slow.accumulate([grad.copy(order="K") for grad in grads])
        infos = [opt.step(grads), fast.step(), slow.step()]
        assert infos[0] == infos[1] == infos[2]
        assert not any(array.any() for array in (*grads, *buffers))
    for a, b, c in zip(given_, bound, summed, strict=True):
        assert_same_bits(a, b)
        assert_same_bits(a, c)


def test_accumulated_gradients_are_the_sum(optimizer, dtype, rng):
    grads = [rng.normal(size=1000).astype(dtype) for _ in range(4)]
    a, b = np.ones(1000, dtype), np.ones(1000, dtype)
    one, two = optimizer(a, lr=0.1), optimizer(b, lr=0.1)
    for grad in grads:
        one.accumulate(grad)
    one.step(grad_scale=4)
    *_, total = itertools.accumulate(grads)
    two.step(total, grad_scale=4)
    assert_same_bits(a, b)


LATE = [cls for cls in op.optim.registry.values() if accepts(cls, {"cautious_weight_decay": True})]


@pytest.mark.parametrize("cls", LATE, ids=lambda cls: cls.__name__)
def test_decay_after_the_rule(cls, dtype, rng):
    options = {"cautious_weight_decay": True, "weight_decay": 0.5, "lr": 0.5}
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40], dtype)
    for stages in ({}, EVERYTHING["all"]):
        start, *steps = (
            [shaped(cls, {}, each) for each in make(rng, dtype, SHAPES[1:-1])] for _ in range(4)
        )
        check_run(cls, {**options, **stages}, start, steps)
    start, grad = (shaped(cls, {}, each) for each in (np.repeat(special, 8), np.tile(special, 8)))
    check_run(cls, options, [start], [[grad], [grad]])


def test_only_what_the_step_brings_nearer_to_zero_decays():
    """Weights of either sign, gradients of either sign and none; lr * decay is a quarter."""
    w = np.array([8.0, 8.0, 8.0, -8.0, -8.0, -8.0, 0.0])
    grad = np.array([1.0, -1.0, 0.0, 1.0, -1.0, 0.0, 1.0])
    op.Lion(w, lr=0.5, weight_decay=0.5, cautious_weight_decay=True).step(grad)
    assert w.tolist() == [5.5, 8.5, 8.0, -8.5, -5.5, -8.0, -0.5]


def test_which_decays_can_be_cautious(every_class):
    decoupled = every_class.defaults.get("decoupled_weight_decay", False)
    if decoupled and every_class.defaults.get("no_prox", True):
        every_class(shaped(every_class, {}, np.ones(2)), cautious_weight_decay=True)
        return
    is_own = "weight_decay" in every_class.row.hyper
    words = f"for {every_class.__name__} .its decay is part" if is_own else "with a weight decay"
    with pytest.raises(ValueError, match=f"^cautious_weight_decay: expected False {words}"):
        every_class(np.ones(2), cautious_weight_decay=True)
