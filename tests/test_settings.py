"""Settings as a user changes them between steps: checked when assigned, in force at the step."""

import copy
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest

from helpers import assert_same_bits, digest
from onepass._hyperparameters import Choice, Fixed, Flag, Maybe, Number, Several, Whole

N = 9


def ones():
    return np.ones(N)


def grads(steps, seed=0):
    return list(np.random.default_rng(seed).normal(size=(steps, N)))


def kind_of(check):
    """The kind of a setting's values, and whether None is one."""
    may_be_none = isinstance(check, Maybe)
    kind = check.kind if may_be_none else check
    return kind, may_be_none


def allowed_number(kind):
    low = max(kind.low, 0.0 if kind.above < 0 else kind.above)
    high = min(kind.high, kind.below, 1.0)
    return low + 0.5 * (high - low)


def spellings(kind):
    """Values of this kind as users write them, each with what it is in its plain type."""
    match kind:
        case Fixed():
            yield from (
                (value, plain) for value, plain in spellings(kind.kind) if plain == kind.value
            )
        case Number():
            plain = float(np.float32(allowed_number(kind)))
            yield from ((make(plain), plain) for make in (float, np.float32, np.float64, Fraction))
        case Several(kinds):
            plain = tuple(sorted(float(np.float32(allowed_number(each))) for each in kinds))
            for make in (tuple, list, np.array, lambda pair: np.array(pair, np.float32)):
                yield make(plain), plain
        case Flag():
            for plain in (True, False):
                yield from ((plain, plain), (np.bool(plain), plain))
        case Choice(names):
            for name in names:  # an equal string that is another object
                yield from ((name, name), ("".join(list(name)), name), (np.str_(name), name))
        case Whole():
            yield from ((make(max(kind.low, 3)), max(kind.low, 3)) for make in (int, np.int32))


def test_every_spelling_of_a_value_is_the_plain_value(optimizer):
    """In the constructor, by each kind of assignment, and in what the step does."""
    tried = 0
    for name, check in optimizer.group_checks.items():
        kind, may_be_none = kind_of(check)
        for value, plain in [*spellings(kind), *([(None, None)] if may_be_none else [])]:
            opt = optimizer(ones())
            (group,) = opt.param_groups
            for assign in (
                lambda group=group, name=name, value=value: group.__setitem__(name, value),
                lambda group=group, name=name, value=value: group.update({name: value}),
                lambda group=group, name=name, value=value: group.update(**{name: value}),
                lambda group=group, name=name, value=value: group.update([(name, value)]),
                lambda group=group, name=name, value=value: group.__ior__({name: value}),
                lambda group=group, name=name, value=value: group.__ior__([(name, value)]),
            ):
                group[name] = optimizer.defaults.get(name, opt.param_groups[0][name])
                assign()
                assert type(group[name]) is type(plain)
                assert group[name] == plain
                tried += 1
    assert tried > 100


def test_a_spelling_gives_the_plain_values_bits(optimizer):
    for name, check in optimizer.checks.items():
        results = {}
        for value, plain in spellings(kind_of(check)[0]):
            w = ones()
            opt = optimizer(w)
            opt.param_groups[0][name] = value
            try:
                opt.step(grads(1)[0])
            except ValueError as error:  # it does not go together with the defaults
                assert "expected" in str(error)  # noqa: PT017
                continue
            results.setdefault(plain, set()).add(w.tobytes())
        assert all(len(bits) == 1 for bits in results.values()), name


def test_own_settings_are_checked_alike(optimizer):
    w = ones()
    opt = optimizer(w)
    for name, values in {
        "max_grad_norm": [(np.float32(0.5), 0.5), (2, 2.0), (None, None)],
        "nonfinite": [("".join(["sk", "ip"]), "skip"), (np.str_("raise"), "raise")],
        "clear_grads": [(np.bool(True), True)],
        "seed": [(np.int64(5), 5)],
    }.items():
        for value, plain in values:
            setattr(opt, name, value)
            assert getattr(opt, name) == plain
            assert type(getattr(opt, name)) is type(plain)
        before = getattr(opt, name)
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            setattr(opt, name, object())
        assert getattr(opt, name) == before
    opt.step(ones())


def test_it_stays_a_mapping_of_the_usual_kind(optimizer):
    opt = optimizer(ones(), lr=0.25)
    (group,) = opt.param_groups
    assert isinstance(group, dict)
    assert dict(group) == {**group} == group
    assert next(iter(group)) == "params"
    assert set(group) == {"params", *optimizer.group_checks}
    assert group.get("lr") == 0.25
    assert group.get("momentun", 5) == 5
    assert "lr" in group
    assert group | {"lr": 0.5} == {**group, "lr": 0.5}
    assert group["lr"] == 0.25
    assert group.copy() == group
    assert type(group.copy()) is dict
    assert repr(group) == repr(dict(group))
    assert json.dumps({name: value for name, value in group.items() if name != "params"})
    with pytest.raises(KeyError):
        group["lrr"]
    with pytest.raises(TypeError, match="cannot create"):
        type(group)()
    with pytest.raises(TypeError, match="unhashable"):
        group[[]] = 1
    with pytest.raises(TypeError, match="^1: expected one of the hyperparameters"):
        group[1] = 1
    for same in (group.update(), group.update({}), group.update(group)):
        assert same is None
    opt.step(ones())


def test_an_in_place_union_of_a_group(optimizer):
    opt = optimizer(ones())
    group = opt.param_groups[0]
    opt.param_groups[0] |= {"lr": 0.25}
    assert opt.param_groups[0] is group
    assert opt.step(ones()).lr == 0.25


CLONES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda group: pickle.loads(pickle.dumps(group)),
    "dict": dict,
}


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_a_copy_of_a_group_is_a_dictionary_of_its_own(optimizer, clone):
    """It can be changed at will, and be given back as a whole."""
    w = ones()
    opt = optimizer(w, lr=0.25)
    kept = clone(opt.param_groups[0])
    assert type(kept) is dict
    kept["lr"] = "anything"
    del kept["weight_decay"]
    assert opt.param_groups[0]["lr"] == 0.25
    kept = clone(opt.param_groups[0])
    opt.param_groups[0].update(lr=0.5, weight_decay=0.5)
    opt.param_groups[0].update({name: kept[name] for name in optimizer.group_checks})
    other = ones()
    optimizer(other, lr=0.25).step(grads(1)[0])
    opt.step(grads(1)[0])
    assert_same_bits(w, other)


def test_two_optimizers_share_nothing(optimizer):
    """Not the mapping that both were made from, and not what a copy was made of."""
    settings = {"lr": 0.25, "weight_decay": 0.0}
    given = [{"params": ones(), **settings}]
    first = optimizer(given)
    second = optimizer([{"params": ones(), **settings}])
    third = copy.deepcopy(first)
    given[0]["lr"] = settings["lr"] = 5.0
    first.param_groups[0]["lr"] = 0.5
    first.seed = 7
    assert [opt.step([ones()]).lr for opt in (first, second, third)] == [0.5, 0.25, 0.25]
    assert [opt.seed for opt in (first, second, third)] == [7, 0, 0]
    first.load_state_dict(second.state_dict())
    second.param_groups[0]["lr"] = 1.0
    assert [opt.step([ones()]).lr for opt in (first, second, third)] == [0.25, 1.0, 0.25]


def test_a_users_dictionary_in_the_place_of_a_group_is_refused(optimizer):
    """A step would not see what is changed in it. Nothing has changed, and it can be taken back."""
    w = ones()
    opt = optimizer(w)
    group = opt.param_groups[0]
    opt.param_groups[0] = {**group, "lr": 0.5}
    before = w.copy()
    for call in (lambda: opt.step(ones()), opt.state_dict, lambda: copy.copy(opt)):
        with pytest.raises(ValueError, match=r"^param_groups\[0\]: expected the mapping it was ma"):
            call()
    assert_same_bits(w, before)
    opt.param_groups[0] = group
    assert opt.step(ones()).step == 1


def test_mappings_after_a_load_are_new_and_the_old_ones_harmless(optimizer):
    opt = optimizer(ones(), lr=0.25)
    opt.step(ones())
    old = opt.param_groups[0]
    opt.load_state_dict(opt.state_dict())
    new = opt.param_groups[0]
    assert new is not old
    assert dict(new) == dict(old)
    old["lr"] = 0.5
    with pytest.raises(ValueError, match="^lr: expected"):
        old["lr"] = -1.0
    assert opt.step(ones()).lr == 0.25
    new["lr"] = 0.125
    assert opt.step(ones()).lr == 0.125
    new.update(old)
    assert opt.step(ones()).lr == 0.5


def test_a_group_outlives_its_optimizer(optimizer):
    group = optimizer(ones()).param_groups[0]
    group["lr"] = 0.5
    with pytest.raises(ValueError, match="^lr: expected"):
        group["lr"] = -1.0
    assert group["lr"] == 0.5


@pytest.mark.parametrize("bad", [-1.0, float("nan"), "fast", True, None])
def test_each_value_of_a_schedule_is_checked(optimizer, bad):
    """Nothing has changed then, and the run goes on with what the schedule gives next."""
    values = [0.5, bad, 0.25]
    w = ones()
    opt = optimizer(w, lr=lambda _: values[0], ema_decay=0.5, grads=ones())
    opt.step()
    before = digest(opt, w)
    values.pop(0)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="^lr: expected a finite number >= 0, go"):
            opt.step()
    assert digest(opt, w) == before
    values.pop(0)
    info = opt.step()
    assert (info.step, info.lr) == (2, 0.25)


def test_numbers_of_a_schedule_may_be_of_any_kind(optimizer):
    for value in (np.float32(0.25), np.float64(0.25), Fraction(1, 4)):
        assert optimizer(ones(), lr=lambda _, value=value: value).step(ones()).lr == 0.25
    assert optimizer(ones(), lr=lambda _: 1).step(ones()).lr == 1.0


def test_a_schedule_may_change_settings(optimizer):
    """The next step has them, and the one whose schedule it was goes on with what it began with."""

    def lr(step):
        opt.param_groups[0].update(weight_decay=0.5 * step, lr=0.125 if step == 2 else lr)
        return 0.25

    w, other = ones(), ones()
    opt = optimizer(w, lr=lr, weight_decay=0.0)
    twin = optimizer(other, weight_decay=0.0)
    expected = [(0.25, 0.0), (0.25, 0.0), (0.25, 0.5), (0.125, 1.0), (0.125, 1.0)]
    for grad, (rate, decay) in zip(grads(5), expected, strict=True):
        twin.param_groups[0].update(lr=rate, weight_decay=decay)
        assert opt.step(grad) == twin.step(grad)
    assert_same_bits(w, other)


def test_a_schedule_cannot_step(optimizer):
    def lr(_):
        opt.step(ones())

    w = ones()
    opt = optimizer(w, lr=lr)
    with pytest.raises(ValueError, match="^step: expected one thread at a time"):
        opt.step(ones())
    assert_same_bits(w, ones())
    opt.param_groups[0]["lr"] = 0.1
    assert opt.step(ones()).step == 1


def test_changes_in_every_second_step(case):
    """Each is in force in the step after it, whatever was set before."""
    cls, settings = case
    w, other = ones(), ones()
    opt = cls(w)
    for step, grad in enumerate(grads(6)):
        changes = settings if step % 2 else {name: cls.defaults[name] for name in settings}
        opt.param_groups[0].update(changes)
        twin = cls(other, **{**changes, "lr": 0.1})
        if step:
            saved = opt.state_dict()
            saved["param_groups"] = twin.state_dict()["param_groups"]
            saved["param_groups"][0]["step"] = step
            twin.load_state_dict(saved)
        opt.param_groups[0]["lr"] = 0.1
        opt.step(grad), twin.step(grad)
        assert_same_bits(w, other)


INSIDE = {
    "load_state_dict": lambda opt: opt.load_state_dict(opt.state_dict()),
    "add_param_group": lambda opt: opt.add_param_group({"params": ones()}),
    "averaged": lambda opt: opt.averaged().__enter__(),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_schedule_cannot_replace_what_steps(optimizer, name):
    """Or show other weights: the step would be lost. It may look."""

    def lr(step):
        if step:
            with pytest.raises(
                ValueError, match=f"^{name}: expected outside a step, got a call in"
            ):
                INSIDE[name](opt)
            seen.append(opt.state_dict()["param_groups"][0]["step"])
        return 0.25

    w, other, seen = ones(), ones(), []
    opt = optimizer(w, lr=lr, ema_decay=0.5)
    twin = optimizer(other, lr=0.25, ema_decay=0.5)
    for _ in range(3):
        assert opt.step(ones()) == twin.step(ones())
    assert seen == [1, 2]
    assert digest(opt.state_dict()["state"], w) == digest(twin.state_dict()["state"], other)
    INSIDE[name](opt)
