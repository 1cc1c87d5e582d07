"""Parameters that step one by one, as their gradients come: rounds, and the bits of one step.

The oracle is `step` with all gradients, which other tests hold to the reference.
"""

import copy
import io
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import CASES, KINDS, RICHEST, case_id, digest, shaped
from interrupting import at_each_place
from onepass import optim

SUMS_OVER_ALL = [cls for cls in optim.registry.values() if cls.row.sums_over_all]
STEPPING_ONE = [cls for cls in KINDS if cls not in SUMS_OVER_ALL]
SHAPES = {"layers.0.w": (65, 70), "layers.0.b": (12,), "layers.1": (5, 4, 3), "scale": (2, 1)}
BACKWARDS = tuple(reversed(SHAPES))


def nested(leaves):
    """The arrays in a structure whose keys these are."""
    first, bias, second, scale = leaves.values()
    return {"layers": [{"w": first, "b": bias}, second], "scale": scale}


class Twins:
    """`whole` steps with all gradients at once, `parts` by turns; both begin alike."""

    def __init__(self, cls, settings=None, dtypes=np.float32, seed=0, **options):
        self.rng = np.random.default_rng(seed)
        settings = settings or {}
        dtypes = dtypes if isinstance(dtypes, dict) else dict.fromkeys(SHAPES, dtypes)
        start = {
            name: shaped(cls, settings, self.rng.normal(size=shape).astype(dtypes[name]))
            for name, shape in SHAPES.items()
        }
        self.whole_params = {name: array.copy() for name, array in start.items()}
        self.params = start
        self.whole = cls(nested(self.whole_params), **settings, **options)
        self.parts = cls(nested(self.params), **settings, **options)

    def grads(self):
        return {
            name: self.rng.normal(size=param.shape).astype(param.dtype)
            for name, param in self.params.items()
        }

    def step(self, grads, **how):
        return self.whole.step(nested(copy.deepcopy(grads)), **how)

    def turns(self, grads, names=BACKWARDS, **how):
        return [self.parts.step_one(name, copy.deepcopy(grads[name]), **how) for name in names]

    def assert_same(self):
        assert digest(self.params) == digest(self.whole_params)
        assert digest(self.parts.state_dict()) == digest(self.whole.state_dict())


# Rounds are steps


@pytest.mark.parametrize("case", [c for c in CASES if c[0] not in SUMS_OVER_ALL], ids=case_id)
def test_a_round_is_a_step(case, dtype):
    twins = Twins(*case, dtype)
    for order in (BACKWARDS, tuple(SHAPES)):
        grads = twins.grads()
        info = twins.step(grads)
        assert twins.turns(grads, order) == [info] * len(SHAPES)
        twins.assert_same()


STAGES = [
    {"max_grad_value": 0.5, "clear_grads": True},
    {"ema_decay": 0.9, "ema_warmup": True, "lookahead_every": 2},
    {"swa_start": 2, "state_format": "q8"},
    {"max_grad_norm_each": 0.5, "state_format": "bf16", "seed": 3},
    {"cautious_weight_decay": True, "weight_decay": 0.1, "nonfinite": "raise"},
    {"rounding": "stochastic", "state_format": "q8"},
    {"rounding": "nearest", "ema_decay": 0.5},
]
HALVES = dict.fromkeys(SHAPES, np.float32) | {
    "layers.0.w": np.float16,
    "layers.0.b": ml_dtypes.bfloat16,
}


@pytest.mark.parametrize("dtypes", [np.float32, HALVES], ids=["float32", "16 bits"])
@pytest.mark.parametrize("options", STAGES, ids="-".join)
def test_with_every_stage(options, dtypes):
    twins = Twins(RICHEST, dtypes=dtypes, lr=0.1, **options)
    for threads in (1, 2, 3):
        grads = twins.grads()
        info = twins.step(grads, grad_scale=2.0)
        infos = twins.turns(grads, grad_scale=2.0, num_threads=threads)
        assert {own[:2] for own in infos} == {info[:2]}
        assert any(own.clipped for own in infos) == info.clipped
        twins.assert_same()
    if "clear_grads" in options:
        grad = np.ones(SHAPES["layers.0.b"], twins.params["layers.0.b"].dtype)
        twins.parts.step_one("layers.0.b", grad)
        assert not grad.any()


def test_the_norm_is_that_gradients():
    a, b = np.zeros(2), np.zeros(2)
    opt = op.SGD([a, b], lr=1.0, max_grad_norm_each=1.0)
    info = opt.step_one(0, np.array([3.0, 4.0]))
    assert (info.grad_norm, info.clipped) == (5.0, True)
    info = opt.step_one(1, np.array([0.0, 0.5]), grad_scale=2.0)
    assert (info.grad_norm, info.clipped) == (0.25, False)
    np.testing.assert_allclose(a, [-0.6, -0.8], rtol=1e-6)
    assert b.tolist() == [0.0, -0.25]


def test_copies_are_written():
    params = [np.full(3, value, np.float32) for value in (1.0, 2.0)]
    copies = [np.zeros(3, np.float16), None]
    opt = op.SGD(params, lr=0.1, copy_to=copies)
    opt.step_one(0, np.ones(3, np.float32))
    np.testing.assert_array_equal(copies[0], params[0].astype(np.float16))


# What a parameter is called


def test_keys_are_those_of_state_dict():
    single = np.ones(2)
    opt = op.SGD(single, lr=1.0)
    opt.step_one(0, np.ones(2))
    assert single.tolist() == [0.0, 0.0]
    assert list(opt.state_dict()["state"]) == [0]

    a, b, c = np.ones(1), np.ones(1), np.ones(1)
    opt = op.SGD([{"params": [a, b]}, {"params": [c], "lr": 0.5}], lr=1.0)
    for key in opt.state_dict()["param_groups"][0]["params"] + [2]:
        opt.step_one(key, np.ones(1))
    assert (a.item(), b.item(), c.item()) == (0.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("x", ValueError, r"name: expected a key among \['a', 'b'\], got 'x'"),
        (0, ValueError, r"name: expected a key among \['a', 'b'\], got 0"),
        (None, ValueError, r"name: expected a key among \['a', 'b'\], got None"),
        (["a"], TypeError, "name: expected the key of a parameter, got list"),
    ],
)
def test_another_name(name, error, message):
    opt = op.SGD({"a": np.ones(2), "b": np.ones(2)}, lr=1.0)
    before = digest(opt)
    with pytest.raises(error, match=message):
        opt.step_one(name, np.ones(2))
    assert digest(opt) == before


# Rounds


class Counting:
    """A schedule that notes when it is called, and gives another value each time."""

    def __init__(self):
        self.calls = []

    def __call__(self, step):
        self.calls.append(step)
        return 1.0 / len(self.calls)


def sgd(n=3, **settings):
    params = [np.zeros(1) for _ in range(n)]
    return params, op.SGD(params, **{"lr": 1.0, **settings})


def values(params):
    return [param.item() for param in params]


ONE = np.ones(1)


def test_names_that_are_integers():
    w = np.ones(2)
    opt = op.SGD({0: w, 1: np.ones(2)}, lr=0.5)
    opt.step_one(0, np.ones(2))
    opt.step_one("1", np.ones(2))
    assert opt.step_one(0, np.ones(2)).step == 2
    assert (w == 0).all()


@pytest.mark.parametrize("name", ["max_grad_norm", "skip_grad_norm"])
def test_a_limit_that_a_schedule_may_give_is_refused_in_every_round(name):
    opt = op.SGD({"w": np.ones(1)}, lr=0.1, **{name: lambda t: None if t < 1 else 1.0})
    for grad in (1.0, 100.0):
        with pytest.raises(ValueError, match=f"^{name}: expected None.* with step_one, got <func"):
            opt.step_one("w", np.array([grad]))
        opt.step({"w": np.array([grad])})


def test_schedules_are_called_once_a_round():
    schedule = Counting()
    params, opt = sgd(lr=schedule)
    infos = [opt.step_one(i, ONE) for i in (2, 0, 1, 1, 2, 0)]
    assert schedule.calls == [0, 1]
    assert [(info.step, info.lr) for info in infos] == [(1, 1.0)] * 3 + [(2, 0.5)] * 3
    assert values(params) == [-1.5] * 3


def test_a_second_turn_begins_the_next_round():
    """A parameter that never has a gradient need not be named."""
    schedule = Counting()
    params, opt = sgd(lr=schedule)
    infos = [opt.step_one(i, ONE) for i in (0, 1, 0, 1)]
    assert [info.step for info in infos] == [1, 1, 2, 2]
    assert schedule.calls == [0, 1]
    assert values(params) == [-1.5, -1.5, 0.0]
    assert [opt.state_dict()["state"].get(i, {}).get("step") for i in range(3)] == [2, 2, None]


def test_none_is_a_turn():
    schedule = Counting()
    params, opt = sgd(2, lr=schedule)
    assert opt.step_one(0, None) == op.StepInfo(1, 1.0)
    assert opt.step_one(1, ONE).step == 1
    assert opt.step([ONE, ONE]).step == 2
    assert schedule.calls == [0, 1]
    assert values(params) == [-0.5, -1.5]


def test_a_step_ends_the_round():
    for call in (lambda opt: opt.step([ONE, ONE]), lambda opt: opt.step_rows({0: ONE, 1: ONE})):
        schedule = Counting()
        params, opt = sgd(2, lr=schedule)
        assert opt.step_one(1, ONE).step == 1
        assert call(opt).step == 2
        assert opt.step_one(1, ONE).step == 3
        assert schedule.calls == [0, 1, 2]
        assert values(params) == pytest.approx([-0.5, -1.5 - 1 / 3])


def test_accumulated_gradients_wait_for_a_step():
    params, opt = sgd(2)
    opt.step_one(0, ONE)
    opt.accumulate([ONE, ONE])
    before = digest(opt)
    with pytest.raises(ValueError, match=r"grad: expected no sum of accumulate.*step_one, got"):
        opt.step_one(1, ONE)
    assert digest(opt) == before
    assert opt.step().step == 2
    assert values(params) == [-2.0, -1.0]


def test_a_setting_counts_from_the_coming_turn_on():
    params, opt = sgd(3)
    opt.step_one(0, ONE)
    opt.param_groups[0]["lr"] = 0.25
    opt.step_one(1, ONE)
    assert opt.step_one(2, ONE).step == 1
    assert values(params) == [-1.0, -0.25, -0.25]


def test_a_schedule_is_called_anew_where_a_setting_is_assigned():
    schedule = Counting()
    params, opt = sgd(3, lr=schedule)
    opt.step_one(0, ONE)
    opt.param_groups[0]["maximize"] = True
    opt.step_one(1, ONE)
    opt.step_one(2, ONE)
    assert schedule.calls == [0, 0]
    assert values(params) == [-1.0, 0.5, 0.5]


def test_state_of_another_format_in_an_open_round():
    twins = Twins(RICHEST, lr=0.1)
    grads = twins.grads()
    twins.step(grads)
    twins.turns(grads)
    for opt in (twins.whole, twins.parts):
        opt.param_groups[0].update(state_format="q8", ema_decay=0.5)
    grads = twins.grads()
    twins.step(grads)
    twins.turns(grads)
    twins.assert_same()


def test_a_group_that_is_added_in_an_open_round():
    schedule = Counting()
    params, opt = sgd(2, lr=schedule)
    opt.step_one(0, ONE)
    new = np.zeros(1)
    opt.add_param_group({"params": new, "lr": 0.125})
    assert [opt.step_one(key, ONE).step for key in (1, 2, 0)] == [1, 1, 2]
    assert schedule.calls == [0, 1]
    assert values([*params, new]) == [-1.5, -1.0, -0.125]


def test_gradients_that_are_bound_are_not_taken():
    params, grads = np.zeros(2), np.ones(2)
    opt = op.SGD({"w": params}, lr=1.0, grads={"w": grads})
    opt.step_one("w", np.full(2, 2.0))
    assert params.tolist() == [-2.0, -2.0]
    assert grads.tolist() == [1.0, 1.0]


# What goes on with a round


def by_dictionary(opt, fresh):
    fresh.load_state_dict(opt.state_dict())
    return fresh


def by_file(opt, fresh):
    file = io.BytesIO()
    opt.save(file)
    file.seek(0)
    fresh.load(file)
    return fresh


WAYS = {
    "state_dict": by_dictionary,
    "file": by_file,
    "pickle": lambda opt, _: pickle.loads(pickle.dumps(opt)),
    "deepcopy": lambda opt, _: copy.deepcopy(opt),
    "itself": lambda opt, _: by_dictionary(opt, opt),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@settings(max_examples=50)
@given(
    turns=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    saved=st.lists(st.integers(0, 8), max_size=2),
    changed=st.integers(0, 8),
    assigned=st.integers(0, 8),
)
def test_a_checkpoint_goes_on_with_the_round(way, turns, saved, changed, assigned):
    """Wherever it is taken, also where the schedule would give something else by now."""
    schedule = op.schedules.ReduceOnPlateau(1.0, factor=0.5, patience=0)
    params, opt = sgd(4, lr=schedule)
    twin_schedule = op.schedules.ReduceOnPlateau(1.0, factor=0.5, patience=0)
    twin_params, twin = sgd(4, lr=twin_schedule)
    for number, key in enumerate(turns):
        if number == changed:  # the rate is halved
            for each in (schedule, twin_schedule):
                each.report(1.0)
                each.report(2.0)
        if number == assigned:
            for each in (opt, twin):
                each.param_groups[0]["weight_decay"] = 0.5
        if number in saved:
            fresh_params, fresh = sgd(
                4, lr=op.schedules.ReduceOnPlateau(1.0, factor=0.5, patience=0)
            )
            for param, other in zip(fresh_params, params, strict=True):
                param[...] = other
            opt = way(opt, fresh)
            params = [opt.param_groups[0]["params"][i] for i in range(4)]
            schedule = opt.param_groups[0]["lr"]
        grad = np.full(1, number + 1.0)
        assert opt.step_one(key, grad) == twin.step_one(key, grad)
        assert values(params) == values(twin_params)
        assert digest(opt) == digest(twin)


def test_what_is_saved():
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = op.SGD(params, lr=lambda step: 0.5 + step)
    opt.step_one("b", ONE)
    (group,) = opt.state_dict()["param_groups"]
    assert group["round"] == {"lr": 0.5, "params": ["b"]}
    assert group["step"] == 0
    opt.step_one("a", ONE)
    (group,) = opt.state_dict()["param_groups"]
    assert "round" not in group
    assert group["step"] == 1


@pytest.mark.parametrize(
    ("of_round", "message"),
    [
        ([], r"param_groups\[0\]\['round'\]: expected a mapping with 'params', got \[\]"),
        ({"params": 3}, r"param_groups\[0\]\['round'\]: expected a mapping with 'params'"),
        ({"params": ["c"]}, r"\['params'\]: expected keys of the group, got \['c'\]"),
        ({"params": ["a", "b"]}, "expected a 'round' that is open, got all parameters"),
        ({"params": ["a"], "lr": -1.0}, "lr: expected"),
        ({"params": ["a"], "lr": None}, "lr: expected"),
    ],
)
def test_a_damaged_round(of_round, message):
    def new():
        return op.SGD({"a": np.zeros(1), "b": np.zeros(1)}, lr=lambda _: 0.5)

    opt = new()
    opt.step_one("a", ONE)
    saved = opt.state_dict()
    saved["param_groups"][0]["round"] = of_round
    other = new()
    before = digest(other)
    with pytest.raises((TypeError, ValueError), match=message):
        other.load_state_dict(saved)
    assert digest(other) == before


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_grad_norm": 1.0}, r"max_grad_norm: expected None .* with step_one, got 1.0"),
        ({"max_grad_norm": np.inf}, "max_grad_norm: expected None .* with step_one, got inf"),
        ({"max_grad_norm": abs}, "max_grad_norm: expected None .* with step_one, got <built-in"),
        ({"nonfinite": "skip"}, "nonfinite: expected 'propagate' or 'raise' with step_one, got"),
    ],
)
def test_what_takes_all_gradients(settings, message):
    _, opt = sgd(2)
    opt.step_one(0, ONE)
    for name, value in settings.items():
        setattr(opt, name, value)
    before = digest(opt)
    for key in (0, 1):
        with pytest.raises(ValueError, match=message):
            opt.step_one(key, ONE)
    assert digest(opt) == before


@pytest.mark.parametrize("cls", SUMS_OVER_ALL)
def test_rules_that_sum_over_all(cls):
    opt = cls([np.ones(2), np.ones(2)])
    before = digest(opt)
    with pytest.raises(ValueError, match=f"expected a rule that .* with step_one, got {cls.rule}"):
        opt.step_one(0, np.ones(2))
    assert digest(opt) == before


def failing_calls(n):
    """Calls that must raise; each with what the message says."""
    inf = np.full(n, np.inf, np.float32)
    return {
        "length": (lambda opt: opt.step_one(0, np.ones(n + 1, np.float32)), r"grads\[0\]"),
        "dtype": (lambda opt: opt.step_one(1, np.ones(n, int)), r"grads\[1\]"),
        "infinite": (lambda opt: opt.step_one(0, inf), r"grads\[0\]: expected finite values"),
        "infinite in its first turn": (lambda opt: opt.step_one(1, inf), r"grads\[1\]"),
        "scale": (lambda opt: opt.step_one(1, np.ones(n, np.float32), grad_scale=0.0), "scale"),
        "step": (lambda opt: opt.step([inf, inf, None]), r"grads\[0\]"),
        "rows": (lambda opt: opt.step_rows({0: inf}), r"grads\[0\]"),
    }


@pytest.mark.parametrize("optimizer", STEPPING_ONE, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("call", failing_calls(4))
def test_a_call_that_fails_changes_nothing(optimizer, call):
    """Also where it was about to end the round: that goes on, with the values that it had."""
    call, message = failing_calls(4)[call]
    rate = [0.5]
    rng = np.random.default_rng(0)
    params = [rng.normal(size=4).astype("f4") for _ in range(3)]
    opt = optimizer(params, lr=lambda _: rate[0], nonfinite="raise")
    grads = rng.normal(size=(2, 3, 4)).astype("f4")
    opt.step(list(grads[0]))
    assert opt.step_one(0, grads[1][0]).step == 2
    rate[0] = 0.25
    before = digest(opt)
    with pytest.raises((TypeError, ValueError), match=message):
        call(opt)
    assert digest(opt) == before
    assert opt.step_one(1, grads[1][1])[:2] == (2, 0.5)
    assert opt.step_one(2, grads[1][2])[:2] == (2, 0.5)
    assert opt.step_one(2, grads[1][2])[:2] == (3, 0.25)


def test_inside_a_block():
    params, opt = sgd(2, ema_decay=0.5)
    opt.step([ONE, ONE])
    opt.step_one(0, ONE)
    with (
        opt.averaged(),
        pytest.raises(ValueError, match="step_one: expected after the block that shows other"),
    ):
        opt.step_one(1, ONE)
    assert opt.step_one(1, ONE).step == 2
    assert values(params) == [-2.0, -2.0]


def test_inside_a_turn():
    """A gradient's own code cannot take another turn, nor read half of one."""
    _, opt = sgd(2)

    class Gradient:
        def __array__(self, dtype=None, copy=None):
            for call in (lambda: opt.step_one(1, ONE), lambda: opt.step([ONE, ONE])):
                with pytest.raises(ValueError, match="expected one thread at a time"):
                    call()
            return np.ones(1)

    assert opt.step_one(0, Gradient()).step == 1
    assert opt.step_one(1, ONE).step == 1


@pytest.mark.parametrize("why", ["nonfinite", "skip_grad_norm"])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("new_arrays", [False, True])
def test_a_step_that_is_skipped_leaves_the_round_open(why, by_rows, new_arrays):
    """It changes nothing but its own count: the round's numbers stay, and so does its count."""
    params, opt = sgd(2, lr=lambda step: 1.0 / (1 + step))
    opt.step_one(0, ONE)
    step = (lambda grads: opt.step_rows(dict(enumerate(grads)))) if by_rows else opt.step
    large = np.full(1, np.nan if why == "nonfinite" else 2.0)
    setattr(opt, why, "skip" if why == "nonfinite" else 1.5)
    if new_arrays:
        opt.param_groups[0]["ema_decay"] = 0.5
    before, state = values(params), opt.state_dict()
    info = step([large, ONE])
    assert info.skipped
    assert info.step == 1
    assert values(params) == before
    state["step_options"]["skipped_steps"] = 1
    assert digest(opt.state_dict()) == digest(state)
    setattr(opt, why, "propagate" if why == "nonfinite" else None)
    assert opt.step_one(1, ONE)[:2] == (1, 1.0)
    assert opt.step([ONE, ONE])[:2] == (2, 0.5)


def test_a_range_test_in_an_open_round():
    """It tries steps on a copy, and the round goes on."""
    _, opt = sgd(2, lr=lambda step: 1.0 / (1 + step))
    opt.step_one(0, ONE)
    before = digest(opt)
    op.search.range_test(opt, lambda: (1.0, [ONE, ONE]), steps=3)
    assert digest(opt) == before
    assert opt.step_one(1, ONE) == op.StepInfo(1, 1.0)


@pytest.mark.parametrize("turns", [(0,), (0, 1), (0, 0)], ids=["open", "last", "anew"])
def test_interrupts(turns):
    """Ctrl-C at every line of Python in a turn: it has happened, or it has not."""
    runs = []

    def rate(step):
        return 0.5 / (1 + step)

    def new():
        _, opt = sgd(2, lr=rate, momentum=0.5)
        opt.step([ONE, ONE])
        for key in turns[:-1]:
            opt.step_one(key, ONE)
        return opt

    ends = []
    for happens in (False, True):
        opt = new()
        if happens:
            opt.step_one(turns[-1], ONE)
        ends.append(digest(opt))

    def attempt():
        runs.append(new())
        return lambda: runs[-1].step_one(turns[-1], ONE)

    for where, _ in itertools.chain(
        at_each_place(attempt), at_each_place(attempt, within=__file__)
    ):
        assert digest(runs[-1]) in ends, where
    assert len(runs) > 2
