"""A call that raises has not happened, wherever it raises; a call that reads leaves no trace."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import digest
from onepass.optim._settings import CHECKS

N = 4100  # large enough for 8-bit state

# Changes to the second group's settings, which the next step puts in force. Most of them need other
# arrays than before.
CHANGES = {
    "lr": {"lr": 0.5},
    "decay": {"weight_decay": 0.5},
    "format": {"state_format": "q8"},
    "average": {"ema_decay": None},
    "mean": {"ema_decay": None, "swa_start": 1},
    "rounding": {"rounding": "nearest"},
}


def fail_schedule(_):
    raise ZeroDivisionError("a schedule that fails")


class Run:
    """Three parameters in two groups, one of 16 bits, in the middle of a run."""

    def __init__(self, cls, **options):
        self.rng = np.random.default_rng(0)
        self.params = [self.array(n, t) for n, t in ((N, "f4"), (5, "f4"), (N, "f2"))]
        groups = [{"params": self.params[:2]}, {"params": [self.params[2]]}]
        self.opt = cls(groups, lr=0.1, ema_decay=0.9, **options)
        for _ in range(2):
            self.step()

    def array(self, n, dtype):
        return self.rng.normal(size=n).astype(dtype)

    def grads(self):
        first, second, third = (self.array(p.size, p.dtype) for p in self.params)
        return [[first, second], [third]]

    def step(self):
        return self.opt.step(self.grads())

    def whole(self):
        """What a user can see. Each part is read twice, as reading must not change it."""
        opt = self.opt
        seen = [digest(self.params, opt.state_dict(), opt.skipped_steps, repr(opt)) for _ in "12"]
        assert seen[0] == seen[1]
        return seen[0]


def wrong_arrays(run, position):
    grads = list(itertools.chain(*run.grads()))
    grads[position] = grads[position][:-1]
    return [grads[:2], grads[2:]]


def infinite(run):
    grads = run.grads()
    grads[1][0][-1] = np.inf
    return grads


def set_in(run, group, **settings):
    """What takes such a setting back again."""
    settings_now = run.opt.param_groups[group]
    before = {name: settings_now[name] for name in settings}
    settings_now.update(settings)
    return lambda: settings_now.update(before)


# Everything by which a step can raise: what is done before (and undone after), and the call.
FAILURES = {
    **{
        f"gradient {i}": (None, lambda run, i=i: run.opt.step(wrong_arrays(run, i)))
        for i in range(3)
    },
    "structure": (None, lambda run: run.opt.step(run.grads()[0])),
    "no gradients": (None, lambda run: run.opt.step()),
    "not finite": (
        lambda run: setattr(run.opt, "nonfinite", "raise"),
        lambda run: run.opt.step(infinite(run)),
    ),
    "grad_scale": (None, lambda run: run.opt.step(run.grads(), grad_scale=0.0)),
    "num_threads": (None, lambda run: run.opt.step(run.grads(), num_threads=0)),
    "setting of the last group": (
        None,
        lambda run: run.opt.param_groups[1].update(weight_decay=0.5, lr=-1.0),
    ),
    "settings that do not go together": (
        lambda run: set_in(run, 1, ema_decay=0.9, swa_start=1),
        lambda run: run.opt.step(run.grads()),
    ),
    "schedule of the last group": (
        lambda run: set_in(run, 1, lr=fail_schedule),
        lambda run: run.opt.step(run.grads()),
    ),
    "schedule of the limit": (
        lambda run: setattr(run.opt, "max_grad_norm", fail_schedule),
        lambda run: run.opt.step(run.grads()),
    ),
    "schedule of the other limit": (
        lambda run: setattr(run.opt, "skip_grad_norm", fail_schedule),
        lambda run: run.opt.step(run.grads()),
    ),
    "accumulate what is not finite": (
        lambda run: setattr(run.opt, "nonfinite", "raise"),
        lambda run: run.opt.accumulate(infinite(run)),
    ),
    "locked parameter": (
        lambda run: run.params[2].setflags(write=False),
        lambda run: run.opt.step(run.grads()),
    ),
    "accumulate": (None, lambda run: run.opt.accumulate(wrong_arrays(run, 2))),
    "bind": (None, lambda run: run.opt.bind(wrong_arrays(run, 2))),
    "load": (None, lambda run: run.opt.load_state_dict({"state": {}, "param_groups": [{}, {}]})),
    "load an array": (None, lambda run: run.opt.load_state_dict(with_a_bad_array(run))),
    "save": (None, lambda run: run.opt.save("/no/such/folder/run.npz")),
    "zero_grad": (None, lambda run: run.opt.zero_grad()),
    "attribute": (None, lambda run: setattr(run.opt, "lr", 0.5)),
}


def with_a_bad_array(run):
    """The last array that there is has another shape."""
    saved = run.opt.state_dict()
    entry = saved["state"][2]
    name = [name for name, value in entry.items() if isinstance(value, np.ndarray)][-1]
    entry[name] = np.zeros(3, np.float32)
    return saved


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_call_that_raises_has_not_happened(optimizer, failure):
    """Settings were changed before it, and are taken back after it."""
    before_call, call = failure
    for change in CHANGES.values():
        run, undisturbed = Run(optimizer), Run(optimizer)
        kept = run.rng.bit_generator.state
        own = {name: getattr(run.opt, name) for name in CHECKS}
        undo_change = set_in(run, 1, **change)
        undo = before_call(run) if before_call else None
        with pytest.raises((ValueError, TypeError, OSError, AttributeError, ZeroDivisionError)):
            call(run)
        if undo:
            undo()
        undo_change()
        run.params[2].setflags(write=True)
        for name, value in own.items():
            setattr(run.opt, name, value)
        run.rng.bit_generator.state = kept
        assert run.whole() == undisturbed.whole()
        run.step(), undisturbed.step()
        assert run.whole() == undisturbed.whole()


@pytest.mark.parametrize("option", ["max_grad_norm", "ema_decay"])
def test_a_call_that_raises_with_bound_and_accumulated_gradients(optimizer, option):
    """The sums and the bound arrays stay what they were, and no older plan comes to be used."""

    def make():
        w, g = np.ones(N, np.float32), np.full(N, 0.5, np.float32)
        return w, g, optimizer(w, lr=0.1, grads=g, **{option: 0.9})

    def disturb(opt):
        opt.param_groups[0]["lr"] = 0.7
        for call in (
            lambda: opt.step([np.ones(3, np.float32)]),
            lambda: opt.accumulate(np.ones(3, np.float32)),
            lambda: opt.bind(np.ones(N, complex)),
            lambda: opt.step(grad_scale=-1.0),
        ):
            with pytest.raises((ValueError, TypeError)):
                call()
        opt.param_groups[0]["lr"] = 0.1

    results = []
    for disturbed in (False, True):
        w, g, opt = make()
        for gathers in (False, True, False):
            if gathers:
                opt.accumulate()
                opt.accumulate(np.full(N, 0.25, np.float32))
            if disturbed:
                disturb(opt)
            g += 0.125
            opt.step()
        results.append(digest(w, g, opt.state_dict()))
    assert results[0] == results[1]


READS = {
    "state_dict": lambda opt, _: opt.state_dict(),
    "save": lambda opt, path: opt.save(path / "run.npz"),
    "repr": lambda opt, _: repr(opt),
    "groups": lambda opt, _: [dict(group) for group in opt.param_groups],
    "skipped_steps": lambda opt, _: opt.skipped_steps,
    "deepcopy": lambda opt, _: copy.deepcopy(opt),
    "pickle": lambda opt, _: pickle.loads(pickle.dumps(opt)),
}


def everything(thing, seen):
    """All that an object holds, as something to compare: also what no public call shows."""
    if isinstance(thing, np.ndarray):
        return thing.dtype.name, thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return [(key, everything(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [everything(value, seen) for value in thing]
    if hasattr(thing, "__dict__") and id(thing) not in seen:
        seen.add(id(thing))
        return everything(vars(thing), seen)
    return repr(thing)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_reading_leaves_no_trace(optimizer, read, change, tmp_path):
    """Between a change of settings and the step that puts it in force, and in a block."""
    run, undisturbed = Run(optimizer, nonfinite="skip"), Run(optimizer, nonfinite="skip")
    for each in (run, undisturbed):
        each.opt.step(infinite(each))
        set_in(each, 1, **change)
    before = everything(run.opt, set())
    read(run.opt, tmp_path)
    assert everything(run.opt, set()) == before
    shown = run.opt.averaged()
    before = everything(run.opt, set())
    with shown:
        inside = digest(run.params)
        if read not in (READS["deepcopy"], READS["pickle"]):
            read(run.opt, tmp_path)
        else:
            with pytest.raises(ValueError, match="after the block"):
                read(run.opt, tmp_path)
        with pytest.raises(ValueError, match="after the block"):
            copy.copy(run.opt)
        assert digest(run.params) == inside
    assert everything(run.opt, set()) == before
    assert run.whole() == undisturbed.whole()
    run.step(), undisturbed.step()
    assert run.whole() == undisturbed.whole()


def test_what_is_saved_in_a_block_is_the_run(optimizer, tmp_path):
    """Whatever weights it shows, and whatever is changed in it."""
    for change in ({}, *CHANGES.values()):
        run, other = Run(optimizer), Run(optimizer)
        outside = other.opt
        set_in(other, 1, **change)
        with run.opt.averaged():
            set_in(run, 1, **change)
            saved = run.opt.state_dict()
            run.opt.save(tmp_path / "run.npz")
        assert digest(saved) == digest(outside.state_dict())
        loaded = Run(optimizer)
        for param, own in zip(loaded.params, run.params, strict=True):
            param[...] = own
        loaded.opt.load(tmp_path / "run.npz")
        assert digest(loaded.opt.state_dict()) == digest(saved)


def test_loading_in_a_block_is_refused(optimizer):
    run = Run(optimizer)
    saved = run.opt.state_dict()
    with run.opt.averaged(), pytest.raises(ValueError, match="load_state_dict: expected after"):
        run.opt.load_state_dict(saved)


class TestBlocks:
    def run(self, optimizer):
        run = Run(optimizer)
        return run, run.opt, digest(run.params)

    def test_leaving_without_having_entered_changes_nothing(self, optimizer):
        run, opt, before = self.run(optimizer)
        opt.averaged().__exit__(None, None, None)
        assert digest(run.params) == before

    def test_leaving_twice_takes_nothing_back(self, optimizer):
        run, opt, _ = self.run(optimizer)
        block = opt.averaged()
        with block:
            pass
        run.step()
        after = digest(run.params)
        block.__exit__(None, None, None)
        assert digest(run.params) == after

    def test_an_exit_after_the_block_was_outdated_changes_nothing(self, optimizer):
        run, opt, _ = self.run(optimizer)
        block = opt.averaged()
        run.step()
        after = digest(run.params)
        with pytest.raises(ValueError, match="used or outdated"):
            block.__enter__()
        block.__exit__(None, None, None)
        assert digest(run.params) == after

    def test_a_parameter_that_is_locked_inside_is_put_back(self, optimizer):
        run, opt, before = self.run(optimizer)
        with opt.averaged():
            run.params[0].setflags(write=False)
        assert digest(run.params) == before


def test_the_norm_has_the_parameters_order(optimizer):
    """Whatever steps they have done: the reference sums the arrays as they stand."""
    grad_norm = op.optim._reference.grad_norm
    rng = np.random.default_rng(0)
    for _ in range(20):
        params = [np.zeros(50, np.float32) for _ in range(6)]
        opt = optimizer([{"params": params[:3]}, {"params": params[3:]}], max_grad_norm=1.0)
        for _ in range(4):
            grads = [rng.normal(size=50).astype(np.float32) for _ in params]
            present = [g if rng.random() < 0.5 else None for g in grads]
            info = opt.step([present[:3], present[3:]])
            assert info.grad_norm == grad_norm([g for g in present if g is not None])
