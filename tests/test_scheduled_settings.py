"""Schedules of every setting that takes one: of a number, of several, and of one among several."""

import copy
import gc
import inspect
import math
import pickle
import re
import weakref
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, digest, moves_rows, run_reference, shaped
from onepass import schedules as s
from onepass._hyperparameters import Several
from test_oracle import values_of
from test_pairs import OPTIONS, Run, together
from test_registry import section

STEPS = 4


def takes_schedules(check):
    """Whether a schedule may stand for a setting, or for one of its numbers."""
    return any(kind.schedulable for kind in getattr(check, "kinds", [check]))


# Those of groups, which every rule has, once.
SETTINGS = [
    pytest.param(cls, name, id=f"{cls.__name__}-{name}")
    for cls in op.optim.registry.values()
    for name, check in (cls.group_checks if cls is RICHEST else cls.checks).items()
    if takes_schedules(check)
]
OF_SEVERAL = [
    param
    for param in SETTINGS
    if isinstance(param.values[0].group_checks[param.values[1]], Several)
]


def moving(values):
    """A schedule of these values."""
    return lambda completed: values[completed]


def a_number(kind, *, is_option=False):
    """Any number of a kind; where 0 and None switch arrays off, which a schedule keeps, another."""
    numbers = values_of(getattr(kind, "kind", kind))
    return numbers.filter(bool) if is_option else numbers


def paths_of(numbers):
    """A number for each step: any, or always the same."""
    moving_ones = st.lists(numbers, min_size=STEPS, max_size=STEPS)
    return moving_ones | numbers.map(lambda number: [number] * STEPS)


@st.composite
def schedules_of(draw, cls, name):
    """A setting with schedules in it, and the same by hand: a value for each step."""
    check = cls.group_checks[name]
    if not isinstance(check, Several):
        numbers = a_number(check, is_option=name in cls.row.options)
        values = draw(paths_of(numbers), "values")
        return moving(values), values
    numbers = st.tuples(*map(a_number, check.kinds))
    values = draw(paths_of(numbers), "values")
    if check.schedulable and draw(st.booleans(), "one schedule for all"):
        return moving(values), values
    moves = [kind.schedulable and draw(st.booleans(), "moves") for kind in check.kinds]
    paths = [
        path if move else [path[0]] * STEPS
        for move, path in zip(moves, zip(*values, strict=True), strict=True)
    ]
    mixed = tuple(
        moving(path) if move else path[0] for move, path in zip(moves, paths, strict=True)
    )
    return mixed, list(zip(*paths, strict=True))


def kept(opt):
    """What is saved of each parameter, without what stands there for PyTorch alone."""
    return [
        {name: value for name, value in entry.items() if name not in opt.saved_scalars}
        for entry in opt.state_dict()["state"].values()
    ]


def arrays(cls, size=12):
    rng = np.random.default_rng(size)
    start = shaped(cls, {}, rng.normal(size=size).astype(np.float32))
    return start, [rng.normal(size=start.shape).astype(np.float32) for _ in range(STEPS)]


@given(data=st.data())
@settings(max_examples=8)
@pytest.mark.parametrize(("cls", "name"), SETTINGS)
def test_a_schedule_is_the_setting_changed_by_hand(cls, name, data):
    """Bit for bit, parameters and state, also in the oracle: one that moves, one that does not."""
    scheduled, by_hand = data.draw(schedules_of(cls, name))
    start, grads = arrays(cls)
    ours, twin = start.copy(), start.copy()
    opt, other = cls(ours, **{name: scheduled}), cls(twin, **{name: by_hand[0]})
    for grad, value in zip(grads, by_hand, strict=True):
        other.param_groups[0][name] = value
        opt.step(grad), other.step(grad)
        assert digest(ours, kept(opt)) == digest(twin, kept(other))
    if name in cls.checks:
        assert digest(run_reference(cls, {name: scheduled}, start, grads)[0]) == digest(ours)


def all_moving(cls):
    """Every schedulable setting of a rule with a schedule of its own, around its default."""
    found, by_hand = {}, [{} for _ in range(20)]
    for name, check in cls.checks.items():
        default = cls.defaults[name]
        if not takes_schedules(check) or default is None:
            continue
        numbers = default if isinstance(check, Several) else (default,)
        kinds = check.kinds if isinstance(check, Several) else (check,)
        paths = [
            [(number or 0.1) * (1 - 0.02 * t) if kind.schedulable else number for t in range(20)]
            for number, kind in zip(numbers, kinds, strict=True)
        ]
        parts = tuple(
            moving(path) if kind.schedulable else path[0]
            for path, kind in zip(paths, kinds, strict=True)
        )
        found[name] = parts if isinstance(check, Several) else parts[0]
        for t, each in enumerate(by_hand):
            at_t = tuple(path[t] for path in paths)
            each[name] = at_t if isinstance(check, Several) else at_t[0]
    return found, by_hand


BESIDE = [options for each in OPTIONS.values() for options in each if together(options, {})]


@pytest.mark.parametrize("options", BESIDE, ids=str)
def test_all_of_them_move_at_once_beside_every_option(options, tmp_path):
    """Through skipped steps, accumulation and checkpoints."""
    scheduled, by_hand = all_moving(RICHEST)
    for each in (scheduled, *by_hand):
        del each["lr"]  # `Run` has its own
    run, twin = Run({**options, **scheduled}), Run(options)
    (overridden,) = options.get("overrides", {"none": {}}).values()
    for number in range(6):
        now = by_hand[twin.opt.state_dict()["param_groups"][0]["step"]]
        for group, own in zip(twin.opt.param_groups, ({}, overridden), strict=False):
            group.update({name: value for name, value in now.items() if name not in own})
        finite = number != 2 or options.get("nonfinite") == "raise"
        way = "accumulated" if number == 3 else "given"
        infos = [each.step(number, way, finite=finite) for each in (run, twin)]
        assert infos[0].skipped == infos[1].skipped
        if number == 4:
            run = run.resumed({**options, **scheduled}, tmp_path / "run.npz")
        states = [digest(each.params, kept(each.opt)) for each in (run, twin)]
        assert states[0] == states[1]


@pytest.mark.parametrize("cls", [cls for cls in op.optim.registry.values() if moves_rows(cls, {})])
def test_rows_move_by_the_schedules(cls):
    scheduled, by_hand = all_moving(cls)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 3)).astype(np.float32)
    tables = start.copy(), start.copy()
    opt, twin = cls(tables[0], **scheduled), cls(tables[1])
    for values in by_hand[:STEPS]:
        index = rng.integers(0, 6, size=4)
        grads = index, rng.normal(size=(4, 3)).astype(np.float32)
        twin.param_groups[0].update(values)
        opt.step_rows(grads), twin.step_rows(grads)
    assert digest(tables[0], kept(opt)) == digest(tables[1], kept(twin))


def test_groups_have_schedules_of_their_own(every_class):
    cls = every_class
    scheduled, by_hand = all_moving(cls)
    start, grads = arrays(cls)
    of_one = [start.copy(), start.copy()]
    groups = [{"params": of_one[0]}, {"params": of_one[1], **scheduled}]
    if cls.row.sums_over_all:  # such groups agree, and so must their schedules
        groups[0] |= scheduled
    opt = cls(groups)
    alone = [start.copy(), start.copy()]
    twin = cls([{"params": alone[0]}, {"params": alone[1]}])
    for grad, values in zip(grads, by_hand, strict=False):
        for group in twin.param_groups if cls.row.sums_over_all else twin.param_groups[1:]:
            group.update(values)
        opt.step([grad, grad]), twin.step([grad, grad])
    assert digest(of_one, kept(opt)) == digest(alone, kept(twin))


def test_schedules_of_a_rule_that_sums_over_all_must_agree():
    """In each step, whatever they are."""
    for betas in ((moving([0.9, 0.8]), 0.999), moving([(0.9, 0.999), (0.8, 0.999)])):
        w = np.ones(3), np.ones(3)
        opt = op.Prodigy([{"params": w[0], "betas": betas}, {"params": w[1]}])
        opt.step([np.ones(3)] * 2)
        before = digest(opt)
        with pytest.raises(ValueError, match="^beta1: expected the same in all groups, got 0.8"):
            opt.step([np.ones(3)] * 2)
        assert digest(opt) == before


def test_the_documentation_says_so(every_class):
    """Which settings take schedules, where a setting has an entry of its own."""
    parameters = section(every_class.__doc__, "Parameters")
    for name, check in every_class.checks.items():
        header = re.search(rf"^{name} : (.*)$", parameters, re.M)
        assert not header or ("schedule" in header[1]) == takes_schedules(check), name


def test_what_the_state_keeps_takes_no_schedule():
    """An epsilon that is part of an average, and a momentum that the average is found with."""
    schedule = s.constant(0.5)
    for cls, setting in [
        (op.Adamax, {"eps": schedule}),
        (op.AdaBelief, {"eps_root": schedule}),
        (op.Adafactor, {"eps": (schedule, 1e-3)}),
        (op.SGDScheduleFree, {"momentum": schedule}),
        (op.AdamWScheduleFree, {"betas": (schedule, 0.999)}),
        (op.RAdamScheduleFree, {"betas": (schedule, 0.999)}),
        (op.Rprop, {"etas": (schedule, 1.2)}),
        (op.Muon, {"ns_coefficients": (3.0, schedule, 2.0)}),
        (op.Adagrad, {"initial_accumulator_value": schedule}),
    ]:
        (name,) = setting
        with pytest.raises(TypeError, match=rf"^{name}: expected a value \(no schedule here\)"):
            cls(np.ones((2, 2)), **setting)
    words = r"^betas: expected a value \(a schedule for some of its numbers alone\), got "
    with pytest.raises(TypeError, match=words):
        op.AdamWScheduleFree(np.ones(2), betas=lambda _: (0.9, 0.999))


# How a setting with a schedule among its numbers behaves


@pytest.mark.parametrize(("cls", "name"), OF_SEVERAL)
def test_a_bad_value_names_the_setting_and_changes_nothing(cls, name):
    check, good = cls.checks[name], cls.defaults[name]
    place = max(i for i, kind in enumerate(check.kinds) if kind.schedulable)
    w = shaped(cls, {}, np.ones(12))
    for bad in (-1.0, math.nan, None, "0.5", True, 1j, (0.5,), np.ones(1)):
        values = [good[place], bad]
        member = (*good[:place], moving(values), *good[place + 1 :])
        whole = [good, (*good[:place], bad, *good[place + 1 :])]
        for scheduled in (member, moving(whole))[: 1 + check.schedulable]:
            opt = cls(w, **{name: scheduled})
            opt.step(np.ones_like(w))
            before = digest(opt, w)
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
                opt.step(np.ones_like(w))
            assert digest(opt, w) == before


@pytest.mark.parametrize("bad", [0.9, (0.9,), (0.9, 0.99, 0.999), None, "ab", np.ones((2, 1))])
def test_a_schedule_of_both_gives_two(bad):
    opt = op.Adam(np.ones(2), betas=lambda _: bad)
    with pytest.raises(TypeError, match=r"^betas: expected two numbers in \[0, 1\), got "):
        opt.step(np.ones(2))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_schedule_that_raises_changes_nothing(error):
    def beta1(step):
        if step == 1:
            raise error
        return 0.5

    w = np.ones(3)
    opt = op.AdamW(w, lr=s.cosine(0.1, 5), betas=(beta1, s.constant(0.9)))
    opt.step(np.ones(3))
    before = digest(opt, w)
    with pytest.raises(error):
        opt.step(np.ones(3))
    assert digest(opt, w) == before


def test_assigned_between_steps_and_taken_back():
    by_hand, w = np.ones(3), np.ones(3)
    opt, other = op.AdamW(w), op.AdamW(by_hand)
    values = (0.9, 0.999), (0.5, 0.999), (0.8, 0.9), (0.25, 0.9), (0.9, 0.99)
    for scheduled in (
        None,
        (moving([None, 0.5]), 0.999),
        lambda _: np.array([0.8, 0.9]),
        [moving([None] * 3 + [0.25]), np.array(0.9)],
        (0.9, 0.99),
    ):
        if scheduled is not None:
            opt.param_groups[0]["betas"] = scheduled
        betas = values[opt.state_dict()["param_groups"][0]["step"]]
        other.param_groups[0]["betas"] = betas
        opt.step(np.ones(3)), other.step(np.ones(3))
        assert digest(w) == digest(by_hand)
    assert opt.param_groups[0]["betas"] == (0.9, 0.99)


def test_settings_still_go_together_or_not():
    """What is looked at together sees a schedule as a number that is not 0."""
    opt = op.LARS(np.ones(2), momentum=s.constant(0.5), nesterov=True)
    opt.step(np.ones(2))
    opt.param_groups[0].update(momentum=0.0)
    with pytest.raises(ValueError, match="^nesterov: expected momentum > 0"):
        opt.step(np.ones(2))


def test_printed_copied_pickled():
    betas = (s.one_cycle(0.1, 20).momentum(), 0.99)
    w = np.ones(2)
    opt = op.Adam(w, betas=betas)
    words = "betas=(one_cycle(peak=0.1, steps=20, pct_start=0.3, div_factor=25.0, "
    assert words in repr(opt)
    assert "final_div_factor=10000.0).momentum(0.85, 0.95), 0.99)" in repr(opt)
    opt.step(np.ones(2))
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert twin.param_groups[0]["betas"] == betas
        start = twin.param_groups[0]["params"][0]
        np.testing.assert_array_equal(start, w)
        ours = copy.deepcopy(opt)
        ours.step(np.ones(2)), twin.step(np.ones(2))
        assert digest(ours) == digest(twin)
    assert "betas=(beta1, 0.99)" in repr(op.Adam(w, betas=(named_beta1, 0.99)))


def named_beta1(_step):
    return 0.9


named_beta1.__name__ = "beta1"


def test_a_schedule_that_was_replaced_need_not_have_a_copy():
    opt = op.Adam(np.ones(2), betas=(lambda _: 0.9, 0.99))
    opt.param_groups[0]["betas"] = (0.8, 0.99)
    twin = pickle.loads(pickle.dumps(opt))
    twin.add_param_group({"params": np.ones(3)})
    assert twin.param_groups[1]["betas"] == (0.8, 0.99)


@pytest.mark.parametrize("way", ["by pattern", "overrides", "list"])
def test_a_schedule_of_some_names_that_was_replaced_need_not_have_a_copy(way):
    """A group that is added gets what is in force for the names of its pattern."""
    by_name = {"b*": {"lr": lambda _: 0.5}, "*": {"lr": 0.25}}
    given = {
        "by pattern": {"lr": {pattern: own["lr"] for pattern, own in by_name.items()}},
        "overrides": {"overrides": by_name},
        "list": {"overrides": [{"w": {"momentum": 0.5}}, by_name]},
    }
    opt = op.SGD({"w": np.ones(2), "b": np.ones(2)}, **given[way])
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(opt)  # it is in force
    of_b = next(group for group in opt.param_groups if callable(group["lr"]))
    of_b["lr"] = 0.125
    for twin in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        twin.add_param_group({"params": {"b2": np.ones(3)}})
        twin.add_param_group({"params": {"v": np.ones(3)}})
        assert [group["lr"] for group in twin.param_groups] == [0.25, 0.125, 0.125, 0.25]


@pytest.mark.parametrize("form", ["heavy_ball", "sutskever"])
def test_a_scheduled_momentum_of_0_with_nesterov_is_a_plain_step(form, dtype):
    """v = mu * v + g, p -= lr * (mu * v + g), or with lr inside v: numbers that are exact."""
    momenta, w, v = [0.0, 0.5, 0.0, 0.5], np.array([1.0, 2.0], dtype), np.zeros(2)
    opt = op.SGD(w, 0.25, lambda step: momenta[step], nesterov=True, form=form)
    expected, grad = np.array([1.0, 2.0]), np.array([4.0, -8.0])
    for momentum in momenta:
        opt.step(grad.astype(dtype))
        v = momentum * v + grad
        expected = expected - 0.25 * (momentum * v + grad)
        np.testing.assert_array_equal(w, expected)


class Schedule:
    def __call__(self, _step):
        return 0.5


def test_one_of_several_is_let_go_of():
    schedule = Schedule()
    opt = schedule.opt = op.Adam(np.ones(3), betas=(schedule, 0.99))
    opt.step(np.ones(3))
    del schedule
    seen = weakref.ref(opt)
    del opt
    gc.collect()
    assert seen() is None


def test_a_schedule_may_change_the_settings_while_it_is_called():
    """The change counts from the next step on."""

    def beta1(_step):
        opt.param_groups[0]["betas"] = (0.0, 0.0)
        return 0.5

    w, expected = np.ones(2), np.ones(2)
    opt = op.Adam(w, betas=(beta1, s.constant(0.9)))
    other = op.Adam(expected, betas=(0.5, 0.9))
    opt.step(np.full(2, 3.0)), other.step(np.full(2, 3.0))
    other.param_groups[0]["betas"] = (0.0, 0.0)
    opt.step(np.ones(2)), other.step(np.ones(2))
    assert digest(w) == digest(expected)


def test_minimize_takes_them():
    def fun_and_grad(x):
        return float(x @ x), 2 * x

    scheduled, by_hand = all_moving(op.Adam)
    found = op.minimize(
        fun_and_grad, np.ones(3), optimizer=op.Adam, maxiter=5, gtol=None, point="last", **scheduled
    )
    x = np.ones(3)
    opt = op.Adam(x)
    for values in by_hand[: found.nit]:
        opt.param_groups[0].update(values)
        opt.step(2 * x)
    assert found.nit > 1
    np.testing.assert_array_equal(found.x, x)


def test_kernels_take_numbers():
    arrays = [np.ones(2) for _ in range(4)]
    before = digest(arrays)
    for betas in (lambda _: (0.9, 0.99), (lambda _: 0.9, 0.99)):
        with pytest.raises(TypeError, match=r"^betas: expected a "):
            op.kernels.adam(*arrays, step=1, betas=betas)
    assert digest(arrays) == before


# Checkpoints


def adam(betas, **options):
    opt = op.Adam(np.ones(2), betas=betas, **options)
    opt.step(np.ones(2))
    return opt


def told(value=0.9, errors=(1.0, 2.0)):
    schedule = s.ReduceOnPlateau(value)
    for error in errors:
        schedule.report(error)
    return schedule


def through_file(opt, resumed, tmp_path):
    opt.save(tmp_path / "run.npz")
    resumed.load(tmp_path / "run.npz")


def through_dict(opt, resumed, tmp_path):
    resumed.load_state_dict(opt.state_dict())


@pytest.fixture(params=[through_dict, through_file])
def load(request):
    return request.param


def test_a_memory_among_several_is_saved(load, tmp_path):
    schedule, fresh = told(), s.ReduceOnPlateau(0.7)
    opt, resumed = adam((schedule, 0.99)), adam((fresh, 0.5))
    assert opt.state_dict()["param_groups"][0]["betas"] == ([schedule.state_dict()], 0.99)
    load(opt, resumed, tmp_path)
    assert fresh.state_dict() == schedule.state_dict()
    assert resumed.param_groups[0]["betas"] == (fresh, 0.99)  # the number is the saved one
    ours, theirs = adam((told(), 0.99)), resumed
    ours.step(np.ones(2)), theirs.step(np.ones(2))
    assert digest(kept(ours)) == digest(kept(theirs))


def test_without_a_memory_nothing_is_saved_of_it(load, tmp_path):
    opt, resumed = adam((s.constant(0.8), 0.99)), adam((s.constant(0.7), 0.5))
    assert opt.state_dict()["param_groups"][0]["betas"] == (None, 0.99)
    load(opt, resumed, tmp_path)
    assert resumed.param_groups[0]["betas"] == (s.constant(0.7), 0.99)


def test_one_schedule_for_all_is_saved_as_one(load, tmp_path):
    class Both:
        beta1 = 0.9

        def __call__(self, _step):
            return self.beta1, 0.99

        def state_dict(self):
            return {"beta1": self.beta1}

        def load_state_dict(self, state_dict):
            self.beta1 = state_dict["beta1"]

    schedule, fresh = Both(), Both()
    schedule.beta1 = 0.5
    opt, resumed = adam(schedule), adam(fresh)
    assert opt.state_dict()["param_groups"][0]["betas"] == [{"beta1": 0.5}]
    load(opt, resumed, tmp_path)
    assert fresh.beta1 == 0.5
    # Of numbers, of other schedules and of none, the memory is of no use to it.
    for other in ((0.8, 0.9), (told(), 0.9), lambda _: (0.8, 0.9)):
        load(adam(other), resumed, tmp_path)
        assert fresh.beta1 == 0.5
        assert resumed.param_groups[0]["betas"] is fresh


@pytest.mark.parametrize(
    "live", [(0.9, 0.99), (s.constant(0.9), 0.99), (0.9, s.constant(0.99))], ids=str
)
@pytest.mark.parametrize("which", [0, 1, "both"])
@pytest.mark.parametrize("remembers", [False, True])
def test_a_number_does_not_stand_for_a_schedule(live, which, remembers, load, tmp_path):
    """Where the saved run had a schedule, this one must have one."""
    schedule = told() if remembers else s.constant(0.9)
    saved = [0.9, 0.99]
    if which == "both":
        wants = (0, 1)
        saved = Pair(schedule)
    else:
        wants = (which,)
        saved[which] = schedule
    resumed = adam(live)
    before = digest(resumed)
    if all(callable(live[i]) for i in wants):
        load(adam(saved), resumed, tmp_path)
        assert resumed.param_groups[0]["betas"] == live
        return
    with pytest.raises(ValueError, match=r"^param_groups\[0\]: expected a schedule for 'betas'"):
        load(adam(saved), resumed, tmp_path)
    assert digest(resumed) == before


class Pair(s._base.BaseSchedule):
    """Both of a schedule, with its memory."""

    def __init__(self, schedule):
        self.schedule = schedule

    def _value(self, step):
        return self.schedule(step), 0.99

    @property
    def parts(self):
        return (self.schedule,)


def test_a_bad_memory_among_several_changes_nothing():
    fresh = s.ReduceOnPlateau(0.7)
    resumed = adam((fresh, 0.5))
    before = digest(resumed)
    for bad in ([{}], [5], [], [told().state_dict()] * 2):
        saved = adam((told(), 0.99)).state_dict()
        saved["param_groups"][0]["betas"] = (bad, 0.99)
        with pytest.raises(ValueError, match="expected the (keys|memory)"):
            resumed.load_state_dict(saved)
        assert digest(resumed) == before


# Numbers in arrays without axes


class Bare:
    """An array with the least that there may be."""

    shape = ()

    def __float__(self):
        return 0.125

    def __array__(self, dtype=None, copy=None):
        return np.array(0.125)


ZERO_D = {
    "numpy": lambda: np.array(0.125),
    "numpy, float16": lambda: np.array(0.125, np.float16),
    "numpy, bfloat16": lambda: np.array(0.125, ml_dtypes.bfloat16),
    "numpy, object": lambda: np.array(Fraction(1, 8), object),
    "scalar": lambda: np.float32(0.125),
    "bfloat16": lambda: ml_dtypes.bfloat16(0.125),
    "bare": Bare,
    "jax": lambda: pytest.importorskip("jax").numpy.asarray(0.125),
    "torch": lambda: pytest.importorskip("torch").tensor(0.125),
}


@pytest.mark.parametrize("name", ZERO_D)
def test_an_array_without_axes_is_a_number(name):
    """As a value and as a schedule's, alone and among several; as a loss, and inside a schedule."""
    number, expected = ZERO_D[name](), np.ones(3)
    op.AdamW(expected, lr=0.125, betas=(0.125, 0.99)).step(np.ones(3), grad_scale=0.125)
    for options in (
        {"lr": number, "betas": (number, 0.99)},
        {"lr": lambda _: number, "betas": (lambda _: number, 0.99)},
        {"lr": s.warmup(0, lambda _: number), "betas": lambda _: [number, 0.99]},
        {"lr": s.join([lambda _: number], []), "betas": (s.constant(number), 0.99)},
    ):
        w = np.ones(3)
        opt = op.AdamW(w, **options)
        assert opt.step(np.ones(3), grad_scale=number).lr == 0.125
        assert digest(w) == digest(expected)
    assert s.warmup(2, lambda _: number)(1) == 0.0625
    assert type(s.join([lambda _: number], [])(0)) is float
    plateau = s.ReduceOnPlateau(0.1)
    plateau.report(number)
    assert plateau.reference == 0.125


@pytest.mark.parametrize(
    "value",
    [
        *("0.1", True, np.array([0.1]), np.array(True), np.array(1j), np.array("0.1")),
        *(np.array("2020-01-01", "M8[D]"), np.array(None), np.array("0.1", object)),
    ],
    ids=repr,
)
def test_what_is_no_number(value):
    for lr in (value, lambda _: value):
        with pytest.raises(TypeError, match="^lr: expected a finite number >= 0, got "):
            op.SGD(np.ones(2), lr=lr).step(np.ones(2))
    for betas in ((value, 0.9), lambda _: (value, 0.9), (lambda _: value, 0.9)):
        with pytest.raises(TypeError, match="^betas: expected a number in "):
            op.Adam(np.ones(2), betas=betas).step(np.ones(2))
    with pytest.raises(TypeError, match="^error: expected a number, got "):
        s.ReduceOnPlateau(0.1).report(value)


@pytest.mark.parametrize("value", [np.array(3), np.array(3, np.uint8), np.int8(3)], ids=repr)
def test_an_array_without_axes_is_a_whole_number(value):
    opt = op.SGD(np.ones(2), seed=value, swa_start=value)
    assert opt.seed == opt.param_groups[0]["swa_start"] == 3
    assert type(opt.seed) is int
    assert s.constant(0.5)(value) == 0.5


@pytest.mark.parametrize(
    "value", [np.array(3.0), np.array([3]), np.array(True), np.array("3"), 3.0, True], ids=repr
)
def test_what_is_no_whole_number(value):
    with pytest.raises(TypeError, match="^seed: expected an integer"):
        op.SGD(np.ones(2), seed=value)
    with pytest.raises(TypeError, match="^step: expected an integer"):
        s.constant(0.5)(value)


def test_schedules_of_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    lr = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 8)
    beta1 = optax.linear_schedule(0.95, 0.85, 5)
    w, expected = np.ones(3), np.ones(3)
    opt, twin = op.AdamW(w, lr=lr, betas=(beta1, 0.99)), op.AdamW(expected)
    for step in range(8):
        twin.param_groups[0].update(lr=float(lr(step)), betas=(float(beta1(step)), 0.99))
        assert opt.step(np.ones(3)).lr == float(lr(step))
        twin.step(np.ones(3))
    assert digest(w) == digest(expected)


# PyTorch's


def cycled_classes(torch):
    """Every class that PyTorch has, with the setting whose number its scheduler moves."""
    for cls in op.optim.registry.values():
        theirs = getattr(torch.optim, cls.__name__, None)
        parameters = inspect.signature(theirs).parameters if theirs else ()
        for name in ("betas", "momentum"):
            if name in parameters:
                yield cls, theirs, name


@pytest.mark.parametrize("pct_start", [0.3, 0.5])
@pytest.mark.usefixtures("torch_in_float64")
def test_the_momentum_of_one_cycle_is_pytorchs(pct_start, rng):
    """All steps of every class that PyTorch has and whose momentum its scheduler moves."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    lr = s.one_cycle(0.1, 20, pct_start)
    moves = lr.momentum(0.6, 0.9)
    tried = 0
    for cls, theirs, name in cycled_classes(torch):
        w = rng.normal(size=(4, 3))
        tensor = torch.nn.Parameter(torch.tensor(w))
        of_both = name == "betas"
        scheduled = (moves, *cls.defaults[name][1:]) if of_both else moves
        opt = cls(w, lr=lr, **{name: scheduled})
        torch_opt = theirs([tensor], lr=0.1, **({} if of_both else {name: 0.5}))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            torch_opt, 0.1, 20, pct_start=pct_start, base_momentum=0.6, max_momentum=0.9
        )
        for step in range(20):
            grad = rng.normal(size=w.shape)
            tensor.grad = torch.from_numpy(grad)
            now = torch_opt.param_groups[0][name]
            assert math.isclose(moves(step), now[0] if of_both else now, rel_tol=1e-12)
            torch_opt.step(), opt.step(grad)
            np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=1e-12, atol=1e-12)
            if step < 19:
                scheduler.step()
        tried += 1
    assert tried > 5
    assert moves(0) == moves(19) == moves(500) == 0.9


def test_the_momentum_of_one_cycle_by_its_equation():
    """Half waves of a cosine that turn at the step of the peak, 0.25 * 9 - 1 = 1.25, of 8."""
    momentum = s.one_cycle(1.0, 9, pct_start=0.25).momentum(0.5, 0.9)
    for step in range(9):
        share = step / 1.25 if step <= 1 else 1 - (step - 1.25) / 6.75
        expected = 0.7 + 0.2 * math.cos(math.pi * share)
        assert math.isclose(momentum(step), expected, rel_tol=1e-14)
    assert s.one_cycle(1.0, 9).momentum(0.0, 0.9)(2) < 0.1  # it may fall to 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-0.1, 0.9), r"base_momentum: expected a number in \[0, 1\), got -0.1"),
        ((0.1, 1.0), r"max_momentum: expected a number in \[0, 1\), got 1.0"),
        (("0.1", 0.9), r"base_momentum: expected a number in \[0, 1\), got '0.1'"),
    ],
)
def test_the_momentum_of_one_cycle_is_checked(arguments, words):
    with pytest.raises((TypeError, ValueError), match="^" + words):
        s.one_cycle(1.0, 9).momentum(*arguments)
