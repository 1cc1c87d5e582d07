"""The kernels equal the NumPy reference bit for bit. test_isa.py has the other instruction sets."""

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import (
    assert_same_bits,
    format_of,
    fresh_state,
    kept_names,
    misaligned,
    run_reference,
    saved_entry,
    shaped,
    signs_of,
)
from onepass._hyperparameters import Choice, Fixed, Flag, Maybe, Number, Several, Whole, as_numbers
from onepass._memory import aligned_zeros

BF16 = ml_dtypes.bfloat16
# Around every vector width and a tile, and one that is many tiles and a remainder.
LENGTHS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 1023, 1024, 1025, 100_003]


def gradients(rng, shape, dtype, steps):
    """Gradients of every magnitude, some of them 0."""
    for _ in range(steps):
        size = 10.0 ** rng.uniform(-20, 5, shape)
        yield np.asarray(rng.normal(size=shape) * size * (rng.random(shape) > 0.1)).astype(dtype)


def place(values, offset):
    """A copy of a vector, `offset` bytes past a cache line, in the midst of sentinels."""
    room = aligned_zeros(values.size + 64, values.dtype, offset=offset)
    room.fill(7)
    room[16 : 16 + values.size] = values
    return room, room[16 : 16 + values.size]


def assert_step_by_step(opt, param, expected):
    assert_same_bits(param, expected[0])
    state = opt.state_dict()["state"]
    if expected[0].size or state:
        names = kept_names(type(opt), opt.param_groups[0], param.shape)
        arrays = [array for array in expected[1:] if array is not None]
        for name, array in zip(names, arrays, strict=True):
            assert_same_bits(saved_entry(opt)[name], array)


def test_every_length(case, dtype, rng):
    cls, options = case
    for n in LENGTHS:
        start = rng.normal(size=n).astype(dtype)
        grads = list(gradients(rng, n, dtype, 3))
        room, param = place(start, offset=0)
        opt = cls(param, **options)
        with np.errstate(all="raise"):
            for grad in grads:
                opt.step(grad)
        assert_step_by_step(opt, param, run_reference(cls, options, start, grads))
        assert (room[:16] == 7).all(), n
        assert (room[16 + n :] == 7).all(), n


@pytest.mark.parametrize("n", [1, 17, 5003])
def test_every_offset_from_a_cache_line(case, dtype, n, rng):
    cls, options = case
    start = rng.normal(size=n).astype(dtype)
    grads = list(gradients(rng, n, dtype, 2))
    expected = run_reference(cls, options, start, grads)
    itemsize = np.dtype(dtype).itemsize
    for offset in range(0, 64, itemsize):
        _, param = place(start, offset)
        opt = cls(param, **options)
        for grad in grads:  # somewhere else than the parameter
            opt.step(place(grad, 64 - itemsize - offset)[1])
        assert_step_by_step(opt, param, expected)


def test_every_number_of_threads(case, dtype, rng):
    cls, options = case
    start = rng.normal(size=100_003).astype(dtype)
    grads = list(gradients(rng, start.size, dtype, 2))
    expected = run_reference(cls, options, start, grads)
    for threads in (1, 2, 3, 5, 8):
        param = start.copy()
        opt = cls(param, **options)
        for grad in grads:
            opt.step(grad, num_threads=threads)
        assert_step_by_step(opt, param, expected)


@pytest.mark.parametrize("offset", [0, 8, 40])
def test_every_way_that_threads_cut_an_array(optimizer, dtype, offset, rng):
    """Pieces begin on cache lines: lengths around whole numbers of them, and what lies before."""
    for n in range(2 * 16_384 - 20, 2 * 16_384 + 20, 3):
        start = rng.normal(size=n).astype(dtype)
        grad = rng.normal(size=n).astype(dtype)
        _, param = place(start, offset)
        optimizer(param).step(grad, num_threads=2)
        assert_same_bits(param, run_reference(optimizer, {}, start, [grad])[0])


def test_the_reference_evaluates_schedules(optimizer):
    """As the class does: with the completed steps."""
    param, grad = np.ones(3), np.full(3, 0.5)
    state = fresh_state(optimizer, {}, param)
    schedule = {"lr": lambda completed: 0.1 * (1 + completed)}
    ours = optimizer.reference_step(param, grad, *state, step=4, **schedule)
    assert_same_bits(ours[0], optimizer.reference_step(param, grad, *state, step=4, lr=0.4)[0])


def test_two_hundred_tensors_in_one_step(case, dtype, rng):
    cls, options = case
    shapes = [() if i % 50 == 0 else (i % 9, i) if i % 3 else (i * 37 % 4001,) for i in range(200)]
    starts = [np.array(rng.normal(size=shape)).astype(dtype) for shape in shapes]
    grads = [[next(gradients(rng, shape, dtype, 1)) for shape in shapes] for _ in range(2)]
    params = [start.copy() for start in starts]
    opt = cls(params, **options)
    for grad in grads:
        opt.step(grad, num_threads=2)
    for i, start in enumerate(starts):
        assert_same_bits(params[i], run_reference(cls, options, start, [g[i] for g in grads])[0])


@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_of_any_strides(case, dtype, order, rng):
    cls, options = case
    start = np.asarray(rng.normal(size=(6, 35)), dtype, order=order)
    grad = next(gradients(rng, start.shape, dtype, 1))
    layouts = {
        "C": np.ascontiguousarray(grad),
        "F": np.asfortranarray(grad),
        "sliced": np.repeat(grad, 3, axis=1)[:, ::3],
        "reversed": np.ascontiguousarray(grad[::-1, ::-1])[::-1, ::-1],
        "misaligned": misaligned(grad),
        "read-only": np.ascontiguousarray(grad),
    }
    layouts["read-only"].flags.writeable = False
    expected = run_reference(cls, options, start, [grad])
    for name, layout in layouts.items():
        param = start.copy(order="K")
        before = layout.copy()
        cls(param, **options).step(layout)
        assert_same_bits(param, expected[0])
        assert_same_bits(layout, before)
        assert param.flags[f"{order}_CONTIGUOUS"], name


def test_broadcast_gradient(case, dtype):
    cls, options = case
    start = np.ones((4, 5), dtype)
    grad = np.broadcast_to(dtype(0.5), start.shape)
    param = start.copy()
    cls(param, **options).step(grad)
    assert_same_bits(param, run_reference(cls, options, start, [grad])[0])


def test_special_values_spread_as_in_numpy(every_case, dtype):
    cls, options = every_case
    info = np.finfo(dtype)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny]
    special += [info.smallest_subnormal, 1.0]
    start = shaped(cls, options, np.repeat(np.array(special, dtype), len(special)))
    grads = [np.tile(np.array(special, dtype), len(special)).reshape(start.shape)]
    grads.append(np.ones_like(start))
    param = start.copy()
    opt = cls(param, **options)
    for grad in grads:
        opt.step(grad)
    assert_step_by_step(opt, param, run_reference(cls, options, start, grads))


STATE_KINDS = [(np.float32, None), (np.float64, None), (np.float32, BF16), (np.float32, np.uint8)]


@pytest.mark.parametrize(("dtype", "kept"), STATE_KINDS)
def test_state_about_the_smallest_normal_number(case, dtype, kept, rng):
    """In every 64th step what is subnormal becomes zero; in every step the bits are NumPy's."""
    cls, options = case
    info, n = np.finfo(dtype), 700
    special = [info.smallest_subnormal, info.tiny, np.nextafter(info.tiny, dtype(0)), 0, np.nan, 1]
    values = rng.uniform(0, 4, (4, n)).astype(dtype) * info.tiny
    values[:, : 6 * 20] = np.repeat(np.array(special, dtype), 20)
    arrays = [
        kept_as(
            values[k] * (rng.choice([-1, 1], n).astype(dtype) if sign else 1),
            format_of(cls, k, kept),
            sign,
        )
        if name
        else None
        for k, (name, sign) in enumerate(
            zip(cls.state_names(**options), signs_of(cls), strict=True)
        )
    ]
    grad = dtype(1e-25) * rng.normal(size=n).astype(dtype) * (rng.random(n) < 0.5)
    for step in (1, 63, 64, 65, 128):
        param, state = np.zeros(n, dtype), [a if a is None else a.copy() for a in arrays]
        with np.errstate(all="ignore"):
            expected = cls.reference_step(param, grad, *state, step=step, **options)
        getattr(op.kernels, cls.rule)(param, grad, *state, step=step, **options)
        for actual, wanted, sign in zip(
            [param, *state], expected, (1, *signs_of(cls)), strict=True
        ):
            if wanted is None:
                continue
            assert_same_bits(actual, wanted)
            if step % 64 == 0 and actual is not param:
                left = actual
                if actual.dtype == np.uint8:
                    left = op.formats.q8_decode(actual, n, signed=sign)
                left = abs(left.astype(dtype))
                assert not ((left > 0) & (left < info.tiny)).any()


def kept_as(values, kept, has_sign):
    if kept == np.uint8:
        return op.formats.q8_encode(np.nan_to_num(values), signed=has_sign)
    return values if kept is None else values.astype(kept)


@pytest.mark.parametrize(("dtype", "kept"), STATE_KINDS)
def test_a_decay_that_float32_rounds_to_zero(optimizer, dtype, kept):
    """It counts as a decay: -0.0 + 0.0 is 0.0, and 0 times infinity is NaN."""
    param = np.array([1, 1, np.inf, -0.0], dtype)
    grad = np.array([-0.0, 2, 2, -0.0], dtype)
    arrays = [
        a if a is None else kept_as(a, format_of(optimizer, k, kept), signs_of(optimizer)[k])
        for k, a in enumerate(fresh_state(optimizer, {}, param))
    ]
    expected = optimizer.reference_step(param, grad, *arrays, weight_decay=1e-60)
    getattr(op.kernels, optimizer.rule)(param, grad, *arrays, step=1, weight_decay=1e-60)
    for actual, wanted in zip([param, *arrays], expected, strict=True):
        if wanted is not None:
            assert_same_bits(actual, wanted)


def test_free_function_is_the_class(every_case, dtype, rng):
    cls, options = every_case
    start = shaped(cls, options, rng.normal(size=777).astype(dtype))
    grads = list(gradients(rng, start.shape, dtype, 3))
    param, state = start.copy(), fresh_state(cls, options, start)
    kernel = getattr(op.kernels, cls.rule)
    for t, grad in enumerate(grads, start=1):
        info = kernel(param, grad, *state, step=t, **options)
        lr = {**cls.defaults, **options}["lr"]
        assert info[:5] == op.StepInfo(t, lr, grad_norm=None, clipped=False, skipped=False)[:5]
    for actual, expected in zip(
        [param, *state], run_reference(cls, options, start, grads), strict=True
    ):
        if expected is not None:
            assert_same_bits(actual, expected)


def test_float32_is_as_accurate_as_float32_can_be(every_case, rng):
    """One step from the same state against float64: a few roundings of the numbers involved."""
    cls, options = every_case
    start = shaped(cls, options, rng.normal(size=1000).astype(np.float32))
    grad = rng.normal(size=start.shape).astype(np.float32)
    param = start.copy()
    cls(param, **options).step(grad)
    exact = run_reference(cls, options, start.astype(np.float64), [grad.astype(np.float64)])[0]
    # The step is at most 1 here, so param and step each add roundings of numbers below 8.
    scale = np.abs(exact) + np.abs(exact - start) * 8
    assert (np.abs(param - exact) <= 4 * np.finfo(np.float32).eps * scale).all()


def values_of(check):
    """Any value that a hyperparameter may have, up to 10."""
    match check:
        case Flag():
            return st.booleans()
        case Choice(names):
            return st.sampled_from(names)
        case Whole(low, below):
            return st.integers(low, int(min(below - 1, low + 3)))
        case Several(kinds):
            return st.tuples(*map(values_of, kinds))
        case Number(low, above, high, below):
            return st.floats(
                max(low, above, -10),
                min(high, below, 10),
                exclude_min=above >= low,
                exclude_max=below <= min(high, 10),
            )
        case Maybe(kind):
            return st.none() | values_of(kind)


@cache  # making a strategy takes longer than drawing from it
def settings_of(optimizer):
    return st.fixed_dictionaries(
        {
            name: st.just(default)
            if isinstance(check := optimizer.checks[name], Fixed)
            else st.just(default) | values_of(check)
            for name, default in optimizer.defaults.items()
        }
    )


@given(data=st.data(), step=st.integers(1, 10) | st.integers(1, 10**9))
@settings(max_examples=80)
def test_the_numbers_of_a_step_are_the_references(every_class, data, step):
    """The rule's header computes in double what the class does, in the same order."""
    values = data.draw(settings_of(every_class), "settings")
    row = every_class.row
    memory = {name: data.draw(st.floats(0, 1, exclude_max=True), name) for name in row.memory}
    expected = every_class.scalars(step, {**values, **memory})
    numbers = as_numbers(every_class.checks, values)
    hyper = [numbers[name] for name in row.hyper]
    found = op._core.at(row.name, step, hyper, list(memory.values()))
    assert tuple(expected) == (*row.scalars, *row.memory)
    assert_same_bits(found, list(expected.values()))


@given(data=st.data())
@settings(max_examples=60)
def test_any_arrays_and_hyperparameters(every_class, data):
    options = data.draw(settings_of(every_class), "settings")
    try:
        every_class.check_together(options)
    except ValueError:
        reject()
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    min_dims = 2 if every_class.row.is_directed(options) else 0
    shape = data.draw(hnp.array_shapes(min_dims=min_dims, max_side=20), "shape")
    arrays = hnp.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=32))
    start = data.draw(arrays, "param")
    grads = data.draw(st.lists(arrays, min_size=1, max_size=3), "grads")
    param = start.copy()
    opt = every_class(param, **options)
    for grad in grads:
        opt.step(grad)
    assert_step_by_step(opt, param, run_reference(every_class, options, start, grads))
