"""Schedules by name, as the command takes them: the peak rate and all steps make one."""

from collections.abc import Callable, Mapping
from math import ceil, log

from onepass import schedules
from onepass._typing import Schedule


def cosine(peak: float, steps: int) -> Schedule:
    """Return a linear warm-up over a twentieth, then a cosine's half wave down to a tenth."""
    warmup = ceil(steps / 20)
    wave = schedules.cosine(peak, max(1, steps - warmup - 1), final=peak / 10)
    return schedules.warmup(warmup, wave, initial=peak / warmup)


SCHEDULES: Mapping[str, Callable[[float, int], Schedule]] = {
    "constant": lambda lr, _: schedules.constant(lr),
    "step_decay": lambda lr, steps: schedules.step_decay(lr, every=ceil(steps / 4)),
    "exponential": lambda lr, steps: schedules.exponential(lr, rate=log(100) / steps),
    "inverse_time": lambda lr, steps: schedules.inverse_time(lr, rate=9 / steps),
    "polynomial": lambda lr, steps: schedules.polynomial(lr, steps, power=2.0),
    "cosine": cosine,
    # Three waves, each twice as long as the one before.
    "cosine_restarts": lambda lr, steps: schedules.cosine_restarts(
        lr, ceil(steps / 7), multiplier=2
    ),
    "one_cycle": lambda lr, steps: schedules.one_cycle(lr, max(2, steps)),
    "warmup_stable_decay": lambda lr, steps: schedules.warmup_stable_decay(
        lr, max(2, steps), warmup=ceil(steps / 20), decay=max(1, steps // 5)
    ),
    "reduce_on_plateau": lambda lr, _: schedules.ReduceOnPlateau(lr),
}
