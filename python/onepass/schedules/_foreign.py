"""What other libraries call the arguments of schedules, and what these are called here."""

from collections.abc import Collection

FIRST = ("initial", "peak", "value", "lr")

NAMES = {
    "lr": FIRST,
    "learning_rate": FIRST,
    "initial_lr": FIRST,
    "initial_learning_rate": FIRST,
    "init_value": FIRST,
    "base_lr": FIRST,
    "max_lr": ("peak", "initial"),
    "peak_lr": ("peak", "initial"),
    "peak_value": ("peak", "initial"),
    "T_0": ("steps",),
    "T_max": ("steps",),
    "total_iters": ("steps",),
    "total_steps": ("steps",),
    "decay_steps": ("decay", "every", "steps"),
    "transition_steps": ("every", "steps"),
    "step_size": ("every",),
    "num_warmup_steps": ("warmup", "steps"),
    "warmup_steps": ("warmup", "steps"),
    "T_mult": ("multiplier",),
    "eta_min": ("final", "min_lr"),
    "end_value": ("final", "min_lr"),
    "end_learning_rate": ("final", "min_lr"),
    "min_lr": ("final",),
    "gamma": ("factor",),
    "decay_rate": ("factor",),
    "milestones": ("boundaries",),
}
"""For each name, what may be meant; the first that a schedule has is."""


def unknown_argument(name: str, known: Collection[str]) -> str:
    """Return what to say of a keyword that a schedule with these arguments does not have."""
    from onepass.optim._foreign import perhaps, unknown  # which needs schedules

    here = [each for each in NAMES.get(name, ()) if each in known]
    said = f" (here it is {here[0]})" if here else perhaps(name, known)
    return unknown(name, name, "arguments", known, said)
