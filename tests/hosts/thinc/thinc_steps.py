"""Steps that the tests of onepass.thinc let optimizers take."""

import numpy as np
from thinc import optimizers as theirs

import onepass.thinc as ours

SHAPES = {(1, "W"): (17, 40), (1, "b"): (40,), (2, "E"): (3, 4, 5), (3, "late"): (300,)}
STEPS = 60
NAMES = sorted(set(ours.__all__) - {"Optimizer"})
RULES = sorted(set(NAMES) - {"Adam", "AdamW", "SGD"})
"""Classes whose rules Thinc lacks."""


def gradients(steps=STEPS, seed=0):
    """Yield the step, and a key, a gradient and lr_scale; the last key appears late."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        for key, shape in SHAPES.items():
            if key[1] != "late" or t >= steps // 2:
                size = 10.0 ** rng.uniform(-3, 1) / np.sqrt(np.prod(shape))
                grad = (rng.normal(size=shape) * size).astype(np.float32)
                yield t, key, grad, (1.0, 0.25)[t % 2]


def weights(seed=1):
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}


def run(optimizer, arrays, steps=None):
    """Take steps; schedules step as spaCy lets them."""
    last = 0
    for t, key, grad, lr_scale in steps or gradients():
        if t > last:
            optimizer.step_schedules()
            last = t
        arrays[key], zero = optimizer(key, arrays[key], grad.copy(), lr_scale=lr_scale)
        assert zero.shape == grad.shape
        assert not zero.any()
    return arrays


def state(optimizer):
    """What an optimizer keeps: names to values."""
    names = ("mom1", "mom2", "averages", "nr_update")
    kept = {name: getattr(optimizer, name) for name in names}
    return {name: dict(arrays) for name, arrays in kept.items() if arrays is not None}


def forbid_thincs_step(monkeypatch):
    def fail(*arguments, **keywords):
        raise AssertionError("Thinc's own step was taken")

    monkeypatch.setattr(theirs.Optimizer, "__call__", fail)
