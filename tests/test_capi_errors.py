"""Bad input from C: a code that says what and where, nothing changed, and never a crash."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import capi
import onepass as op
from capi import CODES, C
from helpers import digest, fresh_state

ADAM = op.optim.registry["adam"]
RULE = capi.rule_of(ADAM)
N = 100


def arrays(dtype=np.float32, n=N):
    """A parameter, a gradient, two states and the numbers of a step."""
    kept = [np.full(n, 0.25, dtype) for _ in range(4)]
    return [*kept, capi.scalars_of(ADAM, {}, 1)]


def misaligned(n=N):
    """An array that begins a byte past a float."""
    return np.zeros(4 * n + 8, np.uint8)[1 : 4 * n + 1]


def update(n=N, rule=RULE, options=0, kind=1, threads=1, **changes):
    """A call of onepass_update with some of its arguments changed; returns what it did."""
    param, grad, first, second, scalars = arrays()
    given = {"param": param, "grad": grad, "first": first, "second": second, "scalars": scalars}
    given.update(changes)
    before = digest(param, grad, first, second)
    pointers = {name: capi.address(array) for name, array in given.items()}
    code = C.update(
        *(rule, options, kind, n, pointers["param"], pointers["grad"], pointers["first"]),
        *(pointers["second"], None, None, pointers["scalars"], None, threads),
    )
    assert (digest(param, grad, first, second) != before) == (code == capi.OK)
    return code


UPDATES = {
    "rule -1": ({"rule": -1}, "NO_RULE"),
    "rule 1000": ({"rule": 1000}, "NO_RULE"),
    "option that it has not": ({"options": 4}, "NO_OPTION"),
    "options -1": ({"options": -1}, "NO_OPTION"),
    "option without its array": ({"options": 1}, "NO_ARRAY"),
    "no param": ({"param": None}, "NO_ARRAY"),
    "no grad": ({"grad": None}, "NO_ARRAY"),
    "no state": ({"second": None}, "NO_ARRAY"),
    "no scalars": ({"scalars": None}, "NO_ARRAY"),
    "param misaligned": ({"param": misaligned()}, "MISALIGNED"),
    "grad misaligned": ({"grad": misaligned()}, "MISALIGNED"),
    "state misaligned": ({"first": misaligned()}, "MISALIGNED"),
    "format of 16 bits": ({"kind": 3}, "BAD_FORMAT"),
    "format 77": ({"kind": 77}, "BAD_FORMAT"),
    "threads -1": ({"threads": -1}, "BAD_NUMBER"),
    "more elements than memory": ({"n": 2**62}, "BAD_SIZE"),
    "scalars of no step": ({"scalars": np.zeros(64)}, "BAD_NUMBER"),
    "scalars of an infinite step": ({"scalars": np.full(64, np.inf)}, "BAD_NUMBER"),
    "a good call": ({}, None),
    "nothing to do": ({"n": 0, "param": None, "grad": None, "first": None, "second": None}, None),
}


@pytest.mark.parametrize(("changes", "code"), UPDATES.values(), ids=UPDATES)
def test_update(changes, code):
    if changes.get("n") == 0:  # it changes nothing either
        with pytest.raises(AssertionError):
            update(**changes)
        return
    assert update(**changes) == (CODES[code] if code else capi.OK)


def update_rows(index, rows=20, width=5, rule=RULE, n_index=None, scalars=None):
    param, grad, first, second, own = arrays()
    before = digest(param, grad, first, second)
    n_index = index.size if n_index is None else n_index
    code = C.update_rows(
        *(rule, 0, 1, rows, width, capi.address(index), n_index),
        *map(capi.address, (param, grad, first, second)),
        *(None, None, capi.address(own if scalars is None else scalars), None, 1),
    )
    assert (digest(param, grad, first, second) != before) == (code == capi.OK)
    return code


@pytest.mark.parametrize("row", [-1, 20, 2**40, -(2**63)])
def test_rows_that_are_not_there(row):
    assert update_rows(np.array([0, row, 1], np.int64)) == CODES["BAD_ROW"]
    assert update_rows(np.array([0, 19, 1], np.int64)) == capi.OK


def test_rows_of_impossible_sizes():
    index = np.arange(3)
    assert update_rows(index, width=2**62) == CODES["BAD_SIZE"]
    assert update_rows(index, rows=2**62) == CODES["BAD_SIZE"]
    assert update_rows(index, n_index=2**61) == CODES["BAD_SIZE"]
    assert update_rows(index, rows=2**63, width=2) == CODES["BAD_SIZE"]


def test_rules_without_rows(every_class):
    traits = C.traits(capi.rule_of(every_class), 0)
    if traits & capi.ROWS:
        pytest.skip("its rows can move alone")
    arrays = [np.ones((4, 3), np.float32) for _ in range(6)]
    scalars = capi.scalars_of(every_class, {}, 1, np.array(every_class.row.memory_start))
    before = digest(*arrays)
    memory = np.array(every_class.row.memory_start, dtype=float)
    code = C.update_rows(
        *(capi.rule_of(every_class), capi.options_of(every_class, {}), 1, 4, 3),
        *(capi.address(np.arange(4)), 4, *map(capi.address, arrays)),
        *(capi.address(scalars), capi.address(memory), 1),
    )
    directed = traits & capi.DIRECTED or every_class.row.is_directed(every_class.defaults)
    assert code == CODES["NO_DIRECTION" if directed else "NO_ROWS"]
    assert digest(*arrays) == before


def test_scalars():
    scalars, settings = np.zeros(64), capi.settings_of(ADAM, {})
    call = (capi.address(settings), None, capi.address(scalars))
    assert C.scalars(RULE, 0, *call) == CODES["BAD_NUMBER"]
    assert C.scalars(RULE, 2**53 + 1, *call) == CODES["BAD_NUMBER"]
    assert C.scalars(-1, 1, *call) == CODES["NO_RULE"]
    assert C.scalars(RULE, 1, None, None, None) == CODES["NO_ARRAY"]
    assert not scalars.any()
    assert C.scalars(RULE, 1, None, None, capi.address(scalars)) == capi.OK
    for cls in op.optim.registry.values():
        if cls.row.memory:
            assert (
                C.scalars(capi.rule_of(cls), 1, None, None, capi.address(scalars))
                == (CODES["NO_ARRAY"])
            )
            assert C.memory_start(capi.rule_of(cls), None) == CODES["NO_ARRAY"]
    assert C.defaults(RULE, None) == CODES["NO_ARRAY"]
    assert C.defaults(99, capi.address(settings)) == CODES["NO_RULE"]


def test_settings_by_name():
    settings = capi.settings_of(ADAM, {})
    wanted = capi.settings_of(ADAM, {"lr": 0.25, "max_grad_value": 2.0})
    before = settings.copy()
    to = capi.address(settings)
    assert C.set(RULE, to, b"learning rate", 1.0) == CODES["NO_SETTING"]
    assert C.set(RULE, to, b"state_format", 1.0) == CODES["NO_SETTING"]  # the tensors say it
    assert C.set(99, to, b"lr", 1.0) == CODES["NO_RULE"]
    assert C.set(RULE, None, b"lr", 1.0) == C.set(RULE, to, None, 1.0) == CODES["NO_ARRAY"]
    assert digest(settings) == digest(before)
    assert C.set(RULE, to, b"lr", 0.25) == C.set(RULE, to, b"max_grad_value", 2.0) == capi.OK
    assert digest(settings) == digest(wanted)


def test_the_registry_answers_whatever_it_is_asked():
    for rule in (-1, 10**6, -(2**31)):
        assert C.rule_name(rule) is None
        assert C.count(rule, capi.STATES) == C.traits(rule, 0) == C.uses_state(rule, 0, 1, 0) == 0
        assert C.name(rule, capi.SETTINGS, 0) is None
        assert C.index(rule, capi.SETTINGS, b"lr") == C.state_start(rule, 0) == -1
        assert C.state_size(rule, 0, 0, None, 0) == 0
    assert C.rule(b"no such rule") == C.rule(None) == C.index(RULE, capi.SETTINGS, None) == -1
    assert C.count(RULE, 99) == C.traits(RULE, -1) == C.uses_state(RULE, 99, 1, 0) == 0
    assert C.name(RULE, 99, 0) is C.name(RULE, capi.STATES, -1) is None
    assert C.uses_state(RULE, 0, 1, 99) == C.uses_state(RULE, 0, 1, -1) == 0
    assert C.state_size(RULE, 0, 2, None, 0) == 0
    assert [C.bytes(kind, 257) for kind in range(-1, 7)] == [
        *(0, 1028, 1028, 2056, 514, 514, 514, 0)
    ]
    assert C.bytes(1, 2**62) == 0


def step(change):
    """A good step over two tensors, but for one change; returns the code and the result."""
    params = [np.full(N, 0.5, np.float32) for _ in range(2)]
    grads = [np.full(N, 0.25, np.float32) for _ in range(2)]
    kept = [fresh_state(ADAM, {}, param) for param in params]
    call = capi.Step(ADAM, {}, params, grads, kept)
    call.arrays = params, grads, kept
    change(call)
    before = digest(params, grads, kept)
    code = call.run()
    assert (digest(params, grads, kept) != before) == (code == capi.OK)
    return code, call.result


def setting(**members):
    """Change members of the second tensor."""

    def change(call):
        for name, value in members.items():
            setattr(call.tensors[1], name, value)

    return change


def in_call(**members):
    def change(call):
        for name, value in members.items():
            setattr(call.call, name, value)

    return change


def in_group(**members):
    def change(call):
        for name, value in members.items():
            setattr(call.group, name, value)

    return change


def averaging(**settings):
    """Change settings of a group, both of whose tensors have averages."""

    def change(call):
        call.averages = [np.full(N, 0.5) for _ in range(2)]
        for tensor, average in zip(call.tensors, call.averages, strict=True):
            tensor.average = average.ctypes.data
        call.settings = np.empty(C.count(RULE, capi.SETTINGS))
        to = capi.address(call.settings)
        C.defaults(RULE, to)
        for name, value in settings.items():
            assert C.set(RULE, to, name.encode(), value) == capi.OK
        call.group.settings = to

    return change


def no_state(call):
    call.tensors[1].state[0] = None


def state_too_many(call):
    call.tensors[1].state[2] = call.tensors[1].state[0]


def state_of_nobody(call):
    call.tensors[1].state[3] = call.tensors[1].state[0]


def overlapping(call):
    call.tensors[1].param = call.tensors[0].param + 4 * (N - 1)


def same_gradient(call):
    call.tensors[1].grad = call.tensors[0].grad


def zeroed_twice(call):
    same_gradient(call)
    call.call.zero_grad = 1


def gradient_is_state(call):
    call.tensors[1].grad = call.tensors[1].state[0]


def infinite(call):
    call.arrays[1][1][7] = np.inf
    call.call.nonfinite = 2


ROWS = np.array([0, 1, 20], np.int64)
STEPS = {
    "a good call": (setting(), None, 0),
    "one gradient for two tensors": (same_gradient, None, 0),
    "param that is not there": (setting(param=None), "NO_ARRAY", 1),
    "state that is not there": (no_state, "NO_ARRAY", 16),
    "state that nobody uses": (state_too_many, "NO_ARRAY", 18),
    "average that nobody asked for": (setting(average=64), "NO_ARRAY", 3),
    "slow weights that nobody asked for": (setting(slow=64), "NO_ARRAY", 5),
    "copy without a format": (setting(copy=64), "BAD_FORMAT", 4),
    "master without a copy": (setting(is_master=1, copy_format=3), "NO_ARRAY", 4),
    "param misaligned": (setting(param=2), "MISALIGNED", 1),
    "grad misaligned": (setting(grad=2), "MISALIGNED", 2),
    "format 77": (setting(format=77), "BAD_FORMAT", 1),
    "gradient of codes": (setting(grad_format=5), "BAD_FORMAT", 2),
    "state of doubles": (setting(state_format=2), "BAD_FORMAT", 16),
    "size": (setting(size=2**62), "BAD_SIZE", 0),
    "steps": (setting(steps=-1), "BAD_NUMBER", 0),
    "more steps than can be counted": (setting(steps=2**53), "BAD_NUMBER", 0),
    "an average of the future": (setting(average_from=1), "BAD_NUMBER", 0),
    "reserved": (setting(reserved=1), "BAD_NUMBER", 0),
    "a fifth state": (state_of_nobody, "NO_ARRAY", 19),
    "an average": (averaging(ema_decay=0.9, average_every=2), None, 0),
    "every 0th step": (averaging(ema_decay=0.9, average_every=0), "BAD_NUMBER", None),
    "every half step": (averaging(ema_decay=0.9, average_every=0.5), "BAD_NUMBER", None),
    "every step of none": (averaging(ema_decay=0.9, average_every=np.nan), "BAD_NUMBER", None),
    "an average from step 0 on": (averaging(swa_start=0), "BAD_NUMBER", None),
    "an average from no step on": (averaging(swa_start=-np.inf), "BAD_NUMBER", None),
    "no such group": (setting(group=1), "BAD_NUMBER", 0),
    "group -1": (setting(group=-1), "BAD_NUMBER", 0),
    "overlap": (overlapping, "OVERLAP", 1),
    "gradients that are zeroed twice": (zeroed_twice, "OVERLAP", 2),
    "gradient that is state": (gradient_is_state, "OVERLAP", None),
    "row that is not there": (
        setting(rows=ROWS.ctypes.data, n_rows=3, width=5),
        "BAD_ROW",
        6,
    ),
    "rows that do not divide": (setting(rows=ROWS.ctypes.data, n_rows=3, width=7), "BAD_SIZE", 6),
    "rows without width": (setting(rows=ROWS.ctypes.data, n_rows=3), "BAD_SIZE", 6),
    "rows, and state in 16 bits": (
        setting(rows=ROWS.ctypes.data, n_rows=2, width=5, state_format=3),
        "NO_ROWS",
        6,
    ),
    "not finite": (infinite, "NONFINITE", 2),
    "threads": (in_call(threads=-1), "BAD_NUMBER", None),
    "what to do": (in_call(nonfinite=3), "BAD_NUMBER", None),
    "scale": (in_call(grad_scale=np.nan), "BAD_NUMBER", None),
    "scale below zero": (in_call(grad_scale=-1.0), "BAD_NUMBER", None),
    "scale that is subnormal": (in_call(grad_scale=1e-40), "BAD_NUMBER", None),
    "norm": (in_call(max_norm=-1.0), "BAD_NUMBER", None),
    "norm that is none": (in_call(max_norm=np.nan), "BAD_NUMBER", None),
    "norm to skip above": (in_call(skip_norm=-1.0), "BAD_NUMBER", None),
    "norm to skip above that is none": (in_call(skip_norm=np.nan), "BAD_NUMBER", None),
    "norm to skip above that is infinite": (in_call(skip_norm=np.inf), "BAD_NUMBER", None),
    "small call": (in_call(struct_size=8), "BAD_SIZE", None),
    "small tensors": (in_call(tensor_size=176), "BAD_SIZE", None),
    "odd tensors": (in_call(tensor_size=185), "BAD_SIZE", None),
    "small groups": (in_call(group_size=0), "BAD_SIZE", None),
    "rule": (in_group(rule=77), "NO_RULE", None),
    "options": (in_group(options=77), "NO_OPTION", None),
}


@pytest.mark.parametrize(("change", "code", "array"), STEPS.values(), ids=STEPS)
def test_step(change, code, array):
    found, result = step(change)
    assert found == (CODES[code] if code else capi.OK)
    if code and array is not None:
        assert (result.tensor, result.array) == (1, array)
    if not code:
        assert (result.tensor, result.array) == (-1, 0)
    if code == "OVERLAP":
        assert result.other_tensor in (0, 1)
        assert result.other_array != 0


def test_unchecked_overlap_is_not_looked_for():
    def change(call):
        zeroed_twice(call)
        call.call.unchecked = 1

    assert step(change)[0] == capi.OK


def test_a_larger_struct_of_a_later_header_is_read_where_it_asks_for_nothing_new():
    class Later(ctypes.Structure):
        _fields_ = (*capi.Tensor._fields_, ("more", ctypes.c_int64 * 3))

    outcomes = []
    for kind, more in ((capi.Tensor, 0), (Later, 0), (Later, 1)):
        params = [np.full(N, 0.5, np.float32) for _ in range(2)]
        grads = [np.full(N, 0.25, np.float32) for _ in range(2)]
        kept = [fresh_state(ADAM, {}, param) for param in params]
        call = capi.Step(ADAM, {}, params, grads, kept)
        tensors = (kind * 2)()
        for later, known in zip(tensors, call.tensors, strict=True):
            ctypes.memmove(ctypes.byref(later), ctypes.byref(known), ctypes.sizeof(known))
        if more:
            tensors[1].more[2] = more
        call.tensors = tensors
        call.call.tensor_size = ctypes.sizeof(kind)
        assert call.run() == (CODES["BAD_SIZE"] if more else capi.OK)
        outcomes.append(digest(params, kept))
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_no_tensors(every_class):
    settings = capi.settings_of(every_class, {})
    group = capi.Group(capi.rule_of(every_class), 0, capi.address(settings))
    result = capi.Result()
    assert C.step(ctypes.byref(group), 1, None, 0, capi.Call(), ctypes.byref(result)) == capi.OK
    assert (result.tensor, result.skipped) == (-1, 0)


def test_groups_that_do_not_go_together(every_class):
    settings = [capi.settings_of(every_class, {}) for _ in range(2)]
    rule = capi.rule_of(every_class)
    groups = (capi.Group * 2)(*[capi.Group(rule, 0, capi.address(s)) for s in settings])
    place = C.index(rule, capi.SETTINGS, b"d0")
    settings[1][place if place >= 0 else 0] *= 2
    together = every_class.row.sums_over_all
    expected = CODES["DISAGREE"] if together else capi.OK
    assert C.step(groups, 2, None, 0, capi.Call(), None) == expected
    groups[1].rule = (rule + 1) % C.rules()
    groups[1].settings = None
    assert C.step(groups, 2, None, 0, capi.Call(), None) == CODES["DISAGREE"]


def test_shapes(every_class):
    """Of a rule that needs them: of any order of axes, also of none, and no more than there are."""
    if not every_class.row.factored:
        pytest.skip("it needs no shape")
    for shape, size, good in (
        ((3, 0), 0, True),
        ((0, 3), 0, True),
        ((2, 5, 10), N, True),
        ((N,), N, True),
        ((2, N), N, False),
        ((-1, -N), N, False),
        ((2**32, 2**32), 0, False),
        ((*[1] * 63, N), N, True),
        ((*[1] * 64, N), N, False),
    ):
        param = np.full(size, 0.5, np.float32)
        as_shaped = param.reshape(shape) if good else param
        kept = fresh_state(every_class, {}, as_shaped)
        call = capi.Step(every_class, {}, [param], [param.copy()], [kept])
        sizes = np.array(shape, np.int64)
        call.tensors[0].shape, call.tensors[0].ndim = capi.address(sizes), len(shape)
        assert call.run() == (capi.OK if good else CODES["BAD_SIZE"]), shape
    sizes = np.array([2**32, 2**32], np.int64)
    assert C.state_size(RULE, 0, 2, capi.address(sizes), 0) == 0
    assert C.state_size(RULE, 0, 2, capi.address(-sizes), 0) == 0


def test_no_rows_are_no_whole_gradient():
    for n_rows, code in ((1, "NO_ARRAY"), (0, None)):
        found, _ = step(setting(rows=None, n_rows=n_rows, width=5))
        assert found == (CODES[code] if code else capi.OK)
    assert step(setting(rows=ROWS.ctypes.data, n_rows=2, width=5, f_order=1))[0] == CODES["NO_ROWS"]
    full = setting(rows=ROWS.ctypes.data, n_rows=2, width=5, state_format=1)
    assert step(full)[0] == capi.OK


def test_no_pointers_at_all():
    assert C.step(None, 0, None, 0, None, None) == CODES["NO_ARRAY"]
    assert C.step(None, 1, None, 0, capi.Call(), None) == CODES["NO_ARRAY"]
    assert C.step(None, 0, None, 1, capi.Call(), None) == CODES["NO_ARRAY"]
    assert C.step(None, 0, None, 0, capi.Call(), None) == capi.OK
    tensor = ctypes.byref(capi.Tensor())  # more than there can be
    assert C.step(None, 0, tensor, 2**62, capi.Call(), None) == CODES["NO_MEMORY"]
    assert C.direct(None, 0, None, 0, capi.Call(), None, None) == CODES["NO_ARRAY"]
    stale = capi.Result()
    stale.tensor = 7
    stale_call = (None, 0, None, 0, capi.Call(), None, ctypes.byref(stale))
    assert C.direct(*stale_call) == CODES["NO_ARRAY"]
    assert stale.tensor == -1
    small = capi.Result()
    small.struct_size = 8
    assert C.step(None, 0, None, 0, capi.Call(), ctypes.byref(small)) == CODES["BAD_SIZE"]
    for name in ("train", "infer", "backward"):
        assert getattr(C, f"batch_norm_{name}")(None) == CODES["NO_ARRAY"]


def batch_norm(name, **changes):
    values = np.ones((4, 3, 5), np.float32)
    vectors = {
        k: np.ones(3, np.float32)
        for k in ("weight", "bias", "mean", "var", "running_mean", "running_var")
    }
    made = {k: np.ones(3, np.float32) for k in ("weight_grad", "bias_grad")}
    saved = {k: np.ones(3) for k in ("batch_mean", "batch_invstd")}
    out, dy = np.full_like(values, 7), np.ones_like(values)
    before = digest(out, vectors, made, saved)
    given = {
        **{k: capi.address(array) for k, array in {**vectors, **made, **saved}.items()},
        **{"x": capi.address(values), "dy": capi.address(dy), "out": capi.address(out)},
        **{"outer": 4, "channels": 3, "inner": 5, "format": 1},
    }
    given.update({k: v(given) if callable(v) else v for k, v in changes.items()})
    bn = capi.BatchNorm(**{k: v for k, v in given.items() if k != "struct_size"})
    bn.struct_size = given.get("struct_size", bn.struct_size)
    code = getattr(C, f"batch_norm_{name}")(bn)
    assert (digest(out, vectors, made, saved) != before) == (code == capi.OK)
    return code


MINUS_ONE, NEGATIVE = np.array([-1]), np.array([1, -1, 1], np.float32)
BATCH_NORMS = {
    "train": ("train", {}, None),
    "infer": ("infer", {}, None),
    "backward": ("backward", {}, None),
    "no x": ("train", {"x": None}, "NO_ARRAY"),
    "no out": ("infer", {"out": None}, "NO_ARRAY"),
    "no dy": ("backward", {"dy": None}, "NO_ARRAY"),
    "no statistics": ("infer", {"var": None}, "NO_ARRAY"),
    "no room for statistics": ("train", {"batch_mean": None}, "NO_ARRAY"),
    "half of the running statistics": ("train", {"running_var": None}, "NO_ARRAY"),
    "nobody counts": ("train", {"momentum": np.nan}, "NO_ARRAY"),
    "misaligned": ("train", {"x": lambda g: g["x"] + 1}, "MISALIGNED"),
    "format": ("infer", {"format": 5}, "BAD_FORMAT"),
    "16 bits of a channel": ("infer", {"channel_format": 3}, "BAD_FORMAT"),
    "format of channels": ("infer", {"channel_format": 5}, "BAD_FORMAT"),
    "overlap": ("infer", {"out": lambda g: g["x"] + 4}, "OVERLAP"),
    "no out of training": ("train", {"out": None}, "NO_ARRAY"),
    "out over x, and x over another": (
        "infer",
        {"out": lambda g: g["x"], "residual": lambda g: g["x"] - 4},
        "OVERLAP",
    ),
    "out over x, and weights within": (
        "infer",
        {"out": lambda g: g["x"], "weight": lambda g: g["x"] + 4},
        "OVERLAP",
    ),
    "a count below zero": ("train", {"batches": lambda _: capi.address(MINUS_ONE)}, "BAD_NUMBER"),
    "a variance below zero": ("infer", {"var": lambda _: capi.address(NEGATIVE)}, "BAD_NUMBER"),
    "reserved": ("infer", {"reserved": 1}, "BAD_NUMBER"),
    "in place": ("train", {"out": lambda g: g["x"]}, "OVERLAP"),
    "weights are gradients": ("backward", {"weight_grad": lambda g: g["weight"]}, "OVERLAP"),
    "one value a channel": ("train", {"outer": 1, "inner": 1}, "BAD_SIZE"),
    "too large": ("infer", {"outer": 2**40, "inner": 2**40}, "BAD_SIZE"),
    "eps": ("infer", {"eps": -1.0}, "BAD_NUMBER"),
    "eps that is none": ("infer", {"eps": np.nan}, "BAD_NUMBER"),
    "momentum": ("train", {"momentum": 1.5}, "BAD_NUMBER"),
    "threads": ("infer", {"threads": -3}, "BAD_NUMBER"),
    "size of the struct": ("infer", {"struct_size": 16}, "BAD_SIZE"),
}


@pytest.mark.parametrize(("name", "changes", "code"), BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norm(name, changes, code):
    assert batch_norm(name, **changes) == (CODES[code] if code else capi.OK)


NO_ISA = """
import ctypes, os, sys
os.environ["ONEPASS_ISA"] = "of another planet"
C = ctypes.CDLL(sys.argv[1])
C.onepass_isa.restype = ctypes.c_char_p
print(C.onepass_rules(), C.onepass_isa(), C.onepass_step(None, 0, None, 0, None, None))
"""


@pytest.mark.skipif(os.name != "posix", reason="the module resolves Python's symbols by itself")
def test_an_isa_that_does_not_run_here():
    command = [sys.executable, "-c", NO_ISA, op.get_library()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "b''", str(CODES["NO_ISA"])]
