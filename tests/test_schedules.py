"""Schedules: their equations, PyTorch's and optax's own, and the memory of the one that has one."""

import copy
import inspect
import json
import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import digest
from onepass import schedules as s
from onepass.schedules import _foreign
from test_registry import assert_documented, section

PURE = {
    "constant": s.constant(0.1),
    "step_decay": s.step_decay(0.8, every=5),
    "exponential": s.exponential(1.0, rate=0.01),
    "inverse_time": s.inverse_time(1.0, rate=0.25),
    "polynomial": s.polynomial(1.0, steps=40, final=0.1, power=2.0),
    "cosine": s.cosine(1.0, steps=40, final=0.1),
    "cosine_restarts": s.cosine_restarts(1.0, steps=10, final=0.1, multiplier=2),
    "one_cycle": s.one_cycle(1.0, steps=40),
    "one_cycle.momentum": s.one_cycle(1.0, steps=40).momentum(),
    "warmup": s.warmup(4, then=s.cosine(1.0, steps=36)),
    "warmup_stable_decay": s.warmup_stable_decay(1.0, steps=40, warmup=4, decay=8, final=0.1),
    "piecewise": s.piecewise(0.1, boundaries=(10, 40), values=(0.05, 0.01)),
    "join": s.join([s.constant(1.0), s.polynomial(1.0, steps=30)], boundaries=[10]),
    "scaled": s.scaled(s.cosine(1.0, steps=40, final=0.5), 0.25),
    "sutskever_momentum": s.sutskever_momentum(0.9),
}
ENDLESS = {"exponential", "inverse_time", "step_decay", "cosine_restarts"}
LAST = {  # what the arguments say, from step 40 on (momentum: 1,000)
    "constant": 0.1,
    "polynomial": 0.1,
    "cosine": 0.1,
    "one_cycle": 1 / 25 / 1e4,
    "one_cycle.momentum": 0.95,
    "warmup": 0.0,
    "warmup_stable_decay": 0.1,
    "piecewise": 0.01,
    "join": 0.0,
    "scaled": 0.125,
    "sutskever_momentum": 0.9,
}


@pytest.fixture(params=PURE.values(), ids=PURE)
def schedule(request):
    return request.param


def values(schedule, n=60):
    return [schedule(step) for step in range(n)]


# What all share


def test_every_schedule_is_in_the_table():
    assert {name.split(".")[0] for name in PURE} | {"ReduceOnPlateau"} == set(s.__all__)
    assert set(LAST) | ENDLESS == set(PURE)


@pytest.mark.parametrize("name", s.__all__)
def test_documentation_is_whole(name):
    thing = getattr(s, name)
    doc = thing.__doc__
    assert ".. math::" in doc
    assert "TypeError, ValueError" in section(doc, "Raises")
    assert ">>> " in section(doc, "Examples")
    assert_documented(inspect.signature(thing).parameters, section(doc, "Parameters"))
    assert name == "constant" or "PyTorch" in section(doc, "Notes").split("Differs from")[1]
    assert "References" not in doc or re.search(r"\b(19|20)\d\d\b", section(doc, "References"))
    for method in vars(thing):
        assert (
            method.startswith("_")
            or not callable(getattr(thing, method))
            or (getattr(thing, method).__doc__)
        )


@pytest.mark.parametrize(
    ("make", "name", "hint"),
    [
        (lambda **given: s.cosine(steps=9, **given), "lr", " (here it is initial)"),
        (lambda **given: s.cosine(1.0, **given), "T_max", " (here it is steps)"),
        (lambda **given: s.cosine(1.0, 9, **given), "eta_min", " (here it is final)"),
        (lambda **given: s.cosine(1.0, 9, **given), "finall", " (perhaps final)"),
        (lambda **given: s.cosine(1.0, 9, **given), "speed", ""),
        (lambda **given: s.cosine_restarts(1.0, 9, **given), "T_mult", " (here it is multiplier)"),
        (lambda **given: s.one_cycle(steps=9, **given), "max_lr", " (here it is peak)"),
        (lambda **given: s.step_decay(1.0, **given), "step_size", " (here it is every)"),
        (lambda **given: s.step_decay(1.0, 9, **given), "gamma", " (here it is factor)"),
        (lambda **given: s.piecewise(1.0, **given), "milestones", " (here it is boundaries)"),
        (lambda **given: s.ReduceOnPlateau(1.0, **given), "eta_min", " (here it is min_lr)"),
    ],
)
def test_an_unknown_name_says_what_is_meant_and_then_what_is_known(make, name, hint):
    with pytest.raises(TypeError) as caught:
        make(**{name: 1.0})
    start = f"{name}: expected one of the arguments, got an unknown name{hint}; they are "
    assert str(caught.value).startswith(start)


def test_names_of_other_libraries_mean_arguments_that_there_are():
    known = {each for name in s.__all__ for each in getattr(s, name).checks}
    for meant in _foreign.NAMES.values():
        assert set(meant) <= known
    for name in s.__all__:
        arguments = inspect.signature(getattr(s, name)).parameters
        assert list(arguments) == list(getattr(s, name).checks)


def test_equal_copied_pickled_printed(schedule):
    twins = [copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))]
    twins.append(eval(repr(schedule), vars(s).copy()))
    for twin in twins:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert values(twin) == values(schedule)
    assert repr(schedule) in repr(op.SGD(np.ones(3), lr=schedule))


def test_an_optimizer_uses_it(schedule):
    opt = op.SGD(np.ones(3), lr=schedule)
    assert [opt.step(np.ones(3)).lr for _ in range(50)] == values(schedule, 50)


@given(step=st.integers(0, 10**9))
@pytest.mark.parametrize("name", PURE)
def test_values_are_finite_numbers_between_zero_and_the_largest(name, step):
    value = PURE[name](step)
    assert type(value) is float
    assert 0 <= value <= (1 + 1e-15)


@pytest.mark.parametrize("name", LAST)
def test_past_its_end_it_stays_at_its_last_value(name):
    for step in (1_000, 1_001, 10**9):
        assert math.isclose(PURE[name](step), LAST[name], rel_tol=1e-15)
    if name != "sutskever_momentum":
        assert math.isclose(PURE[name](40), LAST[name], rel_tol=1e-15)


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_steps_are_integers_from_zero(schedule, step, error):
    with pytest.raises(error, match="^step: expected an integer >= 0, got "):
        schedule(step)
    assert schedule(np.int64(3)) == schedule(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: s.constant(-1), "value: expected a finite number >= 0, got -1"),
        (lambda: s.step_decay(0.1, every=0), "every: expected an integer >= 1, got 0"),
        (lambda: s.step_decay(0.1, every=5.0), "every: expected an integer >= 1, got 5.0"),
        (lambda: s.step_decay(0.1, 5, factor=0), "factor: expected a number in"),
        (lambda: s.step_decay(0.1, 5, factor=1.5), "factor: expected a number in"),
        (lambda: s.exponential(0.1, rate=-1), "rate: expected a finite number >= 0"),
        (lambda: s.inverse_time(math.nan, rate=1), "initial: expected a finite number >= 0"),
        (lambda: s.polynomial(0.1, steps=-1), "steps: expected an integer >= 0"),
        (lambda: s.cosine_restarts(0.1, steps=0), "steps: expected an integer >= 1"),
        (lambda: s.polynomial(0.1, 9, power=0), "power: expected a finite number > 0"),
        (lambda: s.cosine(0.1, 9, final=-1), "final: expected a finite number >= 0"),
        (lambda: s.cosine_restarts(0.1, 9, multiplier=0), "multiplier: expected an integer >= 1"),
        (lambda: s.one_cycle(0.1, 1), "steps: expected an integer >= 2"),
        (lambda: s.one_cycle(0.1, 9, pct_start=1.1), "pct_start: expected a number in [0, 1]"),
        (lambda: s.one_cycle(0.1, 9, div_factor=0), "div_factor: expected a finite number > 0"),
        (lambda: s.warmup(4, then=0.1), "then: expected a schedule, got 0.1"),
        (lambda: s.warmup_stable_decay(1, 9, 5, 5), "steps: expected at least warmup + decay = 10"),
        (lambda: s.piecewise(1, 5, values=(1,)), "boundaries: expected a sequence, got 5"),
        (lambda: s.piecewise(1, (-1,), values=(1,)), "boundaries[0]: expected an integer >= 0"),
        (lambda: s.piecewise(1, (5, 4), (1, 1)), "boundaries: expected steps in increasing order"),
        (lambda: s.piecewise(1, (5,)), "values: expected them or factors, got neither"),
        (lambda: s.piecewise(1, (5,), (1,), (1,)), "values: expected them or factors, got both"),
        (lambda: s.piecewise(1, (5,), (1, 2)), "values: expected 1 for these boundaries, got 2"),
        (lambda: s.piecewise(1, (5,), factors=(-1,)), "factors[0]: expected a finite number >= 0"),
        (lambda: s.join([abs], [5]), "schedules: expected 2 for these boundaries, got 1"),
        (lambda: s.join([abs, 0.1], [5]), "schedules[1]: expected a schedule, got 0.1"),
        (lambda: s.sutskever_momentum(1), "maximum: expected a number in [0, 1), got 1"),
        (lambda: s.ReduceOnPlateau(0.1, factor=1), "factor: expected a number in (0, 1)"),
        (lambda: s.ReduceOnPlateau(0.1, patience=-1), "patience: expected an integer >= 0"),
        (lambda: s.ReduceOnPlateau(0.1, min_lr=0.2), "min_lr: expected at most lr = 0.1, got 0.2"),
        (lambda: s.ReduceOnPlateau(0.1, compare="mean"), "compare: expected one of 'last', 'best'"),
    ],
)
def test_arguments_are_checked(make, words):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(words)):
        make()


# The lectures' equations


def test_step_decay_of_the_lectures():
    """Halve every 5 epochs; times 0.1 every 30."""
    halve = s.step_decay(0.8, every=5 * 7)  # seven steps an epoch
    assert [halve(7 * epoch) for epoch in (0, 4, 5, 9, 10)] == [0.8, 0.8, 0.4, 0.4, 0.2]
    tenth = s.step_decay(1.0, every=30, factor=0.1)
    np.testing.assert_allclose([tenth(t) for t in (29, 30, 59, 60)], [1, 0.1, 0.1, 0.01])


@given(rate=st.floats(0, 10), step=st.integers(0, 10_000))
def test_exponential_and_inverse_time(rate, step):
    assert s.exponential(0.5, rate)(step) == 0.5 * math.exp(-rate * step)
    assert s.inverse_time(0.5, rate)(step) == 0.5 / (1 + rate * step)


@given(low=st.floats(0, 1), high=st.floats(0, 1), steps=st.integers(1, 1000), data=st.data())
def test_cosine_and_polynomial(low, high, steps, data):
    t = data.draw(st.integers(0, steps))
    cosine = low + 0.5 * (high - low) * (1 + math.cos(math.pi * t / steps))
    polynomial = low + (high - low) * (1 - t / steps) ** 3
    # A few roundings of numbers up to 1.
    assert math.isclose(s.cosine(high, steps, low)(t), cosine, abs_tol=1e-15)
    assert math.isclose(s.polynomial(high, steps, low, 3)(t), polynomial, abs_tol=1e-15)
    assert s.cosine(high, steps, low)(0) == high
    assert s.cosine(high, steps, low)(steps) == low


@given(t=st.integers(0, 10**6), maximum=st.sampled_from([0.999, 0.995, 0.99, 0.9, 0]))
def test_momentum_of_sutskever(t, maximum):
    expected = min(1 - 2 ** (-1 - math.log2(t // 250 + 1)), maximum)
    assert math.isclose(s.sutskever_momentum(maximum)(t), expected, rel_tol=1e-15)


def test_momentum_of_sutskever_rises_every_250_steps():
    momentum = s.sutskever_momentum(0.9)
    found = [momentum(t) for t in (0, 249, 250, 499, 500, 999, 1_000)]
    np.testing.assert_allclose(found, [0.5, 0.5, 0.75, 0.75, 5 / 6, 0.875, 0.9], rtol=1e-15)


def test_momentum_of_sutskever_drives_sgd():
    opt = op.SGD(np.ones(2), 0.1, momentum=s.sutskever_momentum(), form="sutskever")
    opt.step(np.ones(2))
    opt.step(np.ones(2))
    # v = 0.1, then 0.5 * 0.1 + 0.1
    np.testing.assert_allclose(opt.param_groups[0]["params"][0], 1 - 0.1 - 0.15)


def test_warmup_rises_in_a_line_then_hands_over():
    schedule = s.warmup(4, then=s.step_decay(0.8, every=2), initial=0.4)
    expected = [0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.4, 0.4, 0.2]
    np.testing.assert_allclose(values(schedule, 9), expected, rtol=1e-15)


def test_phases_of_warmup_stable_decay():
    schedule = s.warmup_stable_decay(1.0, steps=12, warmup=4, decay=4, final=0.5)
    expected = [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert values(schedule, 14) == expected
    assert s.warmup_stable_decay(1.0, steps=4, warmup=0, decay=4)(0) == 1


OTHER = s.cosine(1.0, 7, final=0.5)
NO_STEPS = {  # a schedule with a phase of 0 steps: what is left of it
    "warmup": (s.warmup(0, OTHER, initial=9.0), OTHER),
    "warmup, stable": (
        s.warmup_stable_decay(1.0, 9, 0, 4),
        s.join([s.constant(1.0), s.polynomial(1.0, 4)], [5]),
    ),
    "stable": (s.warmup_stable_decay(1.0, 9, 5, 4), s.warmup(5, s.polynomial(1.0, 4))),
    "decay": (
        s.warmup_stable_decay(1.0, 9, 4, 0),
        s.join([s.warmup(4, s.constant(1.0)), s.constant(0.0)], [9]),
    ),
    "stable, decay": (
        s.warmup_stable_decay(1.0, 4, 4, 0, 0.5),
        s.join([s.warmup(4, s.constant(1.0)), s.constant(0.5)], [4]),
    ),
    "cosine": (s.cosine(1.0, 0, final=0.5), s.constant(1.0)),
    "polynomial": (s.polynomial(1.0, 0, final=0.5, power=2.0), s.constant(1.0)),
    "warmup, then no decay": (s.warmup(3, s.cosine(1.0, 0)), s.warmup(3, s.constant(1.0))),
    "first": (s.join([s.constant(9.0), OTHER], [0]), OTHER),
    "one between": (
        s.join([s.constant(1.0), s.constant(9.0), OTHER], [5, 5]),
        s.join([s.constant(1.0), OTHER], [5]),
    ),
    "first value": (s.piecewise(9.0, (0,), (1.0,)), s.constant(1.0)),
    "value between": (s.piecewise(1.0, (5, 5), (9.0, 0.5)), s.piecewise(1.0, (5,), (0.5,))),
    "factors": (s.piecewise(1.0, (5, 5), factors=(0.5, 0.5)), s.piecewise(1.0, (5,), (0.25,))),
}


@pytest.mark.parametrize("name", NO_STEPS)
def test_a_phase_of_no_steps_is_left_out(name):
    schedule, rest = NO_STEPS[name]
    assert values(schedule) == values(rest)


def test_phases_of_no_steps_are_optaxs(optax):
    """Where it takes them: a warning says that the value stays."""
    polynomial = optax.polynomial_schedule(1.0, 0.5, 2.0, 0)
    constant = optax.constant_schedule
    join = optax.join_schedules([constant(1.0), constant(9.0), constant(0.5)], [5, 5])
    pairs = (NO_STEPS["polynomial"][0], polynomial), (NO_STEPS["value between"][0], join)
    for schedule, theirs in pairs:
        assert values(schedule) == [float(theirs(step)) for step in range(60)]


def test_phases_of_no_steps_are_pytorchs(torch):
    def polynomial(module, opt):
        return module.PolynomialLR(opt, total_iters=0, power=2.0)

    def stairs(module, opt):
        return module.MultiStepLR(opt, [5, 5], gamma=0.5)

    for name, make in (("polynomial", polynomial), ("factors", stairs)):
        expected, _ = torch_values(torch, make, 60)
        assert values(NO_STEPS[name][0]) == list(expected)


def test_piecewise_by_values_and_by_factors():
    by_values = s.piecewise(1.0, (2, 4), values=(0.5, 0.125))
    by_factors = s.piecewise(1.0, (2, 4), factors=(0.5, 0.25))
    assert values(by_values, 6) == values(by_factors, 6) == [1, 1, 0.5, 0.5, 0.125, 0.125]


# The memory


def reported(schedule, errors):
    rates = []
    for error in errors:
        schedule.report(error)
        rates.append(schedule(0))
    return rates


def test_halves_after_an_epoch_that_is_worse_than_the_last():
    errors = [0.9, 0.5, 0.6, 0.55, 0.55, 0.7, 0.8]
    assert reported(s.ReduceOnPlateau(1.0), errors) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("compare", ["last", "best"])
def test_what_is_not_finite_is_worse(compare):
    nan, inf = math.nan, math.inf
    schedule = s.ReduceOnPlateau(1.0, compare=compare)
    rates = reported(schedule, [nan, 0.5, nan, 0.4, inf, -inf, 0.3])
    assert rates == [0.5, 0.5, 0.25, 0.25, 0.125, 0.0625, 0.0625]
    assert schedule.reference == 0.3


def test_what_is_compared_after_one_that_is_not_finite():
    """The last is unknown then; the best is not."""
    assert reported(s.ReduceOnPlateau(1.0), [0.5, math.nan, 0.9]) == [1, 0.5, 0.5]
    best = s.ReduceOnPlateau(1.0, compare="best")
    assert reported(best, [0.5, math.nan, 0.9]) == [1, 0.5, 0.25]


def test_threshold_is_relative_and_has_the_errors_sign():
    last = s.ReduceOnPlateau(1.0, threshold=0.5)
    assert reported(last, [2.0, 3.0, 4.0, 7.0]) == [1, 1, 1, 0.5]
    assert reported(s.ReduceOnPlateau(1.0, threshold=0.5), [-2.0, -1.0, -0.4]) == [1, 1, 0.5]
    best = s.ReduceOnPlateau(1.0, threshold=0.5, compare="best")
    assert reported(best, [-2.0, -3.0, -3.5]) == [1, 0.5, 0.5]


def test_patience_cooldown_and_floor():
    rising = range(10)
    assert reported(s.ReduceOnPlateau(1.0, patience=2), rising) == [1] * 3 + [0.5] * 3 + [
        0.25
    ] * 3 + [0.125]
    # Two epochs after each reduction count for nothing.
    assert (
        reported(s.ReduceOnPlateau(1.0, cooldown=2), rising)
        == [1] + [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    )
    assert min(reported(s.ReduceOnPlateau(1.0, min_lr=0.3), rising)) == 0.3


@pytest.mark.parametrize("error", [None, "0.5", True, 1j])
def test_an_error_that_is_no_number_changes_nothing(error):
    schedule = s.ReduceOnPlateau(1.0)
    schedule.report(np.float32(0.5))
    before = schedule.state_dict()
    with pytest.raises(TypeError, match="^error: expected a number, got "):
        schedule.report(error)
    assert schedule.state_dict() == before


def used(errors=(1.0, 2.0), **options):
    schedule = s.ReduceOnPlateau(0.5, **options)
    for error in errors:
        schedule.report(error)
    return schedule


@given(st.lists(st.floats(), max_size=8), st.lists(st.floats(), max_size=8), st.integers(0, 2))
def test_memory_continues_where_it_was(before, after, patience):
    options = {"patience": patience, "cooldown": 1}
    whole = used(before, **options)
    resumed = s.ReduceOnPlateau(0.5, **options)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert reported(resumed, after) == reported(whole, after)
    assert resumed.state_dict() == whole.state_dict()


BAD_MEMORIES = [
    ({}, "state_dict: expected the keys lr, reference"),
    ([], "state_dict: expected the keys"),
    ({"lr": 0.5}, "state_dict: expected the keys"),
    ({"lr": -0.5}, "lr: expected a finite number >= 0"),
    ({"lr": math.nan}, "lr: expected a finite number >= 0"),
    ({"reference": "low"}, "reference: expected a finite number"),
    ({"reference": math.inf}, "reference: expected a finite number"),
    ({"num_bad_epochs": -1}, "num_bad_epochs: expected an integer >= 0"),
    ({"num_bad_epochs": 1.5}, "num_bad_epochs: expected an integer >= 0"),
    ({"cooldown_counter": None}, "cooldown_counter: expected an integer >= 0"),
    ({"extra": 1}, "state_dict: expected the keys"),
]


def bad_memory(spoiled):
    one_entry = isinstance(spoiled, dict) and spoiled and spoiled != {"lr": 0.5}
    return {**used().state_dict(), **spoiled} if one_entry else spoiled


@pytest.mark.parametrize(("spoiled", "words"), BAD_MEMORIES)
def test_a_bad_memory_changes_nothing(spoiled, words):
    schedule = used([3.0, 4.0, 5.0])
    before = schedule.state_dict()
    with pytest.raises((TypeError, ValueError), match="^" + words):
        schedule.load_state_dict(bad_memory(spoiled))
    assert schedule.state_dict() == before


# The memory in the optimizer's state


def optimizer_with(*schedules, **step_options):
    groups = [{"params": np.ones(2), "lr": schedule} for schedule in schedules]
    opt = op.SGD(groups, **step_options)
    opt.step([np.ones(2)] * len(groups))
    return opt


def through_file(opt, resumed, tmp_path):
    opt.save(tmp_path / "run.npz")
    resumed.load(tmp_path / "run.npz")


def through_dict(opt, resumed, tmp_path):
    resumed.load_state_dict(opt.state_dict())


@pytest.mark.parametrize("load", [through_dict, through_file])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda schedule: schedule,
        lambda schedule: s.warmup(1, then=schedule),
        lambda schedule: s.join([s.constant(1), s.warmup(2, then=schedule)], [1]),
        lambda schedule: s.join([schedule, s.ReduceOnPlateau(1), schedule], [1, 2]),
    ],
)
def test_memory_survives_a_checkpoint(wrap, load, tmp_path):
    schedule, fresh = used(patience=1), s.ReduceOnPlateau(3.0, patience=1)
    resumed = optimizer_with(wrap(fresh))
    load(optimizer_with(wrap(schedule)), resumed, tmp_path)
    assert fresh.state_dict() == schedule.state_dict()
    fresh.report(3.0)  # the second bad epoch: the optimizer sees what the user's schedule does
    assert fresh.lr == 0.25
    for _ in range(5):
        info = resumed.step([np.ones(2)])
    assert info.lr == 0.25


@pytest.mark.parametrize("load", [through_dict, through_file])
def test_memory_of_a_step_option_survives_too(load, tmp_path):
    schedule, fresh = used(), s.ReduceOnPlateau(3.0)
    resumed = optimizer_with(0.1, max_grad_norm=fresh)
    load(optimizer_with(0.1, max_grad_norm=schedule), resumed, tmp_path)
    assert fresh.state_dict() == schedule.state_dict()
    with pytest.raises(ValueError, match="expected a schedule for 'max_grad_norm'"):
        optimizer_with(0.1).load_state_dict(resumed.state_dict())


def test_state_dict_shows_a_copy_of_the_memory():
    schedule = used()
    opt = optimizer_with(schedule)
    saved = opt.state_dict()
    assert saved["param_groups"][0]["lr"] == [schedule.state_dict()]
    schedule.report(9.0)
    assert saved["param_groups"][0]["lr"] != [schedule.state_dict()]
    assert optimizer_with(s.constant(1)).state_dict()["param_groups"][0]["lr"] is None


def test_a_state_without_memory_leaves_the_live_one_as_it_is(tmp_path):
    """Of a value, of another schedule, and in a file from before schedules had a memory."""
    for lr in (0.25, s.constant(0.25), lambda _: 0.25):
        schedule = used()
        before = schedule.state_dict()
        through_file(optimizer_with(lr), optimizer_with(schedule), tmp_path)
        assert schedule.state_dict() == before


def test_a_memory_without_a_schedule_for_it(tmp_path):
    saved = optimizer_with(used()).state_dict()
    optimizer_with(s.constant(0.25)).load_state_dict(saved)  # another schedule stays
    with pytest.raises(ValueError, match=r"param_groups\[0\]: expected a schedule for 'lr'"):
        optimizer_with(0.25).load_state_dict(saved)


def test_one_schedule_in_several_groups_loads_once():
    shared, fresh = used(), s.ReduceOnPlateau(3.0)
    resumed = optimizer_with(fresh, fresh)
    resumed.load_state_dict(optimizer_with(shared, shared).state_dict())
    assert fresh.state_dict() == shared.state_dict()
    assert resumed.param_groups[0]["lr"] is resumed.param_groups[1]["lr"] is fresh
    before = digest(resumed)
    apart = optimizer_with(used(), used([1.0])).state_dict()
    with pytest.raises(ValueError, match="^lr: expected the memory .* as elsewhere"):
        resumed.load_state_dict(apart)
    assert digest(resumed) == before


def test_each_schedule_has_its_own_memory():
    schedules, fresh = [used(), used([1.0])], [s.ReduceOnPlateau(3.0), s.ReduceOnPlateau(3.0)]
    resumed = optimizer_with(*fresh)
    resumed.load_state_dict(optimizer_with(*schedules).state_dict())
    assert [f.state_dict() for f in fresh] == [u.state_dict() for u in schedules]


@pytest.mark.parametrize(("spoiled", "words"), BAD_MEMORIES)
def test_a_bad_memory_in_a_state_changes_nothing(spoiled, words):
    """Nor does the good one before it."""
    first, second = s.ReduceOnPlateau(3.0), s.ReduceOnPlateau(3.0)
    opt = optimizer_with(first, second)
    before = digest(opt)
    saved = optimizer_with(used(), used()).state_dict()
    saved["param_groups"][1]["lr"] = [bad_memory(spoiled)]
    with pytest.raises((TypeError, ValueError), match=words):
        opt.load_state_dict(saved)
    assert digest(opt) == before


@pytest.mark.parametrize("memories", [[], [{}, {}]])
def test_a_memory_of_other_schedules_changes_nothing(memories):
    opt = optimizer_with(s.ReduceOnPlateau(3.0))
    before = digest(opt)
    saved = {**opt.state_dict()}
    saved["param_groups"][0]["lr"] = memories
    with pytest.raises(
        ValueError, match=f"expected the memory of 1 schedules, got {len(memories)}"
    ):
        opt.load_state_dict(saved)
    assert digest(opt) == before


@pytest.mark.parametrize("skipped_steps", [-1, "none"])
def test_what_else_is_bad_leaves_the_memory_alone(skipped_steps):
    opt = optimizer_with(s.ReduceOnPlateau(3.0))
    before = digest(opt)
    saved = optimizer_with(used()).state_dict()
    saved["step_options"]["skipped_steps"] = skipped_steps  # the last thing that is looked at
    with pytest.raises(ValueError, match="skipped_steps: expected a number of steps"):
        opt.load_state_dict(saved)
    assert digest(opt) == before


def test_a_users_own_schedule_may_have_a_memory(tmp_path):
    class Counting:
        def __init__(self):
            self.calls = [0]

        def __call__(self, _step):
            self.calls[0] += 1
            return 0.1

        def state_dict(self):
            return {"calls": self.calls[0]}

        def load_state_dict(self, state_dict):
            self.calls[0] = state_dict["calls"]  # in place, before what may fail
            if state_dict["calls"] == 7:
                raise ValueError("seven")

    schedule, fresh = Counting(), Counting()
    opt, resumed = optimizer_with(schedule), optimizer_with(fresh)
    opt.step([np.ones(2)])
    through_file(opt, resumed, tmp_path)
    assert fresh.calls == schedule.calls == [2]
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = [{"calls": 7}]
    with pytest.raises(ValueError, match="seven"):
        resumed.load_state_dict(saved)
    assert fresh.calls == [2]


def test_copies_of_an_optimizer_remember_on_their_own():
    schedule = used()
    opt = optimizer_with(schedule)
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        other = twin.param_groups[0]["lr"]
        assert other is not schedule
        assert other.state_dict() == schedule.state_dict()


# PyTorch's own


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def torch_values(torch, make, n, lr=1.0):
    """What PyTorch's scheduler makes of a rate, and of the momentum where it cycles that."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr, momentum=0.5)
    scheduler = make(torch.optim.lr_scheduler, opt)
    rates, momenta = [], []
    for _ in range(n):
        rates.append(opt.param_groups[0]["lr"])
        momenta.append(opt.param_groups[0]["momentum"])
        opt.step()
        scheduler.step()
    return np.array(rates), np.array(momenta)


LIKE_TORCH = {
    "StepLR": (s.step_decay(1.0, 5, 0.3), lambda m, o: m.StepLR(o, 5, 0.3), 60),
    "MultiStepLR": (
        s.piecewise(1.0, (3, 10, 11), factors=(0.3, 0.3, 0.3)),
        lambda m, o: m.MultiStepLR(o, [3, 10, 11], 0.3),
        60,
    ),
    "ExponentialLR": (
        s.exponential(1.0, -math.log(0.9)),
        lambda m, o: m.ExponentialLR(o, 0.9),
        60,
    ),
    "PolynomialLR": (
        s.polynomial(1.0, 40, power=2.5),
        lambda m, o: m.PolynomialLR(o, 40, 2.5),
        60,
    ),
    # It rises again after T_max.
    "CosineAnnealingLR": (
        s.cosine(1.0, 40, 0.1),
        lambda m, o: m.CosineAnnealingLR(o, 40, 0.1),
        41,
    ),
    "CosineAnnealingWarmRestarts": (
        s.cosine_restarts(1.0, 10, 0.1, 2),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 10, 2, 0.1),
        200,
    ),
    "CosineAnnealingWarmRestarts-equal": (
        s.cosine_restarts(1.0, 7),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 7),
        60,
    ),
    "LinearLR": (
        s.polynomial(0.25, 8, 1.0),
        lambda m, o: m.LinearLR(o, start_factor=0.25, total_iters=8),
        60,
    ),
    "LinearLR+SequentialLR": (
        s.warmup(8, s.step_decay(1.0, 5, 0.3), 0.25),
        lambda m, o: m.SequentialLR(
            o, [m.LinearLR(o, start_factor=0.25, total_iters=8), m.StepLR(o, 5, 0.3)], [8]
        ),
        60,
    ),
    "SequentialLR": (
        s.join([s.constant(0.5), s.step_decay(1.0, 5, 0.3), s.cosine(1.0, 20)], [8, 20]),
        lambda m, o: m.SequentialLR(
            o,
            [m.ConstantLR(o, 0.5, 99), m.StepLR(o, 5, 0.3), m.CosineAnnealingLR(o, 20)],
            [8, 20],
        ),
        41,
    ),
}


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_values_are_pytorchs(name, torch):
    """PyTorch multiplies its rates step by step: so many roundings may differ."""
    schedule, make, n = LIKE_TORCH[name]
    expected, _ = torch_values(torch, make, n)
    np.testing.assert_allclose(values(schedule, n), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("pct_start", [0.0, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [11, 40])
def test_one_cycle_is_pytorchs(steps, pct_start, torch):
    def make(module, opt):
        return module.OneCycleLR(
            opt, 2.0, steps, pct_start=pct_start, div_factor=20.0, final_div_factor=100.0
        )

    rates, momenta = torch_values(torch, make, steps - 1)  # it raises after the last
    lr = s.one_cycle(2.0, steps, pct_start, 20.0, 100.0)
    momentum = lr.momentum(0.85, 0.95)
    np.testing.assert_allclose(values(lr, steps - 1), rates, rtol=1e-13)
    np.testing.assert_allclose(values(momentum, steps - 1), momenta, rtol=1e-13)
    np.testing.assert_allclose(lr(steps - 1), 2.0 if pct_start == 1 else 2.0 / 20 / 100)


def test_one_cycle_may_begin_at_its_peak():
    """Where PyTorch divides by zero: the peak is at step 0.1 * 10 - 1."""
    assert s.one_cycle(1.0, 10, pct_start=0.1)(0) == 1


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("cooldown", [0, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.125])
def test_reduce_on_plateau_is_pytorchs(patience, cooldown, threshold, torch, rng):
    options = {"patience": patience, "cooldown": cooldown, "threshold": threshold, "min_lr": 0.01}
    schedule = s.ReduceOnPlateau(1.0, 0.7, compare="best", **options)
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.7, eps=0.0, **options)
    errors = rng.uniform(size=60) + 1 / (1 + np.arange(60))
    errors[[0, 30]] = np.nan, np.inf
    for error in errors:
        opt.step()
        theirs.step(error)
        schedule.report(error)
        assert schedule.lr == opt.param_groups[0]["lr"]
        assert schedule.num_bad_epochs == theirs.num_bad_epochs
        assert schedule.cooldown_counter == theirs.cooldown_counter
    assert schedule.lr < 0.5


# optax's own


@pytest.fixture(scope="module")
def optax():
    return pytest.importorskip("optax", reason="optax is not installed")


def half_cycles(optax):
    cycle = {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "end_value": 0.1}
    return optax.sgdr_schedule([{**cycle, "decay_steps": 10 * 2**i} for i in range(4)])


LIKE_OPTAX = {
    "exponential_decay": (
        s.exponential(1.0, -math.log(0.9) / 5),
        lambda o: o.exponential_decay(1.0, 5, 0.9),
    ),
    "exponential_decay-staircase": (
        s.step_decay(1.0, 5, 0.9),
        lambda o: o.exponential_decay(1.0, 5, 0.9, staircase=True),
    ),
    "polynomial_schedule": (
        s.polynomial(1.0, 40, 0.1, 2.5),
        lambda o: o.polynomial_schedule(1.0, 0.1, 2.5, 40),
    ),
    "cosine_decay_schedule": (
        s.cosine(1.0, 40, 0.1),
        lambda o: o.cosine_decay_schedule(1.0, 40, 0.1),
    ),
    "sgdr_schedule": (s.cosine_restarts(1.0, 10, 0.1, 2), half_cycles),
    "warmup_cosine_decay_schedule": (
        s.warmup(8, s.cosine(1.0, 32, 0.1), 0.2),
        lambda o: o.warmup_cosine_decay_schedule(0.2, 1.0, 8, 40, 0.1),
    ),
    "join_schedules": (
        s.join([s.constant(0.5), s.cosine(1.0, 20), s.step_decay(0.9, 5)], [8, 20]),
        lambda o: o.join_schedules(
            [
                o.constant_schedule(0.5),
                o.cosine_decay_schedule(1.0, 20),
                o.exponential_decay(0.9, 5, 0.5, staircase=True),
            ],
            [8, 20],
        ),
    ),
    "piecewise_constant_schedule": (
        s.piecewise(1.0, (3, 10, 11), factors=(0.5, 0.1, 0.7)),
        lambda o: o.piecewise_constant_schedule(1.0, {3: 0.5, 10: 0.1, 11: 0.7}),
    ),
    # Its peak is at step 12 and its end at 40, ours one step before the 13th and the 41st.
    "cosine_onecycle_schedule": (
        s.one_cycle(1.0, 41, 13 / 41, 20.0, 100.0),
        lambda o: o.cosine_onecycle_schedule(40, 1.0, 0.3, 20.0, 100.0),
    ),
}


@pytest.mark.parametrize("name", LIKE_OPTAX)
def test_values_are_optaxs(name, optax):
    """It computes in float32: some ten roundings, each of 6e-8 of the peak, 1."""
    schedule, make = LIKE_OPTAX[name]
    theirs = make(optax)
    expected = [float(theirs(step)) for step in range(60)]
    np.testing.assert_allclose(values(schedule), expected, rtol=0, atol=6e-7)


def test_the_tables_change_within_what_is_compared():
    """A test that compares a constant would show nothing."""
    for schedule in [entry[0] for entry in (*LIKE_TORCH.values(), *LIKE_OPTAX.values())]:
        assert any(a != b for a, b in pairwise(values(schedule)))


def test_a_subclass_may_be_called_in_its_own_way():
    class Doubled(op.schedules.cosine):
        def __call__(self, step):
            return 2 * super().__call__(step)

    schedule = Doubled(0.25, steps=4)
    opt = op.SGD(np.ones(1), lr=schedule)
    assert [opt.step(np.zeros(1)).lr for _ in range(5)] == [schedule(step) for step in range(5)]
    assert schedule(0) == 0.5
