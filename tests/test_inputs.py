"""What NumPy code has at hand: gradients of other dtypes, any order of axes, numbers, containers.

Gradients of another dtype are held to the reference in test_stages.py, on each instruction set.
"""

import copy
import io
import itertools
import pickle
from collections import OrderedDict, UserDict, deque
from enum import Enum, IntEnum

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, accepts, assert_same_bits, digest, fresh_state, peak_of, set_in_place
from onepass._memory import order_of

BF16 = ml_dtypes.bfloat16
DTYPES = (np.float32, np.float64, np.float16, BF16)
PAIRS = [
    pytest.param(param, grad, id=f"{np.dtype(grad)} beside {np.dtype(param)}")
    for param in DTYPES
    for grad in DTYPES
]


def computes_in(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def values_of(rng, shape, dtype):
    """Of many magnitudes, and some 0; as float64 they are none that float32 has."""
    size = 10.0 ** rng.uniform(-3, 3, shape)
    return np.asarray(rng.normal(size=shape) * size * (rng.random(shape) > 0.1)).astype(dtype)


# Gradients of any dtype beside parameters of any


@pytest.mark.parametrize(("dtype", "other"), PAIRS)
def test_a_gradient_is_taken_as_astype_would_give_it(every_class, dtype, other, rng):
    """Given, accumulated, bound and zeroed, with every stage, and of rows where these may move."""
    shape = (6, 50)
    twins = []
    grads = [values_of(rng, shape, other) for _ in range(4)]
    for convert in (np.asarray, lambda grad: grad.astype(computes_in(dtype))):
        w = np.linspace(-1, 1, 300).reshape(shape).astype(dtype)
        opt = every_class(w, max_grad_norm=1.0, max_grad_norm_each=0.5, nonfinite="skip")
        infos = [opt.step(convert(grads[0]), grad_scale=2)]
        opt.accumulate(convert(grads[1]))
        opt.accumulate(convert(grads[2]))
        infos.append(opt.step(grad_scale=2))
        own = convert(grads[3]).copy()
        opt.clear_grads = True
        opt.bind(own)
        infos.append(opt.step())
        assert not own.any()
        twins.append((opt, infos))
    assert digest(twins[0]) == digest(twins[1])


@pytest.mark.parametrize(("dtype", "other"), PAIRS)
def test_rows_of_any_dtype(dtype, other, rng):
    index, values = np.array([3, 1, 3, 0]), values_of(rng, (4, 50), other)
    twins = []
    for convert in (np.asarray, lambda grad: grad.astype(computes_in(dtype))):
        tables = [np.ones((5, 50), dtype) for _ in range(2)]
        opt = op.Adam({"e": tables[0], "w": np.ones(50, dtype)}, lr=0.1, max_grad_norm=0.5)
        info = opt.step_rows({"e": (index, convert(values)), "w": convert(values[0])})
        state = fresh_state(op.SGD, {}, tables[1])
        op.kernels.sgd(
            *(tables[1], convert(values), *state), rows=index, lr=0.5, step=1, rounding="nearest"
        )
        twins.append((opt, tables, info))
    assert digest(twins[0]) == digest(twins[1])


ROUNDED = {
    "ties to even, down": (1 + 2.0**-24, 1.0),
    "ties to even, up": (1 + 3 * 2.0**-24, 1 + 2.0**-22),
    "nearest": (1 + 2.0**-24 + 2.0**-50, 1 + 2.0**-23),
    "the largest": (float.fromhex("0x1.fffffefffffffp127"), float.fromhex("0x1.fffffep127")),
    "too large": (float.fromhex("0x1.ffffffp127"), np.inf),
    "negative and too large": (-1e300, -np.inf),
    "subnormal": (1.5 * 2.0**-149, 2.0**-148),
    "half of the smallest": (2.0**-150, 0.0),
}


@pytest.mark.parametrize(("value", "rounded"), ROUNDED.values(), ids=ROUNDED)
def test_a_double_beside_a_float_is_rounded_to_nearest(value, rounded):
    """IEEE 754's rule, also in the midst of many and in the last few."""
    for n in (1, 100):
        w = np.zeros(n, np.float32)
        op.SGD(w, lr=1.0).step(np.full(n, value))
        assert_same_bits(w, np.full(n, -rounded, np.float32) + np.float32(0))


def test_what_overflows_is_not_finite():
    w = np.zeros(2, np.float32)
    opt = op.SGD(w, lr=1.0, nonfinite="skip")
    assert opt.step(np.array([1.0, 1e39])).skipped
    assert opt.step(np.array([1.0, 1e38])).step == 1
    with pytest.raises(ValueError, match="^grads: expected finite values, got an infinity or NaN"):
        op.SGD(w, lr=1.0, nonfinite="raise").step(np.array([1.0, 1e39]))


def test_a_float_beside_a_double_is_widened_exactly():
    w = np.zeros(100)
    op.SGD(w, lr=1.0).step(np.full(100, 0.1, np.float32))
    assert (w == -float.fromhex("0x1.99999ap-4")).all()
    half = np.full(100, float.fromhex("0x1p-24"), np.float16)  # its smallest
    op.SGD(w, lr=1.0).step(half)
    assert (w == -float.fromhex("0x1.99999ap-4") - 2.0**-24).all()


def test_the_norm_is_that_of_what_the_rule_sees():
    grad = np.array([3 * (1 + 2.0**-40), 4.0])
    for dtype, norm in ((np.float32, 5.0), (np.float64, np.hypot(*grad))):
        assert op.SGD(np.zeros(2, dtype), max_grad_norm=9.0).step(grad).grad_norm == norm
    assert norm > 5


def test_sums_are_in_the_parameters_dtype():
    tiny = np.array([2.0**-30])
    for dtype, sum_ in ((np.float32, 1.0), (np.float64, 1 + 2.0**-29)):
        w = np.zeros(1, dtype)
        opt = op.SGD(w, lr=1.0)
        for grad in (np.ones(1, np.float32), tiny, tiny.astype(np.float32)):
            opt.accumulate(grad)
        opt.step()
        assert w == -sum_


@pytest.mark.parametrize(("dtype", "other"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_a_gradient_of_another_dtype_is_not_copied(dtype, other):
    n = 1_000_000
    w, grad = np.zeros(n, dtype), np.ones(n, other)
    opt = op.SGD(w, lr=1.0)
    opt.step(grad)
    peak = peak_of(lambda: (opt.step(grad), op.kernels.sgd(w, grad, lr=1.0)))
    assert (w == -3).all()
    assert peak < n


@pytest.mark.parametrize("bad", ["complex64", "int64", "bool", "longdouble", ">f4", ">f8", ">f2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_that_are_refused(dtype, bad):
    w = np.ones(3, dtype)
    opt = op.SGD([w])
    for grads in ([np.ones(3, bad)], [np.ones(3, bad)[::-1]]):
        with pytest.raises(TypeError, match=r"^grads\[0\]: expected dtype float32, float64, floa"):
            opt.step(grads)
    assert (w == 1).all()


# Parameters in any order of their axes

ORDERS = [
    axes
    for axes in itertools.permutations(range(3))
    if axes not in ((0, 1, 2), (2, 1, 0))  # C and F
]


def laid_out(array, axes):
    """A copy whose axes stand in memory in this order, that of the farthest elements first."""
    return np.array(array.transpose(axes), order="C").transpose(np.argsort(axes))


KEPT = {
    "as computed": {},
    "bf16": {"state_format": "bf16", "ema_decay": 0.9},
    "q8": {"state_format": "q8", "lookahead_every": 2},
    "everything": {
        "max_grad_norm": 0.5,
        "max_grad_norm_each": 0.25,
        "max_grad_value": 0.01,
        "ema_decay": 0.5,
        "weight_decay": 0.1,
    },
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_a_step_is_that_of_the_transposed_array(every_class, dtype, kept, rng):
    """For its memory is the same: to every rule but one of matrices, axes are a way to count."""
    row = every_class.row
    if "rows" in row.shape or row.is_directed(every_class.defaults):
        return
    if not accepts(every_class, kept) or (dtype == np.float64 and "state_format" in kept):
        return
    start = rng.normal(size=(15, 20, 14)).astype(dtype)  # of 4,200 elements: 8 bits are used
    steps = [values_of(rng, start.shape, np.float64) for _ in range(3)]
    for axes in ORDERS[:2]:
        w = laid_out(start, axes)
        twin = np.ascontiguousarray(start.transpose(axes))
        opt, other = every_class(w, **kept), every_class(twin, **kept)
        for grad in steps:
            infos = opt.step(grad), other.step(grad.transpose(axes))
            assert infos[0] == infos[1]
        assert_same_bits(w.transpose(axes), twin)
        if opt.param_groups[0]["ema_decay"]:
            with opt.averaged(), other.averaged():
                assert_same_bits(w.transpose(axes), twin)
        assert_same_bits(w.transpose(axes), twin)


@pytest.mark.parametrize("axes", ORDERS[1:3])
def test_a_step_is_that_of_the_reference(every_case, dtype, axes, rng):
    cls, options = every_case
    if "rows" in cls.row.shape:
        return
    start = laid_out(rng.normal(size=(4, 3, 5)).astype(dtype), axes)
    grads = [values_of(rng, start.shape, dtype) for _ in range(2)]
    w = start.copy(order="K")
    state = [
        None if array is None else laid_out(array, axes) if array.ndim == 3 else array
        for array in fresh_state(cls, options, start)
    ]
    own = [None if array is None else array.copy(order="K") for array in state]
    opt = cls(v := start.copy(order="K"), **options)
    arrays = start, *state
    for t, grad in enumerate(grads, start=1):
        arrays = cls.reference_step(arrays[0], grad, *arrays[1:], step=t, **options)
        getattr(op.kernels, cls.rule)(w, grad, *own, step=t, **options)
        opt.step(grad)
        for array in (w, v):
            assert_same_bits(array, arrays[0])
        for array, expected in zip(own, arrays[1:], strict=True):
            if expected is not None:
                assert_same_bits(array, expected)


@settings(max_examples=80)
@given(data=st.data())
def test_any_dense_layout_and_any_layout_of_the_gradient(data):
    """Of up to five axes, those of length 1 and 0 among them."""
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=5)))
    axes = data.draw(st.permutations(range(len(shape))))
    grad_axes = data.draw(st.permutations(range(len(shape))))
    rng = np.random.default_rng(0)
    start, values = rng.normal(size=shape), rng.normal(size=shape)
    grad = laid_out(values, grad_axes)
    if data.draw(st.booleans()):
        grad = np.stack([grad, grad], axis=-1)[..., 0]
    w, twin = laid_out(start, axes), start.copy()
    wide = {"lr": 0.1, "lookahead_every": 1, "ema_decay": 0.5, "max_grad_value": 0.5}
    opts = [op.Adam(param, **wide) for param in (w, twin)]
    for _ in range(2):
        for opt in opts:
            opt.step(grad)
    assert_same_bits(w, twin)
    opts[0].load_state_dict(opts[1].state_dict())
    for opt in opts:
        opt.step(values)
    assert_same_bits(w, twin)
    assert digest(opts[0].state_dict()) == digest(opts[1].state_dict())


WAYS_TO_RESUME = ("dict", "file", "pickle", "deepcopy")


@pytest.mark.parametrize("how", WAYS_TO_RESUME)
@pytest.mark.parametrize("kept", [KEPT["bf16"], KEPT["q8"], {"rounding": "stochastic"}])
def test_a_run_of_any_order_is_resumed(optimizer, how, kept, rng):
    """To the bit; but a pickle has such an array in C order: blocks of 8 bits begin elsewhere.

    So do random bits, which go by memory.
    """
    start = laid_out(rng.normal(size=(15, 20, 14)).astype(BF16), (1, 2, 0))
    grads = [values_of(rng, start.shape, np.float32) for _ in range(3)]
    opt = optimizer(w := start.copy(order="K"), **kept)
    opt.step(grads[0])
    opt.accumulate(grads[1])
    v = w.copy(order="K")
    if how in ("dict", "file"):
        resumed = optimizer(v, **kept)
        if how == "dict":
            resumed.load_state_dict(opt.state_dict())
        else:
            file = io.BytesIO()
            opt.save(file)
            file.seek(0)
            resumed.load(file)
    else:
        resumed = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        v = resumed.param_groups[0]["params"][0]
    assert_same_bits(w, v)
    if how == "pickle":
        for a, b in zip(opened_arrays(opt), opened_arrays(resumed), strict=True):
            assert_close(a, b)
        resumed.step()
        return
    assert order_of(v) == order_of(w) == [1, 2, 0]
    for each in (opt, resumed):
        each.step()
        each.step(grads[2])
    assert digest(opt) == digest(resumed)


def assert_close(a, b):
    """As 8-bit codes of the same numbers are, where other neighbours decide about their scale."""
    np.testing.assert_allclose(a, b, rtol=0.125, atol=np.abs(a).max() / 1000)


def opened_arrays(opt):
    """What is kept of the one parameter, in float32."""
    entry = opt.state_dict()["state"][0]
    param = opt.param_groups[0]["params"][0]
    signs = dict(zip(opt.row.states, opt.row.has_sign, strict=True))
    for name, value in entry.items():
        if isinstance(value, np.ndarray):
            yield op.optim._storage.opened(value, param, signs.get(name, True))


def test_codes_in_one_order_load_into_another(rng):
    """And what is written of a parameter in C or F order is what was always written."""
    start = rng.normal(size=(15, 20, 14)).astype(np.float32)
    grad = values_of(rng, start.shape, np.float32)
    for axes, order in (((0, 1, 2), "C"), ((2, 1, 0), "F"), ((1, 2, 0), [1, 2, 0])):
        opt = op.Adam(laid_out(start, axes), state_format="q8")
        opt.step(grad)
        saved = opt.state_dict()
        assert saved["state"][0]["order"] == order
        for other in ORDERS:
            resumed = op.Adam(laid_out(start, other), state_format="q8")
            resumed.load_state_dict(saved)
            for a, b in zip(opened_arrays(opt), opened_arrays(resumed), strict=True):
                assert_close(a, b)
    for bad in ([0, 1], [0, 1, 1], [0, 1, 2.0], ["0", "1", "2"], [[0], 1, 2], (1, 2, 0), "A"):
        saved["state"][0]["order"] = bad
        with pytest.raises(ValueError, match=r"'order'\]: expected 'C', 'F' or a list of the axes"):
            resumed.load_state_dict(saved)


def test_everything_beside_such_a_parameter_has_its_order():
    w = laid_out(np.ones((4, 3, 5), np.float32), (1, 2, 0))
    like = lambda dtype: np.zeros_like(w, dtype)  # noqa: E731
    opt = op.Adam(w, lr=0.5, copy_to=(copied := like(np.float16)), ema_decay=0.5)
    opt.step(np.ones(w.shape))
    np.testing.assert_array_equal(copied, w.astype(np.float16))
    opt.bind(like(np.float64))
    in_c = np.zeros(w.shape, np.float32)
    match = r": expected its axes in the order \(1, 2, 0\) in memory, as its parameter has, got str"
    before = digest(opt)
    with pytest.raises(ValueError, match=f"^grads{match}"):
        opt.bind(in_c)
    opt.clear_grads = True
    with pytest.raises(ValueError, match=f"^grads{match}"):
        opt.step(in_c)
    opt.clear_grads = False
    with pytest.raises(ValueError, match=f"^copy_to{match}"):
        op.SGD(w, copy_to=in_c.astype(np.float16))
    with pytest.raises(ValueError, match=f"^momentum_buffer{match}"):
        op.kernels.sgd(w, in_c, in_c, momentum=0.5, step=1)
    with pytest.raises(
        ValueError, match=r"^params\[0\]: expected an array in C order.*got strides"
    ):
        op.SGD([w]).step_rows({0: (np.array([1]), np.ones((1, 3, 5)))})
    assert digest(opt) == before


def test_numbers_of_rows_and_columns_need_c_or_f_order(every_class):
    if "rows" not in every_class.row.shape:
        return
    w = laid_out(np.ones((4, 3, 5)), (1, 2, 0))
    match = "expected C or F order for adafactor, which keeps numbers of rows and columns, got"
    with pytest.raises(ValueError, match=rf"^params\[1\]: {match}"):
        every_class([np.ones(3), w])
    state = fresh_state(every_class, {}, w)
    with pytest.raises(ValueError, match=f"^param: {match}"):
        getattr(op.kernels, every_class.rule)(w, w + 0, *state, step=1)
    with pytest.raises(ValueError, match="^param: expected C or F order, got its axes in the ord"):
        every_class.reference_step(w, w, *state)
    every_class(laid_out(np.ones((4, 1, 5)), (1, 2, 0))[:, 0].T).step(np.ones((5, 4)))


NOT_DENSE = {
    "gaps": lambda: np.zeros((2, 3, 4, 2))[..., 0].transpose(1, 0, 2),
    "reversed": lambda: np.zeros((2, 3, 4)).transpose(1, 0, 2)[:, ::-1],
    "repeated": lambda: np.lib.stride_tricks.as_strided(
        np.zeros(8), (2, 3, 4), (32, 0, 8), writeable=True
    ),
    "overlapping": lambda: np.lib.stride_tricks.as_strided(np.zeros(24), (2, 3, 4), (32, 8, 8)),
}


@pytest.mark.parametrize("make", NOT_DENSE.values(), ids=NOT_DENSE)
def test_arrays_with_gaps_are_refused(make):
    with pytest.raises(ValueError, match="^params: expected an array without gaps, in any order"):
        op.SGD(make())
    with pytest.raises(ValueError, match="^param: expected an array without gaps, in any order"):
        op.kernels.sgd(make(), np.ones((2, 3, 4)))


def test_strides_that_change_between_steps_are_seen():
    w = laid_out(np.zeros((3, 3, 3)), (1, 2, 0))
    opt = op.SGD(w, lr=1.0, momentum=0.5)
    opt.step(np.ones((3, 3, 3)))
    set_in_place(w, "strides", laid_out(w, (0, 2, 1)).strides)
    before = digest(opt)
    with pytest.raises(ValueError, match=r"^state\['momentum_buffer'\]: expected its axes in the"):
        opt.step(np.ones((3, 3, 3)))
    assert digest(opt) == before
    opt = op.SGD(w, lr=1.0)  # without state nothing stands in another order
    grad = np.arange(27.0).reshape(3, 3, 3)
    opt.step(grad)
    set_in_place(w, "strides", laid_out(w, (1, 2, 0)).strides)
    w[...] = 0
    opt.step(grad)
    assert (w == -grad).all()


def test_own_averages_of_any_order(every_class, rng):
    """Of ASGD and the schedule-free rules, whose blocks show weights that are computed."""
    if not every_class.own_average:
        return
    start = rng.normal(size=(4, 3, 5))
    twins = [laid_out(start, (1, 2, 0)), start.copy()]
    opts = [every_class(w, lr=0.1) for w in twins]
    for opt in opts:
        opt.step(start)
    with opts[0].averaged(), opts[1].averaged():
        assert_same_bits(*twins)
    assert_same_bits(*twins)


def test_threads_cut_an_array_of_any_order(optimizer, rng):
    start = laid_out(rng.normal(size=(40, 30, 50)), (2, 0, 1))
    results = []
    for threads in (1, 3):
        opt = optimizer(w := start.copy(order="K"), max_grad_norm=1.0)
        opt.step(start.astype(np.float32), num_threads=threads)
        results.append(digest(opt, w))
    assert results[0] == results[1]


# Numbers as gradients of parameters without axes

NUMBERS = {
    "float": 0.5,
    "int": 3,
    "negative int": -(2**70),
    "float64": np.float64(0.5),
    "float32": np.float32(0.25),
    "float16": np.float16(0.25),
    "bfloat16": BF16(0.25),
    "int64": np.int64(7),
    "uint8": np.uint8(7),
    "inf": float("inf"),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_is_the_array_of_it(dtype, number):
    """Alone and in structures, given and accumulated, to classes, functions and searches."""
    as_array = np.array(
        number,
        getattr(number, "dtype", None)
        if isinstance(number, np.floating) or type(number) is BF16
        else np.float64,
    )
    twins = []
    for grad in (number, as_array):
        b, w = np.ones((), dtype), np.ones(2, dtype)
        alone = op.Adam(b, lr=0.1)
        alone.step(grad)
        alone.accumulate(grad)
        alone.accumulate(grad)
        alone.step()
        own = np.ones((), dtype)
        tree = {"w": w, "layers": [own, {"b": np.ones((), dtype)}]}
        opt = op.AdamW(tree, lr=0.1, max_grad_norm=1.0, nonfinite="skip")
        opt.step({"w": w * 0, "layers": [grad, {"b": grad}]})
        opt.step({"w": None, "layers": (grad, {"b": None})})
        opt.step_rows({"layers.0": grad})
        op.kernels.sgd(free := np.ones((), dtype), grad, lr=0.5, step=1, rounding="nearest")
        op.kernels.sgd([free, w], [grad, w * 0], lr=0.5, step=1, rounding="nearest")
        twins.append((alone, opt, free))
    assert digest(twins[0]) == digest(twins[1])


def test_a_number_by_hand():
    b, w = np.zeros(()), np.zeros((), np.float32)
    op.SGD({"b": b, "w": w}, lr=0.5).step({"b": 0.5, "w": 0.1})
    assert b == -0.25
    assert w == np.float32(-0.5) * np.float32(0.1)
    c, search = b.copy(), op.line_search.backtracking()
    assert search(b, -0.5, lambda: float(b * b)) == search(c, 2 * c, lambda: float(c * c))
    assert_same_bits(b, c)


REFUSED_NUMBERS = {
    "bool": (True, TypeError, "expected a NumPy array, got bool"),
    "complex": (1j, TypeError, "expected a NumPy array, got complex"),
    "complex128": (np.complex128(1j), TypeError, "expected dtype float32.*got complex128"),
    "NumPy's bool": (np.bool_(True), TypeError, "expected dtype float32.*got bool"),
    "text": ("0.5", TypeError, "expected a NumPy array, got str"),
    "huge": (10**400, ValueError, "expected a number within float64's range, got a larger int"),
}


@pytest.mark.parametrize(
    ("number", "error", "match"), REFUSED_NUMBERS.values(), ids=REFUSED_NUMBERS
)
def test_numbers_that_are_refused(number, error, match):
    opt = op.SGD([np.ones(3), np.ones(())])
    before = digest(opt)
    for call in (opt.step, opt.accumulate):
        with pytest.raises(error, match=rf"^grads\[1\]: {match}"):
            call([None, number])
    assert digest(opt) == before


@pytest.mark.parametrize("number", [0.5, 1, np.int64(1)])
def test_numbers_that_stand_for_no_array(number):
    """Beside an array with axes, where a step would write them, and where later ones read them."""
    for w in (np.ones(3), np.ones(1), np.ones((1, 1)), np.ones(0)):
        with pytest.raises((TypeError, ValueError), match="^grads: expected "):
            op.SGD(w).step(number)
    name = type(number).__name__
    b = np.ones(())
    opt = op.SGD(b, clear_grads=True)
    with pytest.raises(TypeError, match=f"^grads: .* as clear_grads=True writes it, got .*{name}"):
        opt.step(number)
    opt.clear_grads = False
    with pytest.raises(TypeError, match=f"^grads: .* as later steps read it again, got .*{name}"):
        opt.bind(number)
    assert b == 1


class Layers:
    """A collection of its own, with an order and no indices."""

    def __init__(self, *layers):
        self.layers = layers

    def __len__(self):
        return len(self.layers)

    def __iter__(self):
        return iter(self.layers)

    def __contains__(self, layer):
        return False


class Table(Layers):
    """An array of another library that is a collection too, as pandas' are."""

    def __array__(self, dtype=None, copy=None):
        return np.array(self.layers)


def test_what_can_be_read_as_an_array_is_one(rng):
    """And no sequence; its float64 is rounded beside float32."""
    values = rng.normal(size=3)
    w = np.zeros((3,), np.float32)
    op.SGD([w], lr=1.0).step([Table(*values)])
    assert_same_bits(w, -values.astype(np.float32))
    op.SGD(w, lr=1.0).step(Table(*-values))
    assert not w.any()
    with pytest.raises(TypeError, match="^params: expected a NumPy array, got Table"):
        op.SGD(Table(*values))
    with pytest.raises(TypeError, match="^params: expected a NumPy array, got numpy.flatiter"):
        op.SGD(w.flat)


# Containers


CONTAINERS = {
    "values": lambda *arrays: dict(enumerate(arrays)).values(),
    "values of an OrderedDict": lambda *arrays: OrderedDict(enumerate(arrays)).values(),
    "values of a mapping": lambda *arrays: UserDict(enumerate(arrays)).values(),
    "reversed": lambda *arrays: reversed(dict(enumerate(arrays[::-1])).values()),
    "deque": lambda *arrays: deque(arrays),
    "generator": lambda *arrays: (array for array in arrays),
    "chain": lambda *arrays: itertools.chain(arrays),
    "a class": Layers,
    "tuple": lambda *arrays: arrays,
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_what_has_an_order_is_a_sequence(optimizer, make):
    """As parameters, gradients, bound ones, copies and groups, and in other structures."""
    twins = []
    for as_ in (make, lambda *arrays: list(arrays)):
        a, b = np.ones((2, 3), np.float32), np.ones(4, np.float32)
        grads = [np.full_like(array, 0.5) for array in (a, b)]
        opt = optimizer(as_(a, b), lr=0.1)
        opt.step(as_(*grads))
        opt.accumulate(as_(*grads))
        opt.step()
        opt.bind(as_(*grads))
        opt.step()
        copies = [np.zeros(array.shape, np.float16) for array in (a, b)]
        more = optimizer(as_(a, b), lr=0.1, copy_to=as_(*copies), grads=as_(*grads))
        more.step()
        deep = optimizer({"x": as_(a, as_(b))}, lr=0.1)
        deep.step({"x": as_(grads[0], as_(grads[1]))})
        groups = optimizer(as_({"params": as_(a)}, {"params": b, "lr": 0.5}))
        groups.step(as_({"params": as_(grads[0])}, {"params": grads[1]}))
        groups.step(as_(as_(grads[0]), grads[1]))
        twins.append((opt, more, deep, groups, copies))
    assert digest(twins[0]) == digest(twins[1])


@pytest.mark.parametrize(
    "make",
    [set, frozenset, dict.keys, dict.items],
    ids=["set", "frozenset", "keys", "items"],
)
def test_what_has_no_order_is_refused(make):
    """An ItemsView has one, but is a set too, and pairs are no parameters."""
    w = np.ones(())
    given = {"w": w} if make in (dict.keys, dict.items) else [0.5]
    opt = op.SGD([w])
    match = "expected a sequence, or a mapping from names, got "
    with pytest.raises(TypeError, match=f"^params: {match}"):
        op.SGD(make(given))
    with pytest.raises(TypeError, match=rf"^params\['x'\]\[1\]: {match}"):
        op.SGD({"x": [w, make(given)]})
    with pytest.raises(TypeError, match=f"^grads: {match}"):
        opt.step(make(given))
    with pytest.raises(TypeError, match=rf"^grads\['x'\]: {match}"):
        op.SGD({"x": [w]}).step({"x": make(given)})
    assert w == 1


def test_a_container_of_another_length():
    opt = op.SGD([np.ones(2), np.ones(2)])
    with pytest.raises(ValueError, match="^grads: expected a sequence of 2, got a sequence of 1"):
        opt.step({"w": np.ones(2)}.values())
    with pytest.raises(TypeError, match="^params: expected a NumPy array, got str"):
        op.SGD("w")


# Integers as names


def layers():
    return {0: {"w": np.ones((2, 2)), "b": np.zeros(2)}, 1: np.ones(3)}


def keys(opt):
    return [key for group in opt.state_dict()["param_groups"] for key in group["params"]]


def test_integers_as_names(every_class, tmp_path):
    params = {0: {"w": np.ones((2, 2)), "b": np.zeros((2, 1))}, 1: np.ones((3, 1))}
    opt = every_class(params)
    assert keys(opt) == ["0.w", "0.b", "1"]
    opt.step({1: np.ones((3, 1)), 0: {"b": np.ones((2, 1)), "w": np.ones((2, 2))}})
    assert list(opt.state_dict()["state"]) == ["0.w", "0.b", "1"]
    opt.save(tmp_path / "run.npz")
    resumed = every_class(copy.deepcopy(params))
    resumed.load(tmp_path / "run.npz")
    assert digest(opt) == digest(resumed)
    named = every_class({"0": copy.deepcopy(params[0]), "1": params[1].copy()})
    named.load_state_dict(opt.state_dict())  # for a key is text
    assert digest(opt) == digest(named)


def test_integers_as_names_of_gradients():
    opt = op.SGD(params := layers(), lr=1.0)
    grads = layers()
    for wrong in ({"0": grads[0], "1": grads[1]}, [grads[0], grads[1]], {0: grads[0], 2: grads[1]}):
        with pytest.raises(ValueError, match=r"^grads: expected the names \[0, 1\], got "):
            opt.step(wrong)
    op.SGD(OrderedDict(params), lr=1.0).step(UserDict(grads))
    assert (params[1] == 0).all()
    flat, views = op.pack(params)
    assert list(views) == [0, 1]
    assert flat.size == 9


class Color(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "name", [True, 1.0, None, (0, "w"), Color.RED, Level.LOW, np.int64(1), b"w"]
)
def test_other_names_are_refused(name):
    with pytest.raises(TypeError, match=r"^params\[1\]: expected names that are strings or integ"):
        op.SGD({1: {name: np.ones(2)}})


def test_zero_and_its_text_are_one_key():
    for names in ((0, "0"), ("0", 0)):
        expected = f"one name for each key in a checkpoint, got {names[0]!r} and {names[1]!r}"
        with pytest.raises(ValueError, match=rf"^params\['x'\]: expected {expected}"):
            op.SGD({"x": {name: {str(name): np.ones(1)} for name in names}})
    with pytest.raises(ValueError, match="expected a name of its own, got '0.1' again"):
        op.SGD({0: {1: np.ones(1)}, "0.1": np.ones(1)})


def test_places_and_names_that_are_integers(rng):
    """Places in a list load into names by place, unless that contradicts the names."""
    arrays = [rng.normal(size=3) for _ in range(2)]
    opt = op.SGD(arrays, momentum=0.5)
    opt.step([np.full(3, 1.0), np.full(3, 2.0)])
    saved = opt.state_dict()
    for names in ((0, 1), (3, 5), ("w", "b")):
        named = op.SGD(dict(zip(names, arrays, strict=True)), momentum=0.5)
        named.load_state_dict(saved)
        state = named.state_dict()["state"]
        assert [state[str(n)]["momentum_buffer"][0] for n in names] == [1.0, 2.0]
    other = op.SGD({1: arrays[1], 0: arrays[0]}, momentum=0.5)
    before = digest(other)
    with pytest.raises(ValueError, match=r"expected the parameters \['1', '0'\].*, got \[0, 1\]"):
        other.load_state_dict(saved)
    assert digest(other) == before
    numbered = op.SGD({0: arrays[0], 1: arrays[1]}, momentum=0.5)
    numbered.step({0: np.ones(3), 1: np.ones(3)})
    other.load_state_dict(numbered.state_dict())  # by name
    with pytest.raises(ValueError, match=r"expected the parameters \[0, 1\].*, got \['0', '1'\]"):
        opt.load_state_dict(numbered.state_dict())


def test_rows_by_names_that_are_integers():
    index, values = np.array([1]), np.ones((1, 2))
    for key in (0, "0"):
        tables = {0: np.zeros((3, 2)), 1: {2: np.zeros((3, 2))}}
        opt = op.SGD(tables, lr=1.0)
        opt.step_rows({key: (index, values), "1.2": (index, values)})
        for table in (tables[0], tables[1][2]):
            assert table.tolist() == [[0, 0], [-1, -1], [0, 0]]
    before = digest(opt)
    with pytest.raises(ValueError, match="^grads: expected each parameter once, got '0' again"):
        opt.step_rows({0: (index, values), "0": (index, values)})
    with pytest.raises(ValueError, match=r"^grads: expected keys among \['0', '1.2'\], got 1"):
        opt.step_rows({1: (index, values)})
    with pytest.raises(ValueError, match=r"^grads: expected keys among \[0\], got '0'"):
        op.SGD([np.zeros((3, 2))]).step_rows({"0": (index, values)})
    assert digest(opt) == before


def test_the_richest_class_meets_all_at_once(rng):
    """Integers as names, any order and dtype, a number: a step, and failed ones before it."""
    w = laid_out(rng.normal(size=(15, 20, 14)).astype(np.float32), (1, 2, 0))
    params = {0: {"w": w, "b": np.ones((), np.float32)}, 1: deque([np.ones(3, np.float16)])}
    opt = RICHEST(params, lr=0.1, state_format="q8", ema_decay=0.9, max_grad_norm=1.0)
    grads = {0: {"w": np.ones(w.shape), "b": 0.5}, 1: {"x": np.ones(3)}.values()}
    before = digest(opt)
    for bad in (True, np.ones(2), [1.0], "x"):
        with pytest.raises((TypeError, ValueError), match="^grads"):
            opt.step({**grads, 0: {"w": np.ones(w.shape), "b": bad}})
        assert digest(opt) == before
    assert opt.step(grads).step == 1
