"""State and parameters in fewer bits: the kernels equal the NumPy reference bit for bit."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import (
    SMALL_FORMATS,
    accepts,
    assert_same_bits,
    format_of,
    fresh_state,
    shaped,
    signs_of,
)
from onepass import formats
from onepass.optim import _reference, _settings
from storage_cases import blocks_of
from test_stages import EVERYTHING, rule_of

BF16 = ml_dtypes.bfloat16
STATE_FORMATS = (None, "bf16", "q8")
ROUNDINGS = ("master", "stochastic", "nearest")
# Whole numbers of blocks and parts of them, above and below the limit of 4096.
LENGTHS = [1, 257, 4095, 4096, 4097, 4351, 4352, 5000, 40_000]
# What a parameter may be, and how it is rounded.
PARAMETERS = [(np.float32, "master"), *itertools.product(SMALL_FORMATS, ROUNDINGS)]

in_formats = pytest.mark.parametrize("state_format", STATE_FORMATS)
in_small_formats = pytest.mark.parametrize("state_format", STATE_FORMATS[1:])


def numbers(rng, shape, dtype=np.float32, order="C"):
    """Numbers of every magnitude, some of them 0."""
    size = np.exp2(rng.integers(-30, 4, size=shape)) * (rng.random(shape) > 0.1)
    return np.asarray(rng.normal(size=shape) * size, order=order).astype(dtype, order="K")


def stored(array, size, state_format, signed):
    """A fresh state array as it is kept: from 4096 elements on, in the format."""
    if array is None or state_format is None or size < 4096:
        return array
    if state_format == "bf16":
        return array.astype(BF16, order="K")
    return formats.q8_encode(array, signed=signed)


class Reference:
    """One parameter of an optimizer, which steps in NumPy."""

    def __init__(self, cls, options, param, index=0, seed=0):
        self.cls, self.options, self.dtype = cls, options, param.dtype
        self.index, self.seed, self.steps = index, seed, 0
        full = {**_settings.GROUP_DEFAULTS, **options}
        self.has_master = param.dtype.itemsize == 2 and full["rounding"] == "master"
        wide = param.astype(np.float32, order="K") if param.itemsize == 2 else param.copy(order="K")
        self.weights = wide if self.has_master else param.copy(order="K")
        signs = signs_of(cls)
        self.state = [
            stored(array, param.size, format_of(cls, k, full["state_format"]), signs[k])
            for k, array in enumerate(fresh_state(cls, rule_of(options), wide))
        ]
        others = _settings.averages(full) + (full["lookahead_every"] is not None)
        self.state += [wide.copy(order="K")] * others

    def step(self, grad, factor=1.0):
        self.steps += 1
        if grad.itemsize == 2:
            grad = grad.astype(np.float32, order="K")
        with np.errstate(all="ignore"):
            self.weights, *self.state = self.cls.reference_step(
                self.weights,
                grad,
                *self.state,
                step=self.steps,
                grad_factor=factor,
                seed=self.seed,
                index=self.index,
                **self.options,
            )

    @property
    def param(self):
        return formats.narrow(self.weights, self.dtype) if self.has_master else self.weights

    def check(self, param, entry):
        """Parameter and state are those of the optimizer."""
        assert_same_bits(param, self.param)
        names = [*self.cls.state_names(**rule_of(self.options)), *self.cls.row.memory]
        expected = dict(zip(names, self.state[: len(names)], strict=True))
        for name in (None, *set(self.cls.row.memory) - set(self.cls.row.own_memory)):
            expected.pop(name, None)
        if self.has_master:
            expected["master"] = self.weights
        others = [name for name in ("slow", "average") if name in entry]
        expected |= zip(others, self.state[len(names) :], strict=True)
        numbers_ = {"step", "averaged", "entered", "shape", "order", *self.cls.saved_scalars}
        assert expected.keys() == entry.keys() - numbers_
        for name, array in expected.items():
            assert_same_bits(entry[name], array)


def norm_of(grads, grad_scale):
    wide = [g.astype(np.float32, order="K") if g.itemsize == 2 else g for g in grads]
    return _reference.grad_norm(wide, grad_scale)


def check_run(
    cls, groups, steps, own=(), grad_scale=1.0, threads=None, bound=False, accumulated=False
):
    """Step groups, each of one parameter with its options; `own` are the optimizer's."""
    own = dict(own)
    groups = [(param.copy(order="K"), options) for param, options in groups]
    references = [
        Reference(cls, options, param, index, own.get("seed", 0))
        for index, (param, options) in enumerate(groups)
    ]
    opt = cls([{"params": [param], **options} for param, options in groups], **own)
    buffers = [grad.copy(order="K") for grad in steps[0]]
    if bound:
        opt.bind([[buffer] for buffer in buffers])
    for grads in steps:
        norm = norm_of(grads, grad_scale)
        max_norm = own.get("max_grad_norm")
        clipping = _reference.clip_coefficient(norm, max_norm) if max_norm else 1.0
        is_left_out = norm > own.get("skip_grad_norm", math.inf)
        for reference, grad in zip(references, grads, strict=True):
            if is_left_out:
                continue
            # A sum begins with 0, and 0 + -0.0 is 0.
            reference.step(
                grad + grad.dtype.type(0) if accumulated else grad, clipping / grad_scale
            )
        if bound:
            for buffer, grad in zip(buffers, grads, strict=True):
                buffer[...] = grad
        else:
            buffers = [grad.copy(order="K") for grad in grads]
        given_ = None if bound else [[buffer] for buffer in buffers]
        if accumulated:
            opt.accumulate(given_, num_threads=threads)
            given_ = None
        info = opt.step(given_, grad_scale=grad_scale, num_threads=threads)
        assert info.skip_reason == ("grad_norm" if is_left_out else None)
        if info.grad_norm is not None:
            assert info.grad_norm == norm or math.isnan(norm)
        for buffer, grad in zip(buffers, grads, strict=True):
            assert_same_bits(buffer, np.zeros_like(grad) if own.get("clear_grads") else grad)
    state = opt.state_dict()["state"]
    for reference, (param, _), entry in zip(references, groups, state.values(), strict=True):
        reference.check(param, entry)
    return opt


@in_formats
def test_every_case_in_every_format(every_case, state_format, rng):
    cls, options = every_case
    for dtype, rounding in PARAMETERS:
        settings_ = {**options, "state_format": state_format, "rounding": rounding}
        if not accepts(cls, settings_):
            with pytest.raises(
                ValueError, match=f"^(state_format|rounding): expected .* for {cls.__name__}"
            ):
                cls(numbers(rng, 4097, dtype), **settings_)
            continue
        start, *steps = (shaped(cls, settings_, numbers(rng, 4097, dtype)) for _ in range(3))
        check_run(cls, [(start, settings_)], [[grad] for grad in steps], {"seed": 2**53 - 1})


@in_small_formats
@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_and_number_of_threads(optimizer, state_format, n, rng):
    steps = [[numbers(rng, n, BF16)] for _ in range(2)]
    for index, (dtype, rounding) in enumerate(PARAMETERS):
        threads = (1, 2, 3, 7)[index % 4]
        options = {"state_format": state_format, "rounding": rounding}
        check_run(optimizer, [(numbers(rng, n, dtype), options)], steps, threads=threads)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("bound", [False, True])
def test_many_tensors_of_all_formats(optimizer, threads, bound, rng):
    """Also small ones, in Fortran's order, in float64; the place among all chooses the bits."""
    shapes = [(5000,), (90, 70), (3, 5), (), (0,), (2 * 16_384 + 100,)]
    kinds = [
        (np.float32, {"state_format": "q8"}),
        (BF16, {"state_format": "q8", "lr": 0.1}),
        (np.float16, {"rounding": "stochastic", "weight_decay": 0.1}),
        (np.float64, {"lr": 0.1}),
        (np.float32, {"state_format": "bf16", "ema_decay": 0.9}),
        (BF16, {"state_format": "bf16", "rounding": "nearest", "maximize": True}),
        (np.float32, {}),
        (BF16, {"state_format": "q8", "rounding": "stochastic", "ema_decay": 0.5}),
    ]
    places = [(shape, *kind) for shape in shapes for kind in kinds]

    def each():
        return [
            numbers(rng, shape, dtype, order="F" if index % 3 else "C")
            for index, (shape, dtype, _) in enumerate(places)
        ]

    groups = [(param, options) for param, (*_, options) in zip(each(), places, strict=True)]
    own = {"max_grad_norm": 1e3, "seed": 7}
    check_run(optimizer, groups, [each(), each()], own, threads=threads, bound=bound)


@in_formats
@pytest.mark.parametrize("stages", EVERYTHING.values(), ids=EVERYTHING)
def test_every_stage(optimizer, state_format, stages, rng):
    """With gradients of each dtype."""
    own = {name: value for name, value in stages.items() if name in _settings.CHECKS}
    options = {name: value for name, value in stages.items() if name not in own}
    options["state_format"] = state_format
    groups = [
        (numbers(rng, size, dtype), {**options, "rounding": rounding})
        for dtype, rounding in PARAMETERS
        for size in (4100, 300)
    ]
    dtypes = [np.float32, *SMALL_FORMATS]

    def grads(first):
        each = (dtypes[(first + index) % 3] for index in range(len(groups)))
        return [
            numbers(rng, param.size, dtype) for (param, _), dtype in zip(groups, each, strict=True)
        ]

    steps = [grads(0), grads(1)]
    if "skip_grad_norm" in own:  # leaves out one of the two
        own["skip_grad_norm"] = min(norm_of(each, 2.0) for each in steps)
    check_run(optimizer, groups, steps, own, 2.0)
    if stages is EVERYTHING["all"]:
        check_run(optimizer, groups, [grads(1)] * 2, own, 0.5, accumulated=True)


@in_formats
def test_a_skipped_step_changes_nothing_but_the_counter(optimizer, state_format, rng):
    def run(bad):
        rng = np.random.default_rng(1)
        params = [numbers(rng, 5000, dtype) for dtype, _ in PARAMETERS]
        options = [{"rounding": rounding} for _, rounding in PARAMETERS]
        groups = [{"params": p, **o} for p, o in zip(params, options, strict=True)]
        opt = optimizer(groups, state_format=state_format, nonfinite="skip", ema_decay=0.9)
        for step in range(3):
            grads = [numbers(rng, p.size, p.dtype) for p in params]
            if bad and step == 1:
                spoiled = [g.copy() for g in grads]
                spoiled[-1][4999] = np.nan
                assert opt.step(spoiled).skipped
            opt.step(grads)
        return params, opt.state_dict()["state"]

    (params, state), (others, other_state) = run(True), run(False)
    for a, b in zip(params, others, strict=True):
        assert_same_bits(a, b)
    for key, entry in state.items():
        for name, array in entry.items():
            if isinstance(array, np.ndarray):
                assert_same_bits(array, other_state[key][name])
            else:
                assert array == other_state[key][name]


@in_small_formats
@pytest.mark.parametrize("small", SMALL_FORMATS)
def test_copies_beside_state_in_fewer_bits(optimizer, state_format, small, rng):
    params = [numbers(rng, size) for size in (5000, 40_000, 20)]
    others = [param.copy() for param in params]
    copies = [np.zeros(5000, small), np.zeros(40_000, small), None]
    opt = optimizer(params, state_format=state_format, copy_to=copies)
    other = optimizer(others, state_format=state_format)
    for _ in range(2):
        grads = [numbers(rng, param.size) for param in params]
        opt.step(grads, num_threads=2)
        other.step(grads)
        for param, plain, copy in zip(params, others, copies, strict=True):
            assert_same_bits(param, plain)
            if copy is not None:
                assert_same_bits(copy, param.astype(small))


@in_formats
def test_an_infinity_or_a_nan_spreads_as_the_reference_says(case, state_format, rng):
    cls, options = case
    steps = [[numbers(rng, 4500)] for _ in range(3)]
    steps[0][0][[0, 700, 4499]] = np.inf, -np.inf, np.nan
    for dtype, rounding in PARAMETERS:
        settings_ = {**options, "state_format": state_format, "rounding": rounding}
        check_run(cls, [(numbers(rng, 4500, dtype), settings_)], steps)


def test_in_8_bits_a_nan_is_all_of_its_blocks(case):
    cls, options = case
    param = np.ones(4608, np.float32)
    opt = cls(param, **options, state_format="q8")
    grad = np.ones_like(param)
    grad[700] = np.nan
    opt.step(grad)
    opt.step(np.ones_like(param))
    names = enumerate(cls.state_names(**options))
    has_state = any(name and format_of(cls, k, "q8") for k, name in names)
    broken = np.isnan(param)
    assert broken[512:768].all() if has_state else broken.sum() == 1
    assert not np.delete(broken, np.s_[512:768]).any()


def every_code(signed):
    """Blocks of all codes, one for every scale there is.

    But for the largest with a sign: with those the block's exponent would be one more.
    """
    scales = np.append(np.arange(236), 251) if signed else np.append(np.arange(224), 255)
    codes = np.arange(256)
    if signed:
        codes[127::128] -= 1
    return blocks_of(codes, scales)


def test_every_code_of_every_scale_is_read_and_written():
    """As momentum (with a sign) and as a mean of squares, which stay what they are."""
    signed, unsigned = every_code(True), every_code(False)
    for kernel, cls, codes, options in (
        (op.kernels.sgd, op.SGD, signed, {"momentum": 1 - 2**-30, "lr": 1.0}),
        (op.kernels.rmsprop, op.RMSprop, unsigned, {"alpha": 1 - 2**-30, "eps": 1.0}),
    ):
        size = codes.size // 257 * 256
        # A gradient of -0.0, which changes not even a zero's sign.
        param, grad, state = np.zeros(size, "f4"), np.full(size, -0.0, "f4"), codes.copy()
        with np.errstate(invalid="ignore"):
            expected = cls.reference_step(param, grad, codes, step=1, seed=5, **options)
        kernel(param, grad, state, step=1, seed=5, **options)
        assert_same_bits(param, expected[0])
        assert_same_bits(state, expected[1])
        is_number = np.repeat(codes[size:] < 250, 256)
        np.testing.assert_array_equal(state[:size][is_number], codes[:size][is_number])


@given(
    bits=hnp.arrays(np.uint32, st.integers(1, 700)),
    small=st.sampled_from([*SMALL_FORMATS, "q8", "q8 unsigned"]),
    rounding=st.sampled_from(ROUNDINGS[1:]),
    seed=st.integers(0, 2**53 - 1),
    step=st.integers(1, 2**52),
    shift=st.integers(0, 254),
)
def test_any_number_is_rounded_as_the_reference_rounds(bits, small, rounding, seed, step, shift):
    if shift:  # few binades, or most blocks were not finite
        bits = bits & np.uint32(0x81FFFFFF) | np.uint32(min(shift, 250) << 23)
    grad = bits.view(np.float32)
    if small == "q8":
        kernel, cls, state, options = op.kernels.sgd, op.SGD, True, {"momentum": 0.5}
    elif small == "q8 unsigned":
        kernel, cls, state, options = op.kernels.adagrad, op.Adagrad, True, {}
    else:
        kernel, cls, state, options = op.kernels.sgd, op.SGD, False, {"lr": 1.0}
    state = [np.zeros(formats.q8_size(grad.size), np.uint8)] * state
    param = np.zeros(grad.size, np.float32 if state else small)
    options = {**options, "rounding": rounding, "step": step, "seed": seed}
    with np.errstate(all="ignore"):
        expected = cls.reference_step(param, grad, *state or [None], **options)
    kernel(param, grad, *state, **options)
    for actual, array in zip([param, *state], expected, strict=False):
        assert_same_bits(actual, array)


@pytest.mark.parametrize("n", [1, 300, 5000])
def test_free_functions(case, n, rng):
    """State in any format, also of few elements; parameters in any, which have no master."""
    cls, options = case
    kernel = getattr(op.kernels, cls.rule)
    signs = signs_of(cls)
    for dtype, rounding, kept in itertools.product(
        (np.float32, *SMALL_FORMATS), ROUNDINGS[1:], ("f4", BF16, "q8")
    ):
        param = numbers(rng, n, dtype)
        state = fresh_state(cls, options, np.zeros(n, np.float32))
        for k, array in enumerate(state):
            if array is not None and format_of(cls, k, kept):
                q8 = formats.q8_encode(array, signed=signs[k])
                state[k] = q8 if kept == "q8" else array.astype(kept)
        expected = (param.copy(), *(None if a is None else a.copy() for a in state))
        for step in (3, 4):
            shared = {**options, "rounding": rounding, "seed": 11, "step": step}
            grad = numbers(rng, n, BF16)
            with np.errstate(all="ignore"):
                expected = cls.reference_step(
                    expected[0], grad.astype(np.float32), *expected[1:], **shared
                )
            kernel(param, grad, *state, **shared)
        for actual, array in zip((param, *state), expected, strict=True):
            assert (actual is None) == (array is None)
            if actual is not None:
                assert_same_bits(actual, array)


@in_small_formats
def test_small_tensors_keep_float32(case, state_format, rng):
    """So they take the steps that they take without a format."""
    cls, options = case
    shapes = [(), (1,), (300,), (4095,), (63, 65)]
    params = [np.asarray(rng.normal(size=shape)).astype(np.float32) for shape in shapes]
    others = [param.copy() for param in params]
    opt, other = cls(params, **options, state_format=state_format), cls(others, **options)
    for _ in range(3):
        grads = [numbers(rng, shape) for shape in shapes]
        opt.step(grads)
        other.step(grads)
    state, plain = opt.state_dict()["state"], other.state_dict()["state"]
    for index, shape in enumerate(shapes):
        assert_same_bits(params[index], others[index])
        for name, array in plain[index].items():
            assert_same_bits(state[index][name], array)
            assert np.ndim(array) == 0 or state[index][name].shape == shape


@pytest.mark.parametrize(("state_format", "bytes_per_element"), [("bf16", 2), ("q8", 257 / 256)])
def test_what_is_kept(case, state_format, bytes_per_element):
    cls, options = case
    opt = cls(np.ones((64, 256), np.float32, order="F"), **options, state_format=state_format)
    opt.step(np.ones((64, 256), np.float32, order="F"))
    for k, name in enumerate(cls.state_names(**options)):
        if not name:
            continue
        array = opt.state_dict()["state"][0][name]
        if format_of(cls, k, state_format):
            assert array.nbytes == 64 * 256 * bytes_per_element
            assert array.dtype == (BF16 if state_format == "bf16" else np.uint8)
        else:
            assert array.dtype == np.float32


@in_small_formats
def test_the_bits_are_those_of_seed_step_and_place(state_format, rng):
    """Where one differs, so does the state; a parameter's own step counts."""
    grad = rng.normal(size=5000).astype(np.float32)

    def state(steps=1, place=0, seed=0):
        params = [np.ones(5000, np.float32) for _ in range(3)]
        opt = op.SGD(params, momentum=0.5, state_format=state_format, seed=seed)
        alone = [None] * 3
        alone[place] = grad
        for _ in range(4):  # steps without this parameter
            opt.step([None if i == place else grad for i in range(3)])
        for _ in range(steps):
            opt.step(alone)
        return opt.state_dict()["state"][place]["momentum_buffer"]

    assert_same_bits(state(), state())
    reference = Reference(
        op.SGD, {"momentum": 0.5, "state_format": state_format}, np.ones(5000, np.float32)
    )
    reference.step(grad)
    assert_same_bits(state(), reference.state[0])
    for other in ({"place": 1}, {"place": 2}, {"seed": 1}):
        different = np.asarray(state() != state(**other)).mean()
        assert different > 0.1
