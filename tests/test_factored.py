"""State of another shape than its parameter: numbers for rows and columns, or for every axis."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import (
    accepts,
    assert_same_bits,
    digest,
    fresh_state,
    one_of_each,
    set_in_place,
    state_names,
)
from test_pairs import OPTIONS, Run

CASES = [
    (cls, case)
    for cls in op.optim.registry.values()
    if cls.row.factored
    for case in (cls.cases[0], {**cls.cases[-1], "weight_decay": 0.1, "maximize": True})
]
CLASSES = one_of_each([cls for cls, _ in CASES], lambda cls: cls)

# Axes around a block, a segment of a line (2048) and a strip of lines; rows much shorter and much
# longer than a tile; axes of length 1 everywhere; batches.
SHAPES = [
    (),
    (1,),
    (300,),
    (1, 1),
    (1, 5),
    (5, 1),
    (7, 5),
    (65, 64),
    (3, 255),
    (257, 3),
    (2, 2047),
    (2049, 2),
    (130, 513),
    (6000, 3),
    (3, 6000),
    (1, 40_001),
    (40_001, 1),
    (4, 3, 2),
    (5, 1, 9),
    (1, 9, 5),
    (9, 5, 1),
    (2, 3, 4, 5),
    (8, 8, 3, 3),
    (2, 2100, 3),
    (3, 2, 2100),
    (2100, 3, 2),
    (1, 2, 1, 3, 1),
]
# Nothing lies in an empty array, whatever its axes are.
EMPTY = [(0, 5), (5, 0), (2, 0, 3)]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, (case[0].__name__, *case[1]))))
def case(request):
    return request.param


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


@pytest.fixture(params=["C", "F"])
def order(request):
    return request.param


def numbers(rng, shape, dtype=np.float64, order="C"):
    return np.asarray(rng.normal(size=shape), dtype, order=order)


def spread(rng, shape, dtype=np.float64):
    """Gradients of many magnitudes, some of them 0."""
    size = 10.0 ** rng.uniform(-6, 3, shape)
    return np.asarray(rng.normal(size=shape) * size * (rng.random(shape) > 0.1), dtype)


def assert_is_reference(cls, options, start, grads, threads=1):
    param = start.copy(order="K")
    opt = cls(param, **options)
    expected = (start.copy(order="K"), *fresh_state(cls, options, start))
    for t, grad in enumerate(grads, start=1):
        opt.step(grad, num_threads=threads)
        expected = cls.reference_step(expected[0], grad, *expected[1:], step=t, **options)
    assert_same_bits(param, expected[0])
    kept = [array for array in expected[1:] if array is not None]
    entry = opt.state_dict()["state"].get(0, {})
    for name, array in zip(state_names(cls, options, start.shape), kept, strict=True):
        assert_same_bits(entry[name], array)


def test_every_shape(case, order, dtype, rng):
    cls, options = case
    for shape in [*SHAPES, *EMPTY]:
        start = numbers(rng, shape, dtype, order)
        assert_is_reference(cls, options, start, [spread(rng, shape, dtype) for _ in range(2)])


@pytest.mark.parametrize(
    "shape", [(130, 513), (3, 40_000), (40_000, 3), (5, 100, 90), (90, 5, 100)]
)
def test_every_number_of_threads(cls, order, shape, rng):
    start = numbers(rng, shape, np.float32, order)
    grads = [spread(rng, shape, np.float32) for _ in range(2)]
    for threads in (2, 3, 4):
        assert_is_reference(cls, {}, start, grads, threads)


@given(case=st.sampled_from(CASES), data=st.data())
@settings(max_examples=150)
def test_any_shape(case, data):
    cls, options = case
    dtype = data.draw(st.sampled_from([np.float32, np.float64]), "dtype")
    order = data.draw(st.sampled_from("CF"), "order")
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=5, max_side=9), "shape")
    arrays = hnp.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=32))
    start = np.asarray(data.draw(arrays, "param"), order=order)
    grads = data.draw(st.lists(arrays, min_size=1, max_size=3), "grads")
    assert_is_reference(cls, options, start, grads)


def test_special_values_spread_as_in_numpy(cls, dtype, order, rng):
    info = np.finfo(dtype)
    start = numbers(rng, (8, 80), dtype, order)
    grads = []
    for value in (np.nan, np.inf, info.max, info.smallest_subnormal):
        grads.append(numbers(rng, (8, 80), dtype))
        grads[-1][3, 70] = value
        with np.errstate(all="ignore"):
            assert_is_reference(cls, {}, start, grads)


def test_many_parameters_of_every_kind_in_one_step(cls, order, rng):
    """Small ones go together, and a thread may find any of them."""
    shapes = [*SHAPES, *EMPTY, (300, 300), (30, 40, 50)]
    starts = [numbers(rng, shape, np.float32, order) for shape in shapes]
    params = [start.copy(order="K") for start in starts]
    opt = cls(params)
    expected = [(start, *fresh_state(cls, {}, start)) for start in starts]
    for t in (1, 2):
        grads = [spread(rng, shape, np.float32) for shape in shapes]
        grads[5] = grads[-1] = None
        opt.step(grads, num_threads=2)
        for i, grad in enumerate(grads):
            if grad is not None:
                param, *state = expected[i]
                expected[i] = cls.reference_step(param, grad, *state, step=t)
    for param, (weights, *_) in zip(params, expected, strict=True):
        assert_same_bits(param, weights)


def test_subnormal_numbers_become_zero_in_every_64th_step(cls, dtype, order):
    tiny = np.finfo(dtype).tiny
    param = np.ones((3, 4), dtype, order=order)
    state = fresh_state(cls, {}, param)
    for array in state:
        if array is not None:
            array[...] = tiny / 4
    for step in (63, 64):
        kept = [None if a is None else a.copy(order="K") for a in state]
        getattr(op.kernels, cls.rule)(param.copy(order="K"), np.zeros_like(param), *kept, step=step)
        wanted = cls.reference_step(param, np.zeros_like(param), *state, step=step)[1:]
        for array, expected in zip(kept, wanted, strict=True):
            if array is not None:
                assert_same_bits(array, expected)
                assert (array == 0).all() == (step == 64)


# As functions


def test_free_function_takes_lists_of_every_kind(case, rng):
    cls, options = case
    shapes = [(4, 3), (5,), (2, 3, 4)]
    params = [numbers(rng, shape) for shape in shapes]
    grads = [numbers(rng, shape) for shape in shapes]
    fresh = [fresh_state(cls, options, param) for param in params]
    state = [list(of_all) for of_all in zip(*fresh, strict=True)]
    expected = [
        cls.reference_step(p, g, *fresh_state(cls, options, p), step=1, **options)
        for p, g in zip(params, grads, strict=True)
    ]
    getattr(op.kernels, cls.rule)(params, grads, *state, step=1, **options)
    for i, wanted in enumerate(expected):
        for actual, array in zip([params[i], *(of[i] for of in state)], wanted, strict=True):
            if array is not None:
                assert_same_bits(actual, array)


def test_shapes_of_state_are_what_a_run_keeps(case, rng):
    cls, options = case
    for shape in SHAPES:
        opt = cls(numbers(rng, shape), **options)
        opt.step(numbers(rng, shape))
        entry = opt.state_dict()["state"][0]
        rule = {name: value for name, value in options.items() if name in cls.checks}
        named = zip(cls.state_names(shape, **rule), cls.state_shapes(shape, **rule), strict=True)
        assert {n: entry[n].shape for n in entry if n != "step"} == {n: s for n, s in named if n}


def test_free_function_refuses_other_shapes_in_words(cls, order):
    kernel = getattr(op.kernels, cls.rule)
    param, grad = np.ones((4, 3), order=order), np.ones((4, 3))
    good = fresh_state(cls, {}, param)
    names = cls.state_names((4, 3))
    for k, name in enumerate(names):
        if name is None:
            continue
        for bad in (np.zeros(5), np.zeros((3, 4)), np.zeros((4, 4)), np.zeros(())):
            state = [bad if i == k else array for i, array in enumerate(good)]
            with pytest.raises(ValueError, match=rf"^{name}: expected .*shape .*, got \("):
                kernel(param, grad, *state, step=1)
        state = [None if i == k else array for i, array in enumerate(good)]
        with pytest.raises(TypeError, match=f"^{name}: expected a NumPy array, got NoneType"):
            kernel(param, grad, *state, step=1)
        read_only = good[k].copy()
        read_only.flags.writeable = False
        state = [read_only if i == k else array for i, array in enumerate(good)]
        with pytest.raises(ValueError, match=f"^{name}: expected a writable array"):
            kernel(param, grad, *state, step=1)
        state = [
            param.ravel("K")[: array.size].reshape(array.shape, order=order) if i == k else array
            for i, array in enumerate(good)
        ]
        with pytest.raises(ValueError, match=f"^{name}: expected memory of its own"):
            kernel(param, grad, *state, step=1)
    assert (param == 1).all()
    assert all(array is None or (array == 0).all() for array in good)


def test_a_parameter_that_was_reshaped_in_place_is_refused(cls, rng):
    param = numbers(rng, (4, 6))
    opt = cls(param)
    opt.step(np.ones((4, 6)))
    before = digest(opt)
    set_in_place(param, "shape", (6, 4))
    with pytest.raises(ValueError, match=r"^params: expected shape \(4, 6\), as its state has"):
        opt.step(np.ones((6, 4)))
    set_in_place(param, "shape", (4, 6))
    assert digest(opt) == before
    opt.step(np.ones((4, 6)))


# A run's life


def run_of(cls, rng, shapes, **options):
    params = [numbers(rng, shape, np.float32) for shape in shapes]
    return params, cls(params, **options)


def step_all(opt, params, seed, **how):
    rng = np.random.default_rng(seed)
    return opt.step([numbers(rng, param.shape, np.float32) for param in params], **how)


@pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
def test_saved_copied_and_pickled_runs_go_on(cls, state_format, tmp_path, rng):
    params, opt = run_of(cls, rng, [(70, 80), (5000,), (3, 4, 5)], state_format=state_format)
    for seed in (1, 2):
        step_all(opt, params, seed)
    opt.save(tmp_path / "run.npz")
    copied = copy.deepcopy(opt)
    pickled = pickle.loads(pickle.dumps(opt))
    loaded = cls([param.copy() for param in params], state_format=state_format)
    loaded.load(tmp_path / "run.npz")
    step_all(opt, params, 3)
    for other in (copied, pickled, loaded):
        own = other.param_groups[0]["params"]
        step_all(other, own, 3)
        assert digest(other) == digest(opt)


def test_a_run_goes_on_in_another_order(cls, rng):
    """Sums have another order there, so that bits differ."""
    params, opt = run_of(cls, rng, [(7, 5), (3, 4, 5)])
    step_all(opt, params, 1)
    other = cls([np.asfortranarray(param) for param in params])
    other.load_state_dict(opt.state_dict())
    step_all(opt, params, 2)
    step_all(other, params, 2)
    for mine, theirs in zip(params, other.param_groups[0]["params"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_a_checkpoint_with_other_shapes_is_refused(cls, rng):
    params, opt = run_of(cls, rng, [(7, 5)])
    step_all(opt, params, 1)
    before, saved = digest(opt), opt.state_dict()
    for name in state_names(cls, {}, (7, 5)):
        bad = copy.deepcopy(saved)
        bad["state"][0][name] = np.ones((5, 7), np.float32)
        with pytest.raises(ValueError, match=rf"\['{name}'\]: expected shape \("):
            opt.load_state_dict(bad)
    for shape in [(35,), (5, 7), (7, 5, 1)]:
        with pytest.raises(ValueError, match=r"expected (shape|the arrays)"):
            cls(np.ones(shape, np.float32)).load_state_dict(saved)
    assert digest(opt) == before


def test_only_state_like_the_parameter_has_fewer_bits(cls, rng):
    for state_format, dtype in (("bf16", ml_dtypes.bfloat16), ("q8", np.uint8)):
        params, opt = run_of(cls, rng, [(70, 80), (5000,)], state_format=state_format)
        step_all(opt, params, 1)
        entries = opt.state_dict()["state"]
        for key, shape in enumerate([(70, 80), (5000,)]):
            for name, kind, full in zip(
                cls.row.states, cls.row.shape, cls.row.in_full, strict=True
            ):
                if name in state_names(cls, {}, shape):
                    small = not full and (kind == "param" or len(shape) < 2)
                    assert entries[key][name].dtype == (dtype if small else np.float32)


def test_a_skipped_step_moves_nothing(cls, rng):
    params, opt = run_of(cls, rng, [(7, 5), (50, 60)], nonfinite="skip")
    twin_params = [param.copy() for param in params]
    twin = cls(twin_params, nonfinite="skip")
    step_all(opt, params, 1), step_all(twin, twin_params, 1)
    bad = [np.ones((7, 5), np.float32), np.full((50, 60), np.nan, np.float32)]
    assert opt.step(bad).skipped
    step_all(opt, params, 2), step_all(twin, twin_params, 2)
    for param, other in zip(params, twin_params, strict=True):
        assert_same_bits(param, other)


def test_gradients_in_sixteen_bits_and_masters(cls, rng):
    """The sums are of the gradients as they are given, and of the master's weights."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        master = numbers(rng, (40, 50), np.float32).astype(dtype).astype(np.float32)
        param = master.astype(dtype)
        opt = cls(param)
        state = fresh_state(cls, {}, master)
        for t in (1, 2):
            grad = numbers(rng, (40, 50), np.float32).astype(dtype)
            opt.step(grad)
            master, *state = cls.reference_step(master, grad.astype(np.float32), *state, step=t)
        assert_same_bits(param.astype(np.float32), master.astype(dtype).astype(np.float32))
        assert_same_bits(opt.state_dict()["state"][0]["master"], master)


def test_blocks_averages_and_new_groups(cls, rng):
    first, second = numbers(rng, (7, 5), np.float32), numbers(rng, (4, 3), np.float32)
    opt = cls([first], ema_decay=0.5)
    opt.step([np.ones((7, 5), np.float32)])
    before = first.astype(np.float64)
    opt.add_param_group({"params": [second], "lr": 0.5})
    opt.step([[np.ones((7, 5), np.float32)], [np.ones((4, 3), np.float32)]])
    with opt.averaged():
        shown = first.copy()
    np.testing.assert_array_equal(shown, ((before + first) / 2).astype(np.float32))
    assert set(state_names(cls, {}, (4, 3))) <= set(opt.state_dict()["state"][1])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_whole_life_with_each_option(cls, name, tmp_path):
    """Steps, accumulated ones, one that is not finite; saved and loaded in between."""
    for options in OPTIONS[name]:
        if not accepts(cls, options):
            continue
        run, twin = Run(options, cls=cls), Run(options, cls=cls)
        for number in range(4):
            finite = number != 2 or options.get("nonfinite") == "raise"
            for each in (run, twin):
                each.step(number, "accumulated" if number == 3 else "given", finite=finite)
            assert run.whole() == twin.whole()
            run.opt.save(tmp_path / "run.npz")
            start = {key: param.copy(order="K") for key, param in run.params.items()}
            run = Run(options, start, cls)
            run.opt.load(tmp_path / "run.npz")
            assert run.whole() == twin.whole()


# What the rules promise


def test_dtypes_in_one_group_do_not_meet(cls, rng):
    """PyTorch takes the epsilon of the first parameter's dtype for the whole group."""
    shapes = [(4, 3), (5,)]
    starts = [numbers(rng, shape).astype(dtype) for shape in shapes for dtype in ("f8", "f4")]
    grads = [(1e-9 * numbers(rng, start.shape)).astype(start.dtype) for start in starts]
    together, apart = ([start.copy() for start in starts] for _ in range(2))
    one = cls(together)
    several = [cls(param) for param in apart]
    for _ in range(2):
        one.step(grads)
        for opt, grad in zip(several, grads, strict=True):
            opt.step(grad)
    for param, other in zip(together, apart, strict=True):
        assert_same_bits(param, other)


def test_epsilon_is_that_of_the_dtype():
    for dtype in (np.float32, np.float64):
        own, given = np.ones((4, 3), dtype), np.ones((4, 3), dtype)
        grad = np.full((4, 3), 1e-9, dtype)
        op.Adafactor(own).step(grad)
        op.Adafactor(given, eps=(float(np.finfo(dtype).eps), 1e-3)).step(grad)
        assert_same_bits(own, given)


def test_no_bound_on_the_update(rng):
    """With d infinite, ten times the epsilon that divides is a tenth of the step."""
    steps = []
    for eps1 in (0.5, 5.0):
        w = np.ones((3, 4))
        op.Adafactor(w, eps=(eps1, 1e-3), d=np.inf).step(np.full((3, 4), 1e-6))
        steps.append(1 - w[0, 0])
    np.testing.assert_allclose(steps[0], 10 * steps[1], rtol=1e-6)


@given(shape=hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_sm3_bounds_the_sums_of_squares(shape, seed):
    """The paper's proposition: no accumulator of an element is less than the sum of its squares."""
    rng = np.random.default_rng(seed)
    opt = op.SM3(np.zeros(shape))
    total, before = np.zeros(shape), 0
    for _ in range(5):
        grad = rng.normal(size=shape)
        opt.step(grad)
        total += grad * grad
        kept = opt.state_dict()["state"][0]["accumulators"]
        own = np.split(kept, np.cumsum(shape)[:-1])
        for axis, numbers_ in enumerate(own):
            largest = total.max(axis=tuple(a for a in range(len(shape)) if a != axis))
            assert (numbers_ >= largest * (1 - 1e-12)).all()
        assert (kept >= before).all()
        before = kept


def test_sm3_of_a_vector_is_adagrad(rng):
    ours, theirs = np.ones(50), np.ones(50)
    sm3 = op.SM3(ours, lr=0.1, momentum=0.0, eps=0.0)
    adagrad = op.Adagrad(theirs, lr=0.1, eps=0.0)
    for _ in range(5):
        grad = rng.normal(size=50)
        sm3.step(grad), adagrad.step(grad)
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_adafactor_takes_no_cautious_decay():
    with pytest.raises(ValueError, match="^cautious_weight_decay: expected False for Adafactor"):
        op.Adafactor(np.ones((2, 2)), cautious_weight_decay=True, weight_decay=0.1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("eps", (0.1, None), "eps: expected a finite number >= 0, got None"),
        ("eps", (-1.0, 0.1), "eps: expected a finite number >= 0, got -1.0"),
        ("eps", 0.1, "eps: expected None or a finite number >= 0 and a finite number >= 0"),
        ("beta2_decay", 0.1, "beta2_decay: expected a finite number <= 0, got 0.1"),
        ("beta2_decay", -np.inf, "beta2_decay: expected a finite number <= 0, got -inf"),
        ("d", 0.5, "d: expected a number >= 1, got 0.5"),
        ("beta1", 1.0, r"beta1: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range(name, value, words):
    with pytest.raises((TypeError, ValueError), match=words):
        op.Adafactor(np.ones((2, 2)), **{name: value})
    opt = op.Adafactor(np.ones((2, 2)))
    with pytest.raises((TypeError, ValueError), match=words):
        opt.param_groups[0][name] = value
