"""Schedules: values of a hyperparameter as functions of the step.

Each goes wherever a hyperparameter goes, in place of its value:
``op.AdamW(params, lr=op.schedules.cosine(1e-3, steps=10_000))``. A setting of several numbers, such
as ``betas``, takes a schedule that returns all of them, or one in the place of a number:
``betas=(schedule, 0.999)``. A schedule is called with the number of completed steps, counted from
0, as in optax. All arguments count in steps; to speak of epochs, multiply:
``every=5 * steps_per_epoch``. A schedule past its end stays at its last value. A phase of 0 steps,
as a configuration switches one off, is left out.

The schedules are frozen dataclasses: two with the same arguments are equal, and they print, copy
and pickle. `ReduceOnPlateau` alone has a memory, which the optimizer's `state_dict` includes.

Any other callable of a step is a schedule too, optax's among them, if it returns a real number, or
a 0-d array of any library. If it has `state_dict()` and `load_state_dict()`, of values that JSON
knows, a checkpoint includes its memory as well.

>>> import onepass as op
>>> halve = op.schedules.step_decay(0.1, every=5)
>>> [halve(step) for step in (0, 4, 5, 10)]
[0.1, 0.1, 0.05, 0.025]
>>> halve
step_decay(initial=0.1, every=5, factor=0.5)
"""

from onepass.schedules._cosine import cosine, cosine_restarts, one_cycle
from onepass.schedules._curves import exponential, inverse_time, polynomial, sutskever_momentum
from onepass.schedules._phases import join, scaled, warmup, warmup_stable_decay
from onepass.schedules._plateau import ReduceOnPlateau
from onepass.schedules._stairs import constant, piecewise, step_decay

__all__ = [
    "ReduceOnPlateau",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_time",
    "join",
    "one_cycle",
    "piecewise",
    "polynomial",
    "scaled",
    "step_decay",
    "sutskever_momentum",
    "warmup",
    "warmup_stable_decay",
]
