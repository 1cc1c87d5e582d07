"""Groups that are added in the middle of a run."""

import copy
import io
import math
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, assert_same_bits, digest

N = 4100  # large enough for 8-bit state


def arrays(rng, dtype=np.float32, sizes=(N, 3)):
    return [rng.normal(size=size).astype(dtype) for size in sizes]


def copies(tree):
    return [array.copy() for array in tree]


# What else the optimizer, and the group that is added, may have.
OPTIONS = {
    "nothing": ({}, {}),
    "settings of its own": ({"weight_decay": 0.1}, {"lr": 0.5, "maximize": True}),
    "an average for both": ({"ema_decay": 0.75}, {}),
    "an average for the new one": ({}, {"swa_start": 2}),
    "an average for the old one": (
        {"ema_decay": 0.75, "ema_warmup": True},
        {"ema_decay": None, "ema_warmup": False},
    ),
    "clipping": ({"max_grad_norm": 0.5, "max_grad_value": 0.1}, {"max_grad_value": None}),
    "formats": ({"state_format": "q8"}, {"state_format": "bf16"}),
    "gradients that are cleared": ({"clear_grads": True, "nonfinite": "skip"}, {}),
    "schedules": ({"lr": lambda step: 0.1 / (1 + step)}, {"lr": lambda step: 0.01 * step}),
}


@pytest.mark.parametrize(("options", "group"), OPTIONS.values(), ids=OPTIONS)
def test_it_is_an_optimizer_that_was_made_with_both(case, options, group, rng):
    """Up to then the new parameters had no gradients."""
    cls, settings = case
    old, new = arrays(rng), arrays(rng)
    both = copies(old), copies(new)
    opt = cls(old, **{**settings, **options})
    other = cls([{"params": both[0]}, {"params": both[1], **group}], **{**settings, **options})
    for _ in range(2):
        grads = arrays(rng)
        assert opt.step(copies(grads)) == other.step([copies(grads), [None, None]])
    opt.add_param_group({"params": new, **group})
    for _ in range(3):
        grads = arrays(rng), arrays(rng)
        assert opt.step(list(map(copies, grads))) == other.step(list(map(copies, grads)))
    for a, b in zip([*old, *new], [*both[0], *both[1]], strict=True):
        assert_same_bits(a, b)
    assert digest(opt) == digest(other)
    assert repr(opt) == repr(other)


def test_of_sixteen_bits(optimizer, rng):
    old, new = arrays(rng), arrays(rng, np.float16)
    both = copies(old), copies(new)
    opt, other = optimizer(old), optimizer([{"params": both[0]}, {"params": both[1]}])
    grads = arrays(rng)
    opt.step(grads), other.step([grads, [None, None]])
    opt.add_param_group({"params": new})
    for _ in range(2):
        grads = [arrays(rng), arrays(rng)]
        opt.step(grads), other.step(grads)
    assert digest(opt) == digest(other)
    assert "master" in opt.state_dict()["state"][2]


@pytest.mark.parametrize("optimizer", [op.SGD, op.Adagrad, op.Adam])
def test_it_is_pytorchs(optimizer, rng):
    torch = pytest.importorskip("torch")
    theirs_of_that_name = getattr(torch.optim, optimizer.__name__)
    old, new = rng.normal(size=7), rng.normal(size=5)
    ours = old.copy(), new.copy()
    theirs = [torch.tensor(old, requires_grad=True), torch.tensor(new, requires_grad=True)]
    opt = optimizer(ours[0], lr=0.1)
    other = theirs_of_that_name(theirs[:1], lr=0.1)
    group = {"lr": 0.5, "weight_decay": 0.1}
    for step in range(5):
        if step == 2:
            opt.add_param_group({"params": ours[1], **group})
            other.add_param_group({"params": theirs[1:], **group})
        grads = [rng.normal(size=7), *([rng.normal(size=5)] if step >= 2 else [])]
        for theirs_, grad in zip(theirs, grads, strict=False):
            theirs_.grad = torch.tensor(grad)
        other.step()
        opt.step(grads if step >= 2 else grads[0])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-12)
    assert len(opt.param_groups) == len(other.param_groups)
    for own, group in zip(opt.param_groups, other.param_groups, strict=True):
        assert (own["lr"], own["weight_decay"]) == (group["lr"], group["weight_decay"])


def test_it_has_what_the_constructor_said(optimizer):
    """And not what was set since, as in PyTorch."""
    opt = optimizer(np.ones(3), lr=0.25, ema_decay=0.5)
    opt.param_groups[0].update(lr=0.125, ema_decay=None)
    opt.add_param_group({"params": np.ones(2), "weight_decay": 0.5})
    first, second = opt.param_groups
    assert (first["lr"], first["ema_decay"]) == (0.125, None)
    assert first["weight_decay"] == optimizer.defaults["weight_decay"]
    assert (second["lr"], second["ema_decay"], second["weight_decay"]) == (0.25, 0.5, 0.5)
    second["lr"] = 1.0  # and is checked as any other
    with pytest.raises(ValueError, match="^lr: expected"):
        second["lr"] = -1.0
    assert first["lr"] == 0.125


def test_structures_and_names(optimizer, rng):
    """The first structure is the first of a list from then on."""
    first, second, third = np.ones(3), np.ones(2), np.ones(1)
    opt = optimizer({"w": first})
    opt.step({"w": np.ones(3)})
    opt.add_param_group({"params": {"v": second}})
    opt.step([{"w": np.ones(3)}, {"v": np.ones(2)}])
    opt.step([{"params": {"w": np.ones(3)}}, {"params": {"v": np.ones(2)}}])
    opt.add_param_group({"params": [third]})
    opt.step([{"w": np.ones(3)}, {"v": None}, [np.ones(1)]])
    steps = {key: entry["step"] for key, entry in opt.state_dict()["state"].items()}
    assert steps == {"w": 4, "v": 2, 2: 1}
    assert [group["params"] for group in opt.state_dict()["param_groups"]] == [["w"], ["v"], [2]]
    with pytest.raises(ValueError, match=r"^grads\[1\]: expected the names \['v'\]"):
        opt.step([{"w": np.ones(3)}, {"w": np.ones(2)}, [np.ones(1)]])
    with pytest.raises(ValueError, match=r"^grads\[1\]\['params'\]\['v'\]: expected the param"):
        opt.step([{"w": np.ones(3)}, {"v": np.ones(3)}, [np.ones(1)]])
    with pytest.raises(ValueError, match="^grads: expected a sequence of 3"):
        opt.step({"w": np.ones(3)})


def test_accumulated_gradients_stay(optimizer, rng):
    old, new = arrays(rng), arrays(rng)
    both = copies(old), copies(new)
    opt, other = optimizer(old), optimizer([{"params": both[0]}, {"params": both[1]}])
    grads = arrays(rng)
    opt.accumulate(grads), other.accumulate([grads, [None, None]])
    opt.add_param_group({"params": new})
    assert digest(opt) == digest(other)
    for which in (opt, other):
        which.accumulate([[None, grads[1]], grads])
        assert which.step(grad_scale=2).step == 1
    assert digest(opt) == digest(other)


def test_bound_gradients_are_bound_no_longer(optimizer):
    opt = optimizer(np.ones(3), grads=np.ones(3))
    opt.step()
    opt.add_param_group({"params": np.ones(2)})
    with pytest.raises(
        ValueError, match="^grads: expected gradients, got none, and none are bound"
    ):
        opt.step()
    with pytest.raises(TypeError, match="^zero_grad: expected gradients that are bound"):
        opt.zero_grad()
    opt.bind([np.ones(3), np.ones(2)])
    assert opt.step().step == 2


def test_copies_in_fewer_bits_go_on_for_the_first(optimizer, rng):
    w, v, copy_to = np.ones(3, np.float32), np.ones(2, np.float32), np.zeros(3, np.float16)
    opt = optimizer(w, copy_to=copy_to)
    opt.add_param_group({"params": v})
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32)])
    assert_same_bits(copy_to, w.astype(np.float16))
    assert (w < 1).all()


CLONES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_copies_have_the_groups_and_go_their_own_way(optimizer, clone, rng):
    opt = optimizer(arrays(rng), lr=0.1, ema_decay=0.5)
    before = clone(opt)
    opt.add_param_group({"params": arrays(rng), "lr": 0.2})
    after = clone(opt)
    assert len(before.param_groups) == 1
    assert digest(after) == digest(opt)
    grads = [arrays(rng), arrays(rng)]
    opt.step(grads), after.step(grads)
    assert digest(after) == digest(opt)
    before.step(grads[0])
    before.add_param_group({"params": arrays(rng)})  # with what its original was made with
    assert before.param_groups[1]["lr"] == 0.1
    before.step(grads)


def test_checkpoints(case, rng):
    """One from after it loads into one with the groups, and not into one without; and so on."""
    cls, settings = case
    old, new = arrays(rng), arrays(rng)
    opt = cls(old, **settings, ema_decay=0.5)
    opt.step(arrays(rng))
    before = opt.state_dict()
    opt.add_param_group({"params": new, "lr": 0.5})
    opt.step([arrays(rng), arrays(rng)])
    with pytest.raises(
        ValueError,
        match=r"^param_groups: expected 2 groups \(settings by name make groups too\), got 1",
    ):
        opt.load_state_dict(before)
    file = io.BytesIO()
    opt.save(file)
    resumed = cls(copies(old), **settings, ema_decay=0.5)
    with pytest.raises(
        ValueError,
        match=r"^param_groups: expected 1 groups \(settings by name make groups too\), got 2",
    ):
        resumed.load_state_dict(opt.state_dict())
    resumed.add_param_group({"params": copies(new)})
    file.seek(0)
    resumed.load(file)
    assert digest(resumed) == digest(opt)
    grads = [arrays(rng), arrays(rng)]
    assert opt.step(grads) == resumed.step(grads)
    assert digest(resumed) == digest(opt)


W = np.ones(3, np.float32)
BAD_GROUPS = {
    "no mapping": ([W], TypeError, "param_group: expected a mapping with 'params', got "),
    "no params": ({"lr": 0.1}, TypeError, "param_group: expected a mapping with 'params', got"),
    "nothing": ({"params": []}, ValueError, "params: expected at least one array, got none"),
    "no array": ({"params": [1.0]}, TypeError, r"params\[1\]\['params'\]\[0\]: expected a NumPy"),
    "integers": ({"params": np.ones(3, int)}, TypeError, r"params\[1\]\['params'\]: expected dtyp"),
    "the same array": (
        {"params": W},
        ValueError,
        "expected memory of its own, got the same memory",
    ),
    "part of it": ({"params": W[:2]}, ValueError, "expected memory of its own, got an overlap"),
    "twice": ({"params": [np.ones(3)] * 2}, ValueError, "expected memory of its own"),
    "a name again": (
        {"params": {"w": np.ones(3)}},
        ValueError,
        r"params\[1\]\['params'\]\['w'\]: expected a name of its own, got 'w' again",
    ),
    "a setting": ({"params": np.ones(2), "lr": -1.0}, ValueError, "lr: expected a finite number"),
    "another's": ({"params": np.ones(2), "lrr": 1.0}, TypeError, "lrr: expected one of the hyper"),
    "of the whole": (
        {"params": np.ones(2), "max_grad_norm": 1.0},
        TypeError,
        "max_grad_norm: expected one of the hyperparameters",
    ),
    "settings that do not go together": (
        {"params": np.ones(2), "ema_decay": 0.5, "swa_start": 1},
        ValueError,
        "swa_start: expected None with ema_decay",
    ),
    "a format": (
        {"params": np.ones(2), "state_format": "q8"},
        TypeError,
        "state_format: expected None beside float64 parameters",
    ),
}


@pytest.mark.parametrize("first", [{0: np.ones(2)}, {"0": np.ones(2)}, np.ones(2)])
@pytest.mark.parametrize("second", [0, "0"])
def test_a_name_and_an_integer_of_the_same_text_are_one_name(first, second):
    """Patterns know both as text. A parameter without a name is its place among all, here 0."""
    words = (
        f"^params\\[1\\]\\['params'\\]\\[{second!r}\\]: expected a name of its own, got '0' again"
    )
    group = {"params": {second: np.ones(2)}}
    with pytest.raises(ValueError, match=words):
        op.SGD([{"params": first}, group])
    opt = op.SGD([{"params": first}])
    with pytest.raises(ValueError, match=words):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(("group", "error", "words"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_a_group_that_is_refused_changes_nothing(optimizer, group, error, words):
    W[:] = 1
    bound = np.full(3, 0.5, np.float32)
    opt = optimizer({"w": W}, grads={"w": bound}, ema_decay=0.5)
    opt.step()
    opt.accumulate()
    before, groups = digest(opt, W), list(opt.param_groups)
    with pytest.raises(error, match=f"^{words}" if words[0] != "e" else words):
        opt.add_param_group(group)
    assert digest(opt, W) == before
    assert all(a is b for a, b in zip(groups, opt.param_groups, strict=True))
    opt.step()
    assert opt.step().step == 3  # by what is still bound


def test_not_in_a_block(optimizer):
    opt = optimizer(np.ones(3), ema_decay=0.5)
    opt.step(np.ones(3))
    with opt.averaged(), pytest.raises(ValueError, match="^add_param_group: expected after the bl"):
        opt.add_param_group({"params": np.ones(2)})
    opt.add_param_group({"params": np.ones(2)})
    opt.step([np.ones(3), np.ones(2)])


def test_what_is_shown_is_the_averages_of_all(rng):
    old, new = np.array([0.0]), np.array([0.0])
    opt = op.SGD(old, lr=1.0, ema_decay=0.5)
    opt.step(np.ones(1))
    opt.add_param_group({"params": new, "swa_start": 1, "ema_decay": None})
    for _ in range(2):
        opt.step([np.ones(1), np.ones(1)])
    with opt.averaged():
        assert (old[0], new[0]) == (-2.25, -1.5)
    assert (old[0], new[0]) == (-3, -2)


def test_the_norm_is_of_all_groups(rng):
    """3, 4, 12: norm 13, from where the second group is there."""
    opt = RICHEST(np.zeros(2), max_grad_norm=math.inf)
    assert opt.step(np.array([3.0, 4.0])).grad_norm == 5
    opt.add_param_group({"params": np.zeros(1)})
    assert opt.step([np.array([3.0, 4.0]), np.array([12.0])]).grad_norm == 13


def test_many_groups_one_after_the_other(optimizer, rng):
    params = [np.full(3, float(i)) for i in range(8)]
    other = [param.copy() for param in params]
    opt = optimizer(params[0])
    for i in range(1, 8):
        opt.add_param_group({"params": params[i], "lr": 0.1 * i})
    groups = [{"params": param, "lr": 0.1 * i} for i, param in enumerate(other)]
    del groups[0]["lr"]
    twin = optimizer(groups)
    for _ in range(2):
        grads = [rng.normal(size=3) for _ in params]
        assert opt.step(grads) == twin.step(grads)
    assert digest(opt) == digest(twin)
