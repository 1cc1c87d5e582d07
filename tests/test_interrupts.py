"""Ctrl-C at every Python line of a call in turn: all of it has happened, or nothing.

Random moments do not find what these find. An exception of any other kind would do the same.
"""

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, digest
from interrupting import at_each_place

N = 4100  # large enough for 8-bit state

# What was set before the call. With two groups a fault that one group hides comes out.
CHANGES = {
    "nothing": {},
    "everything": {
        "lr": 0.5,
        "weight_decay": 0.5,
        "ema_decay": 0.5,
        "state_format": "q8",
        "max_grad_value": 0.1,
    },
    "no average": {"ema_decay": None},
}
WAYS = ("given", "bound", "accumulated")


class Run:
    """An optimizer after two steps, whose settings then were changed; the same each time."""

    def __init__(self, cls, way, groups, change):
        rng = np.random.default_rng(0)
        self.params = [rng.normal(size=n).astype("f4") for n in (N, 7)]
        self.grads = [rng.normal(size=n).astype("f4") for n in (N, 7)]
        self.way = way
        given = self.params if groups == 1 else [{"params": p} for p in self.params]
        bound = {"grads": self.grads} if way == "bound" else {}
        # One that has an average from the start can also lose it.
        self.opt = cls(given, lr=0.1, ema_decay=0.9 if "ema_decay" in change else None, **bound)
        self.step()
        self.step()
        for group in self.opt.param_groups:
            group.update(change)

    def step(self):
        if self.way == "accumulated":
            self.opt.accumulate(self.grads)
        return self.opt.step(self.grads if self.way == "given" else None)

    def whole(self):
        return digest(self.params, self.opt.state_dict())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_step(way, groups, change):
    undisturbed = [Run(RICHEST, way, groups, change) for _ in range(2)]
    after = []  # one more step, and two
    for steps, run in enumerate(undisturbed, start=1):
        for _ in range(steps):
            run.step()
        after.append(run.whole())
    runs = []

    def attempt():
        runs.append(Run(RICHEST, way, groups, change))
        return runs[-1].step

    for where, _ in at_each_place(attempt):
        run = runs.pop()
        run.opt.discard_accumulated()
        info = run.step()  # the third, or the fourth where the interrupted one had happened
        assert run.whole() == after[info.step - 3], where


class Resumed:
    """All that a load touches: two groups, a schedule that remembers, 16 bits, copies."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.params = [rng.normal(size=50).astype("f4"), rng.normal(size=5).astype("f2")]
        self.copies = [np.zeros(50, np.float16), None]
        self.schedule = op.schedules.ReduceOnPlateau(0.1, patience=0)
        groups = [{"params": param} for param in self.params]
        self.opt = RICHEST(groups, lr=self.schedule, ema_decay=0.9, copy_to=self.copies)

    def whole(self):
        return digest(self.params, self.copies, self.schedule.state_dict(), self.opt.state_dict())


def test_loading():
    source = Resumed()
    saved, loaded, runs = source.opt.state_dict(), source.whole(), []

    def stepped():
        run = Resumed()
        for error in (1.0, 2.0, 3.0):
            run.schedule.report(error)
        run.opt.step([np.ones_like(param) for param in run.params])
        for param, other in zip(run.params, source.params, strict=True):
            param[...] = other
        return run

    def attempt():
        runs.append(stepped())
        return lambda: runs[-1].opt.load_state_dict(saved)

    before = stepped().whole()
    assert before != loaded
    for where, _ in at_each_place(attempt, at_most=4):  # two groups, of two kinds
        assert runs.pop().whole() in (before, loaded), where
    assert runs.pop().whole() == loaded  # the last attempt, which nothing interrupted


def test_other_calls_that_change_nothing_else():
    """Reading, and what puts back what it moved."""
    run = Run(RICHEST, "given", 2, {"ema_decay": 0.5, "rounding": "nearest"})
    opt, params, grads = run.opt, run.params, run.grads

    def loss():
        return float((params[0] ** 2).sum())

    def look():
        with opt.averaged():
            return loss()

    def refused():
        with pytest.raises(ValueError, match="grads"):
            opt.bind([np.ones(3)])

    calls = {
        "state_dict": opt.state_dict,
        "repr": opt.__repr__,
        "averaged": look,
        "range_test": lambda: op.search.range_test(opt, lambda: (loss(), grads), steps=2),
        "line_search": lambda: op.line_search.best_of([10.0])(params, grads, loss),
        "refused gradients": refused,
    }
    before = run.whole(), digest(opt.param_groups)
    for name, call in calls.items():
        for where, _ in at_each_place(lambda call=call: call, at_most=4):
            assert (run.whole(), digest(opt.param_groups)) == before, (name, where)
    assert run.step().step == 3


@pytest.mark.parametrize("way", WAYS)
def test_adding_a_group(way):
    """It is there, with all that belongs to it, or it is not; and the run goes on."""
    ends, runs = [], []
    for added in (False, True):
        run = Run(RICHEST, way, 2, {"ema_decay": 0.5})
        if added:
            group = {"params": np.ones(3, np.float32), "state_format": "q8"}
            run.opt.add_param_group(group)
        ends.append((len(run.opt.param_groups), digest(run.opt), repr(run.opt)))

    def attempt():
        runs.append(Run(RICHEST, way, 2, {"ema_decay": 0.5}))
        group = {"params": np.ones(3, np.float32), "state_format": "q8"}
        return lambda: runs[-1].opt.add_param_group(group)

    for where, _ in at_each_place(attempt):
        opt = runs.pop().opt
        assert (len(opt.param_groups), digest(opt), repr(opt)) in ends, where
        grads = [np.ones_like(group["params"][0]) for group in opt.param_groups]
        assert opt.step(grads).step == 3
    assert len(runs.pop().opt.param_groups) == 3


def test_binding():
    """The old gradients are bound, or the new ones."""
    steps = {}
    for scale in (1, 2):
        run = Run(RICHEST, "bound", 2, {})
        for grad in run.grads:
            np.multiply(grad, scale, out=grad)
        run.step()
        steps[scale] = digest(run.params)
    runs = []

    def attempt():
        runs.append(Run(RICHEST, "bound", 2, {}))
        new = [2 * grad for grad in runs[-1].grads]
        return lambda: runs[-1].opt.bind(new)

    for where, _ in at_each_place(attempt):
        run = runs.pop()
        run.step()
        assert digest(run.params) in steps.values(), where
