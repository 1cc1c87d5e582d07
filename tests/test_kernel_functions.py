"""The rules as free functions: a call is a step of the class, whose arrays the caller keeps."""

import itertools
import math
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import (
    RICHEST,
    SMALL_FORMATS,
    assert_same_bits,
    digest,
    format_of,
    fresh_state,
    signs_of,
)
from onepass._memory import aligned_zeros

SHAPES = [(3, 5), (257,), (0,), (), (30, 7)]
STAGES = {
    "nothing": {},
    "norm": {"max_grad_norm": 0.5, "nonfinite": "raise"},
    "norm that is measured": {"max_grad_norm": math.inf},
    "value": {"max_grad_value": 0.3},
    "norms of each": {"max_grad_norm_each": 0.5},
    "Lookahead": {"lookahead_every": 2},
    "average": {"ema_decay": 0.9},
    "average with warm-up": {"ema_decay": 0.99, "ema_warmup": True},
    "mean": {"swa_start": 2},
    "average in float32": {"ema_decay": 0.9, "average_dtype": "float32"},
    "mean of every second step": {"swa_start": 2, "average_every": 2},
    "all": {
        "max_grad_norm": 1.0,
        "max_grad_value": 0.01,
        "nonfinite": "skip",
        "clear_grads": True,
        "ema_decay": 0.75,
        "lookahead_every": 2,
        "lookahead_weight": 0.25,
    },
}


def make(rng, dtype=np.float32, shapes=SHAPES):
    arrays = [np.asarray(rng.normal(size=shape)).astype(dtype) for shape in shapes]
    arrays[-1] = np.asfortranarray(arrays[-1])
    return arrays


def in_format(array, state_format, has_sign):
    """State as `Optimizer` keeps it: in fewer bits from 4,096 elements on."""
    if array is None or state_format is None or array.size < 4096:
        return array
    if state_format == "bf16":
        return array.astype(ml_dtypes.bfloat16)
    return op.formats.q8_encode(array, signed=has_sign)


class Host:
    """Somebody's training loop, which keeps parameters, state and averages in lists."""

    def __init__(self, cls, params, settings, *, averages=False, state_format=None):
        self.kernel, self.cls, self.settings = getattr(op.kernels, cls.rule), cls, settings
        self.params = [param.copy(order="K") for param in params]
        wide = [p.astype(np.float32) if p.itemsize == 2 else p for p in self.params]
        fresh = zip(*(fresh_state(cls, settings, param) for param in wide), strict=True)
        self.state = [
            None
            if of_all[0] is None
            else [in_format(a, format_of(cls, k, state_format), signs_of(cls)[k]) for a in of_all]
            for k, of_all in enumerate(fresh)
        ]
        in_double = settings.get("average_dtype") != "float32"
        self.average = [p.astype(np.float64 if in_double else p.dtype) for p in wide]
        if not averages:
            self.average = None
        self.slow = [np.full_like(p, 7) for p in wide] if "lookahead_every" in settings else None
        self.steps = 0

    def step(self, grads, **keywords):
        keywords = {**self.settings, "step": self.steps + 1, **keywords}
        if self.average is not None:
            keywords["average"] = self.average
        if self.slow is not None:
            keywords["slow"] = self.slow
        info = self.kernel(self.params, grads, *self.state, **keywords)
        self.steps = info.step
        return info

    def whole(self):
        return digest(self.params, self.state, self.average, self.slow)

    def assert_like(self, opt):
        saved = opt.state_dict()["state"]
        for i, param in enumerate(opt.param_groups[0]["params"]):
            assert_same_bits(self.params[i], param)
            names = (*self.cls.row.states, *self.cls.row.memory)
            arrays = {n: s[i] for n, s in zip(names, self.state, strict=True) if s}
            if self.average is not None:
                arrays["average"] = self.average[i]
            if self.slow is not None:
                arrays["slow"] = self.slow[i]
            for name, array in arrays.items():
                assert_same_bits(array, saved[i][name])


def both(cls, settings, stages, params, state_format=None):
    """A host, and an optimizer of parameters and settings like its."""
    host = Host(
        cls,
        params,
        {**settings, **stages},
        averages="ema_decay" in stages or "swa_start" in stages,
        state_format=state_format,
    )
    params = [param.copy(order="K") for param in params]
    return host, cls(params, **settings, **stages, state_format=state_format)


def test_a_call_with_every_stage_is_a_step(case, dtype, rng):
    for stages in STAGES.values():
        host, opt = both(*case, stages, make(rng, dtype))
        for _ in range(3):
            grads = make(rng, dtype)
            own = [grad.copy(order="K") for grad in grads]
            assert host.step(grads, grad_scale=2.0) == opt.step(own, grad_scale=2.0)
            for a, b in zip(grads, own, strict=True):
                assert_same_bits(a, b)
        host.assert_like(opt)


@pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
@pytest.mark.parametrize("dtype", [np.float32, *SMALL_FORMATS])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_in_fewer_bits(optimizer, state_format, dtype, rounding, rng):
    """The place in the list says which random bits there are, as it does in an optimizer."""
    shapes = [(70, 60), (10,), (4096,)]
    settings = {} if optimizer.row.variant(optimizer.defaults) else optimizer.cases[-1]
    stages = {"rounding": rounding, "seed": 5, "max_grad_norm": 1.0, "ema_decay": 0.5}
    host, opt = both(optimizer, settings, stages, make(rng, dtype, shapes), state_format)
    for threads in (1, 3):
        grads = make(rng, dtype, shapes)
        grads[0] = grads[0].astype(np.float32)
        assert host.step(grads, num_threads=threads) == opt.step(grads)
    host.assert_like(opt)


def test_threads(optimizer, dtype, rng):
    shapes = [(40_000,), (7,), (200, 300)]
    host, opt = both(optimizer, {}, STAGES["all"], make(rng, dtype, shapes))
    for threads in (1, 2, 5):
        grads = make(rng, dtype, shapes)
        own = [grad.copy(order="K") for grad in grads]
        assert host.step(grads, num_threads=threads) == opt.step(own)
    host.assert_like(opt)


def test_one_array_is_a_list_of_one(case, dtype, rng):
    cls, settings = case
    stages = {**settings, "ema_decay": 0.5, "max_grad_norm": 0.1, "grad_scale": 4.0}
    (param,) = make(rng, dtype, [(30, 7)])
    host = Host(cls, [param], settings, averages=True)
    arrays = [param, *(None if s is None else s[0].copy(order="K") for s in host.state)]
    average = host.average[0].copy(order="K")
    for step in (1, 2):
        (grad,) = make(rng, dtype, [(30, 7)])
        info = host.kernel(arrays[0], grad, *arrays[1:], step=step, average=average, **stages)
        assert info == host.step((grad,), **stages)
    assert digest(arrays[0], average) == digest(host.params[0], host.average[0])
    assert digest(arrays[1:]) == digest([s and s[0] for s in host.state])


def test_tuples_are_lists(optimizer, rng):
    host, other = (Host(optimizer, make(np.random.default_rng(0)), {}) for _ in range(2))
    grads = make(rng)
    other.params = tuple(other.params)
    other.state = [s and tuple(s) for s in other.state]
    assert host.step(grads) == other.step(tuple(grads))
    assert digest(host.params) == digest(list(other.params))


def test_gradients_of_any_strides(optimizer, dtype, rng):
    host, opt = both(optimizer, {}, {"max_grad_norm": 1.0}, make(rng, dtype, [(60, 70), (40,)]))
    wide = rng.normal(size=(60, 140)).astype(dtype)
    for first in (wide[:, ::2], np.asfortranarray(wide[:, :70]), wide[::-1, 70:]):
        grads = [first, rng.normal(size=80).astype(dtype)[::-2]]
        assert host.step(grads) == opt.step(grads)
    host.assert_like(opt)


def test_none_leaves_a_parameter_alone(optimizer, rng):
    host, opt = both(optimizer, {}, STAGES["all"], make(rng))
    before = digest(host.params[1], [s and s[1] for s in host.state], host.average[1])
    grads = make(rng)
    grads[1] = None
    own = [grad if grad is None else grad.copy(order="K") for grad in grads]
    assert host.step(grads) == opt.step(own)
    after = digest(host.params[1], [s and s[1] for s in host.state], host.average[1])
    assert after == before
    for i in (0, 2, 3, 4):
        assert_same_bits(host.params[i], opt.param_groups[0]["params"][i])
    assert host.step([None] * 5).grad_norm == 0.0


def test_no_arrays_at_all(optimizer):
    state = [[] for _ in (*optimizer.row.states, *optimizer.row.memory)]
    info = getattr(op.kernels, optimizer.rule)([], [], *state, step=3, max_grad_norm=1.0)
    assert info == op.StepInfo(3, optimizer.defaults["lr"], 0.0, False, False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 4])
def test_what_is_not_finite(optimizer, dtype, bad, position, rng):
    host, opt = both(optimizer, {}, STAGES["all"], make(rng, dtype))
    host.step(make(rng, dtype))
    before = host.whole()
    grads = make(rng, dtype)
    grads[position][-1, -1] = bad
    with pytest.raises(ValueError, match=rf"^grad\[{position}\]: expected finite values, got"):
        host.step(grads, nonfinite="raise")
    assert host.whole() == before
    assert any(grad.any() for grad in grads)
    opt.step(make(rng, dtype))
    own = [grad.copy(order="K") for grad in grads]
    found, expected = host.step(grads), opt.step(own)
    assert found == expected or (np.isnan(found.grad_norm) and np.isnan(expected.grad_norm))
    assert (found.step, found.skipped, found.clipped) == (1, True, False)
    assert host.whole() == before
    assert not any(grad.any() for grad in grads)


def test_an_average_that_began_later(optimizer, rng):
    """`averaged` counts its steps, which an optimizer counts itself."""
    host, opt = both(optimizer, {}, {}, make(rng))
    for _ in range(2):
        grads = make(rng)
        host.step(grads), opt.step(grads)
    host.average = [np.full_like(param, np.nan, dtype=np.float64) for param in host.params]
    opt.param_groups[0].update(ema_decay=0.75, ema_warmup=True)
    for averaged in (1, 2, 3):
        grads = make(rng)
        host.step(grads, ema_decay=0.75, ema_warmup=True, averaged=averaged)
        opt.step(grads)
    host.assert_like(opt)


def test_a_rate_that_changes_with_each_call(case, rng):
    cls, settings = case
    rates = [0.1, 0.0, np.float32(0.25), 1, 0.5]
    host, opt = Host(cls, make(rng), settings), None
    opt = cls([p.copy(order="K") for p in host.params], **{**settings, "lr": lambda t: rates[t]})
    for rate in rates:
        grads = make(rng)
        info = host.step(grads, lr=rate)
        assert info == opt.step(grads)
        assert info.lr == rate
    host.assert_like(opt)


def test_the_number_of_the_step_is_wanted_where_it_matters(case):
    """Bias corrections, random bits and averages depend on it."""
    cls, settings = case
    values = {**cls.defaults, **settings}
    depends = cls.scalars(1, values) != cls.scalars(2, values)
    wanted = pytest.raises(TypeError, match="^step: expected the number of this step, from 1, got")
    host = Host(cls, [np.ones(5000, np.float32)], settings, averages=True)
    grads = [np.ones(5000, np.float32)]
    before = host.whole()
    with wanted:
        host.step(grads, step=None, ema_decay=0.5)
    host.average = None
    if depends:
        with wanted:
            host.step(grads, step=None)
    own = host.state
    small = [s is not None and bool(format_of(cls, k, "bf16")) for k, s in enumerate(own)]
    if any(small):
        host.state = [
            [s[0].astype(ml_dtypes.bfloat16)] if is_small else s
            for s, is_small in zip(own, small, strict=True)
        ]
        with wanted:
            host.step(grads, step=None)
        host.state = own
    host.average = [np.ones(5000)]
    assert host.whole() == before
    host.average = None
    if not depends:
        assert host.step(grads, step=None).step == 1


def swap(arrays, index, value):
    return [*arrays[:index], value, *arrays[index + 1 :]]


# What is done to a host's arrays and keywords, and what the message says.
BAD_CALLS = {
    "fewer gradients": (
        lambda h, g: h.step(g[:-1]),
        ValueError,
        "grad: expected a list of 5, as param has, got one of 4",
    ),
    "more gradients": (lambda h, g: h.step([*g, None]), ValueError, "grad: .* got one of 6"),
    "one gradient for all": (
        lambda h, g: h.step(g[1]),
        TypeError,
        "grad: expected a list of 5, as param has, got numpy.ndarray",
    ),
    "no gradients": (
        lambda h, _: h.step(None),
        TypeError,
        "grad: expected a list of 5, as param has, got NoneType",
    ),
    "one parameter, many gradients": (
        lambda h, g: h.kernel(h.params[1], g, *[s and s[1] for s in h.state], step=1),
        TypeError,
        "grad: expected a NumPy array, got list",
    ),
    "fewer averages": (
        lambda h, g: h.step(g, average=h.spare[:2], ema_decay=0.5),
        ValueError,
        "average: expected a list of 5, as param has, got one of 2",
    ),
    "one average for all": (
        lambda h, g: h.step(g, average=h.spare[0], ema_decay=0.5),
        TypeError,
        "average: expected a list of 5",
    ),
    "an average without a decay": (
        lambda h, g: h.step(g, average=h.spare),
        TypeError,
        "average: expected None without ema_decay or swa_start, got list",
    ),
    "a decay without an average": (
        lambda h, g: h.step(g, ema_decay=0.5),
        TypeError,
        "average: expected an array for ema_decay or swa_start, got None",
    ),
    "both kinds of average": (
        lambda h, g: h.step(g, average=h.spare, ema_decay=0.5, swa_start=1),
        ValueError,
        "swa_start: expected None with ema_decay",
    ),
    "an average in float32": (
        lambda h, g: h.step(
            g, average=swap(h.spare, 4, h.spare[4].astype(np.float32)), ema_decay=0.5
        ),
        TypeError,
        r"average\[4\]: expected dtype float64, got float32",
    ),
    "the same average twice": (
        lambda h, g: h.kernel(
            [h.params[1], np.ones(257, np.float32)],
            [g[1]] * 2,
            *[s and [s[1], s[1].copy()] for s in h.state],
            **h.settings,
            step=1,
            average=[h.spare[1]] * 2,
            swa_start=1,
        ),
        ValueError,
        r"average\[.\]: expected memory of its own, got the same memory as average",
    ),
    "the same parameter twice": (
        lambda h, g: h.kernel(
            [h.params[1]] * 2,
            [g[1]] * 2,
            *[s and [s[1], s[1].copy()] for s in h.state],
            **h.settings,
            step=1,
        ),
        ValueError,
        r"param\[1\]: expected memory of its own, got the same memory as param\[0\]",
    ),
    "a gradient that is another's parameter": (
        lambda h, g: h.step(swap(g, 4, h.params[4])),
        ValueError,
        r"grad\[4\]: expected memory of its own",
    ),
    "a gradient for two that is zeroed": (
        lambda h, g: h.kernel(
            [h.params[1], np.ones(257, np.float32)],
            [g[1]] * 2,
            *[s and [s[1], s[1].copy()] for s in h.state],
            **h.settings,
            step=1,
            clear_grads=True,
        ),
        ValueError,
        r"grad\[.\]: expected memory of its own",
    ),
    "the last gradient of another dtype": (
        lambda h, g: h.step(swap(g, 4, g[4].astype(np.complex64))),
        TypeError,
        r"grad\[4\]: expected dtype float32",
    ),
    "the last gradient of another shape": (
        lambda h, g: h.step(swap(g, 4, g[4][:-1])),
        ValueError,
        r"grad\[4\]: expected the parameter's shape",
    ),
    "the last gradient locked, and zeroed": (
        lambda h, g: h.step(swap(g, 4, locked(g[4])), clear_grads=True),
        ValueError,
        r"grad\[4\]: expected a writable array",
    ),
    "no array": (
        lambda h, g: h.step(swap(g, 0, [1.0])),
        TypeError,
        r"grad\[0\]: expected a NumPy array, got list",
    ),
    "step": (lambda h, g: h.step(g, step=0), ValueError, "step: expected an integer in"),
    "a step past what doubles count": (
        lambda h, g: h.step(g, step=2**53),
        ValueError,
        "step: expected an integer in",
    ),
    "averaged": (lambda h, g: h.step(g, averaged=0), ValueError, "averaged: expected an integer"),
    "lr": (lambda h, g: h.step(g, lr=-1.0), ValueError, "lr: expected a finite number >= 0"),
    "grad_scale": (lambda h, g: h.step(g, grad_scale=0.0), ValueError, "grad_scale: expected"),
    "max_grad_norm": (lambda h, g: h.step(g, max_grad_norm=0), ValueError, "max_grad_norm: expect"),
    "max_grad_value": (lambda h, g: h.step(g, max_grad_value=0), ValueError, "max_grad_value: ex"),
    "nonfinite": (lambda h, g: h.step(g, nonfinite="stop"), ValueError, "nonfinite: expected one"),
    "clear_grads": (lambda h, g: h.step(g, clear_grads=1), TypeError, "clear_grads: expected True"),
    "rounding": (lambda h, g: h.step(g, rounding="master"), ValueError, "rounding: expected one"),
    "seed": (lambda h, g: h.step(g, seed=-1), ValueError, "seed: expected an integer in"),
    "num_threads": (lambda h, g: h.step(g, num_threads=0), ValueError, "num_threads: expected"),
    "a schedule": (lambda h, g: h.step(g, lr=abs), TypeError, "lr: expected a value"),
    "warm-up of nothing": (
        lambda h, g: h.step(g, ema_warmup=True),
        ValueError,
        "ema_warmup: expected False without ema_decay",
    ),
    "another's keyword": (lambda h, g: h.step(g, copy_to=g), TypeError, "copy_to: expected one of"),
    "arrays by keyword": (
        lambda h, g: h.kernel(param=h.params, grad=g, step=1),
        TypeError,
        "missing 2 required positional",
    ),
    "one array alone": (lambda h, _: h.kernel(h.params[0]), TypeError, "missing 1 required posit"),
}


def locked(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_call_that_raises_changes_nothing(optimizer, call, error, words, rng):
    host = Host(optimizer, make(rng), optimizer.cases[-1])
    host.step(make(rng))
    host.spare = [param.astype(np.float64) for param in host.params]  # averages, for those who ask
    grads = make(rng)
    before = digest(host.whole(), host.spare, grads)
    with pytest.raises(error, match=words):
        call(host, grads)
    assert digest(host.whole(), host.spare, grads) == before


@pytest.mark.parametrize("length", [0, 4, 6])
def test_state_lists_of_another_length(case, length, rng):
    cls, settings = case
    for k, own in enumerate((host := Host(cls, make(rng), settings)).state):
        if own is None:
            continue
        whole, host.state[k] = host.state[k], [*own, own[0].copy()][:length]
        before = host.whole()
        words = f"^{cls.row.states[k]}: expected a list of 5, as param has, got one of {length}"
        with pytest.raises(ValueError, match=words):
            host.step(make(rng))
        host.state[k] = own[1]
        words = f"^{cls.row.states[k]}: expected a list of 5, as param has, got numpy.ndarray"
        with pytest.raises(TypeError, match=words):
            host.step(make(rng))
        host.state[k] = swap(whole, 4, whole[4][:-1])
        with pytest.raises(ValueError, match=rf"^{cls.row.states[k]}\[4\]: expected the param"):
            host.step(make(rng))
        host.state[k] = [*own, own[0].copy()][:length]
        assert host.whole() == before
        host.state[k] = whole


def test_lists_that_a_gradients_code_empties(rng):
    """The call goes on with what it was given."""

    class Hook:
        def __init__(self, array):
            self.array = array

        @property
        def __class__(self):
            return np.float32

        def __array__(self, dtype=None, copy=None):
            for emptied in (grads, params, *filter(None, states)):
                emptied.clear()
            return self.array

    host, other = (Host(RICHEST, make(np.random.default_rng(0)), {}) for _ in range(2))
    given = make(rng)
    host.step(given)
    params, states = list(other.params), [s and list(s) for s in other.state]
    grads = [Hook(given[0]), *given[1:]]
    other.kernel(params, grads, *states, step=1)
    assert (params, grads) == ([], [])
    assert other.whole() == host.whole()


def test_settings_of_one_call_are_not_those_of_the_next(case, rng):
    """A call that gave many keywords, or raised, leaves the defaults as they were."""
    cls, settings = case
    hosts = [Host(cls, make(np.random.default_rng(0)), {}) for _ in range(2)]
    disturbing = Host(cls, make(rng), {**settings, **STAGES["all"]}, averages=True)
    for grads in [make(rng) for _ in range(3)]:
        for host, disturbed in zip(hosts, (False, True), strict=True):
            if disturbed:
                disturbing.step(make(rng))
                with pytest.raises(ValueError, match="lr"):
                    disturbing.step(make(rng), lr=-1.0)
            host.step(grads)
    assert hosts[0].whole() == hosts[1].whole()


def test_a_large_wrong_call_is_refused_before_any_thread_starts(optimizer):
    host = Host(optimizer, [aligned_zeros(50_000) for _ in range(4)], {})
    grads = [np.ones(50_000, np.float32) for _ in range(4)]
    before = host.whole()
    with pytest.raises(ValueError, match=r"grad\[3\]"):
        host.step([*itertools.islice(grads, 3), grads[3][:-1]], num_threads=4)
    assert host.whole() == before


def test_arrays_of_a_list_live_as_long_as_the_call(optimizer, rng):
    # A large call lets other threads run, and one of these may empty the lists.
    kernel = getattr(op.kernels, optimizer.rule)
    params, grads = [rng.normal(size=300_000)], [rng.normal(size=300_000)]
    state = [
        [array] if array is not None else None
        for array in fresh_state(optimizer, optimizer.defaults, params[0])
    ]
    counts = set()
    done = threading.Event()

    def watch():
        while not done.is_set():
            counts.add(sys.getrefcount(params[0]))

    watching = threading.Thread(target=watch)
    watching.start()
    for step in range(1, 1001):
        kernel(params, grads, *state, step=step, lr=1e-3)
        if len(counts) > 1:
            break
    done.set()
    watching.join()
    assert len(counts) > 1


def test_state_that_is_kept_in_full_has_no_other_format(every_class):
    """Weights, differences and steps would lose their meaning in fewer bits."""
    kernel = getattr(op.kernels, every_class.rule)
    param, grad = np.ones(300, np.float32), np.ones(300, np.float32)
    names = every_class.state_names()
    state = fresh_state(every_class, every_class.defaults, param)
    for k, in_full in enumerate(every_class.row.in_full):
        if not in_full or state[k] is None:
            continue
        kept = [
            array.astype(ml_dtypes.bfloat16) if i == k else array for i, array in enumerate(state)
        ]
        with pytest.raises(TypeError, match=f"^{names[k]}: expected .*, got bfloat16$"):
            kernel(param, grad, *kept, step=1)
    assert (param == 1).all()


def test_lists_of_no_arrays(every_class):
    memory = [np.array(start) for start in every_class.memory_start().values()]
    if not every_class.row.sums_over_all:  # it has a number for each array
        memory = [[] for _ in memory]
    names = every_class.state_names()
    states = [None if name is None else [] for name in names]
    info = getattr(op.kernels, every_class.rule)([], [], *states, *memory, step=1)
    assert not info.skipped
