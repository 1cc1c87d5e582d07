"""The C interface gives the bits of the NumPy reference."""

import copy
import ctypes
import itertools

import ml_dtypes
import numpy as np
import pytest

import capi
import onepass as op
from capi import C
from helpers import (
    CASES,
    FORMATS,
    SMALL_FORMATS,
    accepts,
    assert_same_bits,
    case_id,
    digest,
    format_of,
    fresh_state,
    moves_rows,
    run_reference,
    shaped,
    signs_of,
)

LENGTHS = ((0, 1), (1, 1), (65, 2), (1000, 1), (40_003, 1), (40_003, 3))
"""Elements, and threads."""
VECTORS = [
    (cls, settings)
    for cls, settings in CASES
    if not cls.row.is_directed({**cls.defaults, **settings})
]
vectors = pytest.mark.parametrize("one", VECTORS, ids=case_id)


@vectors
def test_update(one, dtype, rng):
    cls, settings = one
    rule, options = capi.rule_of(cls), capi.options_of(cls, settings)
    n_states = len(cls.row.states)
    for n, threads in LENGTHS:
        param = rng.normal(size=n).astype(dtype)
        grads = [rng.normal(size=n).astype(dtype) for _ in range(2)]
        expected = run_reference(cls, settings, param, grads)
        kept = fresh_state(cls, settings, param)
        states = [*map(capi.address, kept[:n_states]), *[None] * (4 - n_states)]
        memory = np.array([float(number) for number in kept[n_states:]])
        for step, grad in enumerate(grads, 1):
            scalars = capi.scalars_of(cls, settings, step, memory)
            arrays = (capi.address(param), capi.address(grad), *states, capi.address(scalars))
            code = C.update(
                *(rule, options, capi.FORMATS[param.dtype], n, *arrays),
                *(capi.address(memory), threads),
            )
            assert code == capi.OK
        assert_same_bits(param, expected[0])
        for array, wanted in zip(kept[:n_states], expected[1 : n_states + 1], strict=True):
            assert (array is None) == (wanted is None)
            if array is not None:
                assert_same_bits(array, wanted)
        assert_same_bits(memory, np.array([float(number) for number in expected[n_states + 1 :]]))


BY_ROWS = [case for case in VECTORS if moves_rows(*case)]


@pytest.mark.parametrize("one", BY_ROWS, ids=case_id)
def test_update_of_rows(one, dtype, rng):
    cls, settings = one
    rule, options = capi.rule_of(cls), capi.options_of(cls, settings)
    n_states = len(cls.row.states)
    for (rows, width), threads in itertools.product([(50, 1), (40, 3), (700, 64)], [1, 2]):
        index = rng.permutation(rows)[: rows * 2 // 3].astype(np.int64)
        param = rng.normal(size=(rows, width)).astype(dtype)
        grad = rng.normal(size=(index.size, width)).astype(dtype)
        kept = fresh_state(cls, settings, param)
        expected = cls.reference_step(param, grad, *kept, step=1, rows=index, **settings)
        memory = np.array([float(number) for number in kept[n_states:]])
        scalars = capi.scalars_of(cls, settings, 1, memory)
        states = [*map(capi.address, kept[:n_states]), *[None] * (4 - n_states)]
        code = C.update_rows(
            *(rule, options, capi.FORMATS[param.dtype], rows, width, capi.address(index)),
            *(index.size, capi.address(param), capi.address(grad), *states),
            *(capi.address(scalars), capi.address(memory), threads),
        )
        assert code == capi.OK
        assert_same_bits(param, expected[0])
        for array, wanted in zip(kept[:n_states], expected[1 : n_states + 1], strict=True):
            if array is not None:
                assert_same_bits(array, wanted)
        assert_same_bits(memory, np.array([float(number) for number in expected[n_states + 1 :]]))


STAGES = {
    "nothing": {},
    "value and average": {"max_grad_value": 0.3, "ema_decay": 0.9},
    "mean and Lookahead": {"swa_start": 2, "lookahead_every": 2},
    "average in float32": {"ema_decay": 0.9, "average_dtype": "float32"},
    "average of every second step": {"ema_decay": 0.9, "average_every": 2},
    "norms of each": {"max_grad_norm_each": 0.5},
}


def kept_of(cls, settings, param, state_format=None):
    """What `reference_step` takes behind the gradient, as it begins."""
    wide = param.astype(np.float32) if param.itemsize == 2 else param
    kept = fresh_state(cls, settings, wide)
    for k, array in enumerate(kept):
        if array is None or format_of(cls, k, state_format) is None:
            continue
        if state_format == "bf16":
            kept[k] = array.astype(ml_dtypes.bfloat16)
        elif state_format == "q8":
            kept[k] = op.formats.q8_encode(array.ravel(order="K"), signed=signs_of(cls)[k])
    if settings.get("lookahead_every") is not None:
        kept.append(np.zeros_like(wide))
    if settings.get("ema_decay") is not None or settings.get("swa_start") is not None:
        dtype = wide.dtype if settings.get("average_dtype") == "float32" else np.float64
        kept.append(np.zeros_like(wide, dtype=dtype))
    return kept


def assert_steps_as_the_reference(
    cls, settings, params, rng, state_format=None, threads=2, grad_dtype=None
):
    """Three steps in C of these parameters, each beside the reference's."""
    together = cls.row.sums_over_all
    params = params[:1] if together else params  # the reference takes one at a time
    kept = [kept_of(cls, settings, param, state_format) for param in params]
    for step in (1, 2, 3):
        grads = [
            np.asarray(rng.normal(size=p.shape), order="C" if p.flags.c_contiguous else "F")
            for p in params
        ]
        grads = [grad.astype(grad_dtype or p.dtype) for grad, p in zip(grads, params, strict=True)]
        expected = [
            cls.reference_step(
                *(param.copy(order="K"), grad, *arrays),
                **{"step": step, "index": i, "seed": 5, "grad_factor": 0.5},
                **settings,
            )
            for i, (param, grad, arrays) in enumerate(zip(params, grads, kept, strict=True))
        ]
        call = capi.Step(
            cls, settings, params, grads, kept, step, grad_scale=2.0, seed=5, threads=threads
        )
        assert call.run() == capi.OK
        for param, arrays, wanted in zip(params, kept, expected, strict=True):
            for array, right in zip((param, *arrays), wanted, strict=True):
                assert (array is None) == (right is None)
                if array is not None:
                    assert_same_bits(array, right)


def variants(cls, choices):
    """Those of the choices of settings that the class takes where it needs no direction."""
    for choice in choices:
        settings = {**cls.cases[-1], **choice}
        if not accepts(cls, settings) or cls.row.is_directed({**cls.defaults, **settings}):
            settings = {**choice, **({"use_muon": False} if "use_muon" in cls.defaults else {})}
        if accepts(cls, settings):
            yield settings


def test_step_with_every_stage(every_class, dtype, rng):
    for settings in variants(every_class, STAGES.values()):
        params = [
            rng.normal(size=(30, 7)).astype(dtype),
            np.asfortranarray(rng.normal(size=(5, 4, 6)).astype(dtype)),
            rng.normal(size=40_000).astype(dtype),
            rng.normal(size=()).astype(dtype),
            np.empty(0, dtype),
        ]
        assert_steps_as_the_reference(every_class, settings, params, rng)


@pytest.mark.parametrize("grad_dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_step_with_gradients_in_every_format(every_class, grad_dtype, rng):
    """Beside parameters of any: widened, or rounded to the nearest float."""
    for settings in variants(every_class, [{"rounding": "nearest"}]):
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
            params = [rng.normal(size=shape).astype(dtype) for shape in ((7, 5), (3000,))]
            assert_steps_as_the_reference(every_class, settings, params, rng, grad_dtype=grad_dtype)


@pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
def test_step_in_every_format(every_class, state_format, rng):
    of_state = {"state_format": state_format}
    roundings = [{**of_state, "rounding": "stochastic"}, {**of_state, "rounding": "nearest"}]
    for settings in variants(every_class, roundings):
        for small in (np.float32, np.float16, ml_dtypes.bfloat16):
            params = [
                rng.normal(size=(7, 5)).astype(small),
                np.asfortranarray(rng.normal(size=(90, 70)).astype(small)),
                rng.normal(size=5000).astype(small),
            ]
            assert_steps_as_the_reference(every_class, settings, params, rng, state_format)


def test_clipping_by_norm_skipping_and_zeroing(optimizer, rng):
    params = [rng.normal(size=size).astype(np.float32) for size in (300, 20_000)]
    grads = [rng.normal(size=param.size).astype(np.float32) for param in params]
    kept = [kept_of(optimizer, {}, param) for param in params]
    norm = float(np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads)))
    begun = copy.deepcopy((params, grads, kept))
    call = capi.Step(
        optimizer, {}, params, grads, kept, max_norm=0.5, zero_grad=1, nonfinite=1, threads=2
    )
    assert call.run() == capi.OK
    assert call.result.norm == pytest.approx(norm, rel=1e-13)
    assert (call.result.clipped, call.result.skipped) == (1, 0)
    assert not any(grad.any() for grad in grads)
    factor = 0.5 / (call.result.norm + 1e-6)  # PyTorch's formula
    for param, was, grad, arrays in zip(params, *begun, strict=True):
        wanted = optimizer.reference_step(was, grad, *arrays, step=1, grad_factor=factor)
        assert_same_bits(param, wanted[0])
    before = [param.copy() for param in params]
    grads[1][5] = np.inf
    call = capi.Step(optimizer, {}, params, grads, kept, 2, nonfinite=1, zero_grad=1)
    assert call.run() == capi.OK
    assert call.result.skipped == 1
    assert not grads[1].any()
    for param, was in zip(params, before, strict=True):
        assert_same_bits(param, was)


SKIPPED_NONFINITE, SKIPPED_NORM = 1, 2


@pytest.mark.parametrize("nonfinite", [0, 1])
def test_a_step_is_left_out_above_a_norm(every_class, nonfinite, rng):
    """3 and 4, of a loss that is scaled by 2: norm 2.5. Not finite is above each norm too."""
    params = [shaped(every_class, {}, np.ones(n, np.float32)) for n in (300, 20_000)]
    grads = [np.zeros_like(param) for param in params]
    kept = [kept_of(every_class, {}, param) for param in params]
    grads[0].reshape(-1)[7], grads[1].reshape(-1)[-1] = 3.0, 4.0
    directions = [np.ones_like(param) for param in params]
    before = digest(params, kept)
    stages = {"grad_scale": 2.0, "nonfinite": nonfinite, "zero_grad": 1}

    def step(skip_norm):
        call = capi.Step(every_class, {}, params, grads, kept, skip_norm=skip_norm, **stages)
        if every_class.row.is_directed(every_class.defaults):
            norms = np.ones(2)
            for tensor, direction in zip(call.tensors, directions, strict=True):
                tensor.direction = capi.address(direction)
            arguments = (ctypes.byref(call.group), 1, call.tensors, 2, call.call)
            assert C.direct(*arguments, capi.address(norms), ctypes.byref(call.result)) == capi.OK
            assert norms.any() == (call.result.skipped == 0)
        assert call.run() == capi.OK
        return call.result

    grads_before = [grad.copy() for grad in grads]
    result = step(2.4)
    assert (result.norm, result.skipped, result.clipped) == (2.5, SKIPPED_NORM, 0)
    assert digest(params, kept) == before
    assert not any(grad.any() for grad in grads)
    grads[0].reshape(-1)[7] = np.inf
    assert step(1e30).skipped == SKIPPED_NONFINITE
    assert digest(params, kept) == before
    for grad, was in zip(grads, grads_before, strict=True):
        grad[...] = was
    assert step(2.5).skipped == 0
    assert digest(params, kept) != before


def test_a_call_of_before_there_was_a_norm_to_skip_above(rng):
    """A program that was compiled then passes a shorter struct: its steps skip nothing."""
    cls = op.SGD
    outcomes = []
    for size in (None, capi.Call.skip_norm.offset):
        params = [np.ones(3, np.float32)]
        call = capi.Step(cls, {}, params, [np.full(3, 9.0, np.float32)], [[]], skip_norm=1.0)
        if size:
            call.call.struct_size = size
        assert call.run() == capi.OK
        outcomes.append((call.result.skipped, digest(params) != digest([np.ones(3, np.float32)])))
    assert outcomes == [(SKIPPED_NORM, False), (0, True)]


def test_rows_of_a_step_add_up_what_stands_twice(rng):
    for cls, settings in BY_ROWS:
        param = rng.normal(size=(60, 5)).astype(np.float32)
        index = np.array([7, 3, 7, 59, 0, 3, 7], np.int64)
        grad = rng.normal(size=(7, 5)).astype(np.float32)
        kept = kept_of(cls, settings, param)
        expected = cls.reference_step(param, grad, *kept, step=1, rows=index, **settings)
        call = capi.Step(cls, settings, [param], [grad], [kept])
        tensor = call.tensors[0]
        tensor.rows, tensor.n_rows, tensor.width = capi.address(index), index.size, 5
        assert call.run() == capi.OK
        assert_same_bits(param, expected[0])


@pytest.mark.parametrize("small", [np.float16, ml_dtypes.bfloat16])
def test_a_master_and_its_copy(optimizer, small, rng):
    master = rng.normal(size=500).astype(np.float32)
    weights = master.astype(small)
    grad = rng.normal(size=500).astype(np.float32)
    kept = kept_of(optimizer, {}, master)
    weights[3] = 2.0  # somebody has set a weight
    seen = master.copy()
    seen[3] = 2.0
    expected = optimizer.reference_step(seen, grad, *kept, step=1)
    call = capi.Step(optimizer, {}, [master], [grad], [kept])
    tensor = call.tensors[0]
    tensor.copy, tensor.copy_format = capi.address(weights), capi.FORMATS[np.dtype(small)]
    tensor.is_master = 1
    assert call.run() == capi.OK
    assert_same_bits(master, expected[0])
    assert_same_bits(weights, expected[0].astype(small))


def test_directions_are_made_between_two_calls(every_class, rng):
    """A host makes them with its own matrix products; here with Python's."""
    if not every_class.row.is_directed(every_class.defaults):
        pytest.skip("its directions are the gradients")
    param, grad = (rng.normal(size=(12, 20)).astype(np.float32) for _ in range(2))
    kept = kept_of(every_class, {}, param)
    expected = every_class.reference_step(param, grad, *kept, step=1)
    direction, norm = np.empty_like(param), np.empty(1)
    call = capi.Step(every_class, {}, [param], [grad], [kept])
    assert call.run() == capi.CODES["NO_DIRECTION"]
    call.tensors[0].direction = capi.address(direction)
    arguments = (ctypes.byref(call.group), 1, call.tensors, 1, call.call)
    assert C.direct(*arguments, capi.address(norm), ctypes.byref(call.result)) == capi.OK
    assert norm[0] == pytest.approx(np.linalg.norm(direction.astype(float)))
    names = [C.name(capi.rule_of(every_class), capi.SETTINGS, i) for i in range(call.numbers.size)]
    numbers = dict(zip((name.decode() for name in names), call.numbers.tolist(), strict=True))
    every_class.finish_directions([(direction, float(norm[0]), numbers)])
    assert call.run() == capi.OK
    assert_same_bits(param, expected[0])


def test_sums_over_all_tensors(rng):
    for cls in op.optim.registry.values():
        if not cls.row.sums_over_all:
            continue
        shapes = [(30, 7), (20_000,), (5,)]
        params = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        opt = cls([param.copy() for param in params])
        kept = [kept_of(cls, {}, param) for param in params]
        for step in (1, 2, 3):
            grads = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
            call = capi.Step(cls, {}, params, grads, kept, step)
            assert call.run() == capi.OK
            assert call.result.d == opt.step(grads).d
        for param, wanted in zip(params, opt.param_groups[0]["params"], strict=True):
            assert_same_bits(param, wanted)


@pytest.mark.parametrize("dtype", [*FORMATS, *SMALL_FORMATS], ids=lambda d: np.dtype(d).name)
def test_batch_norm(dtype, rng):
    of_channels = dtype if dtype in FORMATS else np.float32
    for shape, relu, has_residual in itertools.product(
        [(6, 3, 5), (40, 64, 1), (1, 2, 3000)], [False, True], [False, True]
    ):
        outer, channels, inner = shape
        x, dy, z = (rng.normal(size=shape).astype(dtype) for _ in range(3))
        weight, bias, running_mean, running_var = (
            np.abs(rng.normal(size=channels)).astype(of_channels) for _ in range(4)
        )
        seen = running_mean.copy(), running_var.copy()
        z = z if has_residual else None
        given = {"weight": weight, "bias": bias}
        options = {"relu": relu, "residual": z, "axis": 1}
        y, mean, invstd = op.batch_norm_train(
            *(x,), **given, running_mean=seen[0], running_var=seen[1], momentum=0.25, **options
        )
        out = np.empty_like(x)
        batch_mean, batch_invstd = np.empty(channels), np.empty(channels)
        bn = capi.BatchNorm(
            *(outer, channels, inner, *map(capi.address, (x, z, dy, out))),
            **{name: capi.address(array) for name, array in given.items()},
            batch_mean=capi.address(batch_mean),
            batch_invstd=capi.address(batch_invstd),
            running_mean=capi.address(running_mean),
            running_var=capi.address(running_var),
            momentum=0.25,
            format=capi.FORMATS[x.dtype],
            relu=relu,
        )
        assert C.batch_norm_train(bn) == capi.OK
        for array, right in zip(
            (out, batch_mean, batch_invstd, running_mean, running_var),
            (y, mean, invstd, *seen),
            strict=True,
        ):
            assert_same_bits(array, right)
        bn.mean, bn.var = capi.address(running_mean), capi.address(running_var)
        assert C.batch_norm_infer(bn) == capi.OK
        right = op.batch_norm_infer(x, mean=running_mean, var=running_var, **given, **options)
        assert_same_bits(out, right)
        in_place = x.copy()
        bn.x = bn.out = capi.address(in_place)
        assert C.batch_norm_infer(bn) == capi.OK
        assert_same_bits(in_place, right)
        bn.x, bn.out = capi.address(x), capi.address(out)
        dz = np.empty_like(x)
        weight_grad, bias_grad = np.empty((2, channels), of_channels)
        bn.dresidual = capi.address(dz)
        bn.weight_grad, bn.bias_grad = capi.address(weight_grad), capi.address(bias_grad)
        frozen = op.batch_norm_infer_backward(
            dy, x, mean=running_mean, var=running_var, **given, **options
        )
        through = op.batch_norm_backward(
            dy, x, saved_mean=mean, saved_invstd=invstd, **given, **options
        )
        for grads, var in ((frozen, bn.var), (through, None)):
            bn.var = var
            assert C.batch_norm_backward(bn) == capi.OK
            found = (out, weight_grad, bias_grad, dz)[: len(grads)]
            for array, right in zip(found, grads, strict=True):
                assert_same_bits(array, right)
