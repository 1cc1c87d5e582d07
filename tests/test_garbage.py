"""What an optimizer holds is let go of: by the collector where there is a cycle, else at once."""

import copy
import gc
import sys
import weakref

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, fresh_state


class Gradient(np.ndarray):
    """An array that can have attributes, and so be part of a cycle."""


def owned(size=3):
    return np.ones(size).view(Gradient)


def through_a_schedule(cls):
    def lr(step):
        return 0.1 * len(opt.param_groups)

    opt = cls(np.ones(3), lr=lr)
    opt.step(np.ones(3))
    return opt


def through_a_limit(cls):
    opt = cls(np.ones(3), max_grad_norm=lambda _: float(len(opt.param_groups)))
    opt.step(np.ones(3))
    return opt


def through_a_parameter(cls):
    w = owned()
    opt = w.opt = cls(w)
    opt.step(np.ones(3))
    return opt


def through_a_bound_gradient(cls):
    g = owned()
    opt = g.opt = cls(np.ones(3), grads=g)
    opt.step()
    return opt


def through_a_copy(cls):
    narrow = np.ones(3, np.float16).view(Gradient)
    opt = narrow.opt = cls(np.ones(3, np.float32), copy_to=narrow)
    opt.step(np.ones(3, np.float32))
    return opt


def through_an_attribute(cls):
    class Mine(cls):
        def __init__(self, *args):
            super().__init__(*args)
            self._me = self

    return Mine(np.ones(3))


def through_what_it_was_made_with(cls):
    """The schedule has been replaced, but a group that is added would have it."""
    opt = through_a_schedule(cls)
    opt.param_groups[0]["lr"] = 0.1
    opt.step(np.ones(3))
    return opt


def through_an_added_group(cls):
    w = owned()
    opt = w.opt = cls(np.ones(3))
    opt.add_param_group({"params": w, "weight_decay": lambda _: 0.0 * len(opt.param_groups)})
    opt.step([np.ones(3), np.ones(3)])
    return opt


def through_overrides(cls):
    """A group that is added would have them."""
    made = []
    opt = cls(np.ones(3), overrides=lambda *_: {"maximize": bool(made)})
    made.append(opt)
    opt.step(np.ones(3))
    return opt


def through_a_block(cls):
    """The block was entered and left, and the optimizer remembers it until the next step."""
    opt = cls(np.ones(3), ema_decay=0.5, lr=lambda _: 0.1 * len(opt.param_groups))
    opt.step(np.ones(3))
    with opt.averaged():
        pass
    return opt


def that_was_not_set_up(cls):
    class Mine(cls):
        def __init__(self):
            self._me = self

    return Mine()


def that_failed_in_its_first_step(cls):
    def lr(step):
        raise ZeroDivisionError(len(opt.param_groups))

    opt = cls(np.ones(3), lr=lr)
    with pytest.raises(ZeroDivisionError):
        opt.step(np.ones(3))
    return opt


def that_was_loaded(cls):
    opt = through_a_schedule(cls)
    opt.load_state_dict(opt.state_dict())
    return opt


def that_was_copied(cls):
    return copy.deepcopy(through_a_limit(cls))


CYCLES = [
    through_a_schedule,
    through_a_limit,
    through_a_parameter,
    through_a_bound_gradient,
    through_a_copy,
    through_an_attribute,
    through_what_it_was_made_with,
    through_an_added_group,
    through_overrides,
    through_a_block,
    that_was_not_set_up,
    that_failed_in_its_first_step,
    that_was_loaded,
    that_was_copied,
]


def test_cycles_are_collected(optimizer):
    made = {make.__name__: weakref.ref(make(optimizer)) for make in CYCLES}
    gc.collect()
    assert [name for name, opt in made.items() if opt() is not None] == []


def test_cycles_that_are_held_are_not(optimizer):
    """And can be used as before."""
    held = [make(optimizer) for make in CYCLES]
    gc.collect()
    for make, opt in zip(CYCLES, held, strict=True):
        if make is that_was_not_set_up:
            with pytest.raises(TypeError, match="set up"):
                opt.step(np.ones(3))
            continue
        opt.param_groups[0]["lr"] = 0.1
        grads = [np.ones(len(p), p.dtype) for g in opt.param_groups for p in g["params"]]
        assert opt.step(grads if len(grads) > 1 else grads[0]).lr == 0.1


def test_without_a_cycle_it_goes_at_once(optimizer):
    gc.disable()
    try:
        w, g = owned(), owned()
        opt = optimizer(w, grads=g, ema_decay=0.5, lr=lambda _: 0.1)
        opt.step()
        opt.accumulate()
        opt.step()
        opt.add_param_group({"params": np.ones(2)})
        gone = [weakref.ref(thing) for thing in (opt, w, g)]
        del opt, w, g
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_finalizer_may_use_it_once_more(optimizer):
    class Mine(optimizer):
        def __del__(self):
            seen.append((self.step(np.ones(3)).step, repr(self)))

    seen = []
    w = owned()
    w.opt = Mine(w)
    w.opt.step(np.ones(3))
    del w
    gc.collect()
    assert seen[0][0] == 2
    assert seen[0][1].startswith("Mine(params=1 arrays of 3 elements")


# What is done again and again.


def run_steps(opt, w, g):
    opt.step(g)


def run_bound(opt, w, g):
    opt.bind(g)
    opt.step()
    opt.step(grad_scale=2)
    opt.bind(None)


def run_accumulated(opt, w, g):
    opt.accumulate(g)
    opt.accumulate([None, g[1]])
    opt.step()
    opt.accumulate(g)
    opt.discard_accumulated()


def run_raising(opt, w, g):
    for bad in ([g[0]], [g[0], g[1][:-1]], [g[0], w[1]], [g[0], 1.0], None, {"a": g[0]}):
        with pytest.raises((TypeError, ValueError)):
            opt.step(bad)
        with pytest.raises((TypeError, ValueError)):
            opt.accumulate(bad)
    with pytest.raises((TypeError, ValueError)):
        opt.step(g, grad_scale=0)
    with pytest.raises(TypeError):
        opt.step(g, nonsense=1)
    with pytest.raises((TypeError, ValueError)):
        opt.add_param_group({"params": g[0], "lr": -1.0})


def run_not_finite(opt, w, g):
    opt.nonfinite = "raise"
    bad = [g[0], np.full(3, np.nan)]
    with pytest.raises(ValueError, match="finite"):
        opt.step(bad)
    opt.nonfinite = "skip"
    assert opt.step(bad).skipped
    opt.nonfinite = "propagate"


def run_strided(opt, w, g):
    opt.step([np.ones(80)[::2], np.ones(3).view(Gradient)])


def run_foreign(opt, w, g):
    class Foreign:
        def __init__(self, read):
            self.read = read

        def __array__(self, dtype=None, copy=None):
            return self.read()

    def fail():
        raise RuntimeError("on a GPU")

    grads = [Foreign(lambda: g[0]), Foreign(lambda: g[1])]
    opt.step(grads)
    opt.accumulate(grads)
    opt.step()
    op.kernels.sgd(w, grads, lr=0.25)
    for bad in ([Foreign(fail), g[1]], [Foreign(lambda: 1.0), g[1]], [Foreign(lambda: w[0]), None]):
        for call in (opt.step, opt.accumulate, opt.bind):
            with pytest.raises((TypeError, ValueError)):
                call(bad)
        with pytest.raises((TypeError, ValueError)):
            op.kernels.sgd(w, bad, lr=0.25)


def run_settings(opt, w, g):
    group = opt.param_groups[0]
    group.update(lr=0.25, weight_decay=0.5)
    opt.step(g)
    group["lr"] = 0.5
    group |= {"ema_decay": None}
    opt.step(g)
    group["ema_decay"] = 0.5
    opt.step(g)
    for bad in ({"lr": -1.0}, {"lrr": 1.0}, {"lr": 0.1, "weight_decay": "much"}):
        with pytest.raises((TypeError, ValueError)):
            group.update(bad)
    with pytest.raises(TypeError):
        group.pop("lr")
    assert group.setdefault("lr", 1.0) == 0.5
    group["lr"] = lambda _: 0.1
    opt.step(g)
    group["lr"] = 0.1


def run_checkpoints(opt, w, g):
    opt.load_state_dict(opt.state_dict())
    opt.step(g)
    copy.deepcopy(opt).step(g)
    with pytest.raises(ValueError, match="keys"):
        opt.load_state_dict({})


def run_blocks(opt, w, g):
    with opt.averaged():
        pass
    opt.averaged()
    with opt.averaged(), pytest.raises(ValueError, match="block"):
        opt.step(g)
    opt.step(g)


def run_new_ones(opt, w, g):
    twin = type(opt)([np.ones(40), np.ones(3)], grads=g)
    twin.add_param_group({"params": np.ones(2)})
    with pytest.raises((TypeError, ValueError)):
        type(opt)([g[0], g[0]])
    with pytest.raises((TypeError, ValueError)):
        type(opt)(w, grads=[g[0]])


def run_kernels(opt, w, g):
    kernel = getattr(op.kernels, opt.rule)
    states = [fresh_state(type(opt), {}, param) for param in w]
    lists = [None if of[0] is None else list(of) for of in zip(*states, strict=True)]
    kernel(w[1], g[1], *states[1], step=1)
    average = [param.copy() for param in w]
    options = {"max_grad_norm": 1.0, "ema_decay": 0.5, "average": average}
    kernel(list(w), list(g), *lists, step=1, lr=0.25, **options)
    for bad in ([g[0]], [g[0], g[1][:-1]], g[0], [w[0], g[1]], None):
        with pytest.raises((TypeError, ValueError)):
            kernel(list(w), bad, *lists, step=1)
    for keywords in ({"step": 0}, {"nonsense": 1}, {"lr": -1.0}, {"average": average}):
        with pytest.raises((TypeError, ValueError)):
            kernel(list(w), list(g), *lists, **{"step": 1, **keywords})


RUNS = [
    run_steps,
    run_bound,
    run_accumulated,
    run_raising,
    run_not_finite,
    run_strided,
    run_foreign,
    run_settings,
    run_checkpoints,
    run_blocks,
    run_new_ones,
    run_kernels,
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_nothing_is_left_behind(run):
    """Neither an object, nor a reference to an array, a number or a name."""
    w, g = [np.ones(40), np.ones(3)], [np.full(40, 0.5), np.full(3, 0.25)]
    opt = RICHEST(w, lr=0.1, ema_decay=0.5)
    watched = [*w, *g, None, True, False, 0.5, "lr", "ema_decay", "skip", op.StepInfo, type(opt)]

    def counts():
        gc.collect()
        # None and its like count nothing from Python 3.12 on.
        return len(gc.get_objects()), [sys.getrefcount(thing) for thing in watched]

    for _ in range(3):
        run(opt, w, g)
    repeats = 12
    objects, before = counts()
    for _ in range(repeats):
        run(opt, w, g)
    now, after = counts()
    assert now - objects < repeats
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert max(grown) < repeats, dict(zip(map(repr, watched), grown, strict=True))


def test_a_thousand_steps_leave_nothing_behind(optimizer):
    """Of any kind of memory that Python counts."""
    import tracemalloc

    w, g = np.ones(9), np.ones(9)
    opt = optimizer(w, lr=lambda _: 0.1, max_grad_norm=1.0, ema_decay=0.5)
    kernel = getattr(op.kernels, optimizer.rule)
    state = fresh_state(optimizer, {}, w)

    def work(steps):
        for step in range(steps):
            opt.step(g)
            kernel(w, g, *state, step=step + 1, lr=0.1)

    work(10)
    gc.collect()
    tracemalloc.start()
    try:
        work(10)
        before, _ = tracemalloc.get_traced_memory()
        work(1000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8000  # 8 bytes a step would be more
