"""What other libraries call things, and what these are called here: for messages."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from onepass.optim._rule import Rule, registry
from onepass.optim._settings import CHECKS

NAMES = {
    "learning_rate": "lr",
    "step_size": "lr",
    "eta": "lr",
    "alpha": "lr, and alpha in RMSprop",
    "rho": "alpha in RMSprop",
    "decay": "alpha in RMSprop, and a schedule for lr",
    "mu": "momentum",
    "beta": "betas in Adam, ema_decay of the weights",
    "beta1": "betas",
    "beta2": "betas",
    "beta_1": "betas",
    "beta_2": "betas",
    "b1": "betas",
    "b2": "betas",
    "epsilon": "eps",
    "clip_threshold": "d in Adafactor",
    "clipping_threshold": "d in Adafactor",
    "decay_rate": "beta2_decay in Adafactor, with the other sign in optax",
    "multiply_by_parameter_scale": "scale_parameter in Adafactor",
    "warmup_init": "lr, which takes a schedule",
    "l2": "weight_decay",
    "l2_regularization": "weight_decay",
    "weight_decouple": "decoupled_weight_decay in Adam, or AdamW",
    "correct_bias": "bias_correction in Adam and AdamW",
    "clipnorm": "max_grad_norm_each, the norm of each array",
    "global_clipnorm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "clipvalue": "max_grad_value",
    "clip_value": "max_grad_value",
    "clip": "max_grad_norm, or max_grad_value for each element",
    "grad_clip": "max_grad_norm, or max_grad_value for each element",
    "clip_grad": "max_grad_norm, or max_grad_value for each element",
    "gradient_clip": "max_grad_norm, or max_grad_value for each element",
    "gradient_clipping": "max_grad_norm, or max_grad_value for each element",
    "clip_norm": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "grad_clip_norm": "max_grad_norm",
    "grad_norm_clip": "max_grad_norm",
    "gradient_clip_norm": "max_grad_norm",
    "clip_by_global_norm": "max_grad_norm",
    "clip_grad_value": "max_grad_value",
    "gradient_clip_val": "max_grad_norm, or max_grad_value for each element",
    "caution": "cautious in Adam, AdamW and Lion",
    "use_ema": "ema_decay",
    "ema_momentum": "ema_decay",
    "zero_grad": "clear_grads, which zeroes in the step; opt.zero_grad() is the method",
    "loss_scale": "grad_scale, an argument of step",
    "loss_scale_factor": "grad_scale, an argument of step",
    "gradient_accumulation_steps": "accumulate, a method",
    "schedule": "lr, which takes a schedule",
    "lr_schedule": "lr, which takes a schedule",
    "scheduler": "lr, which takes a schedule",
    "lr_scheduler": "lr, which takes a schedule",
    "warmup": "lr, which takes a schedule: op.schedules.warmup",
    "warmup_steps": "lr, which takes a schedule: op.schedules.warmup",
    "num_warmup_steps": "lr, which takes a schedule: op.schedules.warmup",
    "lr_scale": "overrides, whose settings have it",
    "lr_mult": "overrides, whose settings have lr_scale",
    "layer_decay": "overrides, with op.layer_decay",
    "mask": "overrides, or a setting by patterns of names",
    "weight_decay_mask": "overrides, with op.no_decay_1d, say",
    "fused": "nothing: every step is fused",
    "foreach": "nothing: every step is fused",
    "capturable": "nothing: there is no GPU",
    "differentiable": "nothing: there is no autograd",
    "name": "nothing: optimizers have none",
}


SYNONYMS = {"swa_every": "average_every"}
"""Names of other libraries that are taken, because they can mean nothing else."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names that they have here."""
    return {SYNONYMS.get(name, name): value for name, value in settings.items()}


def check_names(
    cls: type[Rule], given: Iterable[str], options: Iterable[str], label: str | None = None
) -> None:
    """Raise TypeError where a keyword is none of the rule's hyperparameters, nor of these options.

    `label` is what the message calls the mapping that has the names, where they are not keywords.
    """
    known = [*cls.checks, *(name for name in options if name not in cls.checks)]
    for name in given:
        if name not in known:
            where = name if label is None else f"{label}[{name!r}]"
            raise TypeError(unknown(where, name, "hyperparameters", known))


def unknown(
    label: str, name: str, kind: str, known: Collection[str], said: str | None = None
) -> str:
    """Return what to say of a name that is none of the known ones: what it could be, then these.

    `said` is what it could be, where that is not the hint for a hyperparameter.
    """
    got = f"got an unknown name{hint(name, known) if said is None else said}"
    return f"{label}: expected one of the {kind}, {got}; they are {', '.join(known)}"


def no_attribute(cls: type[Rule], name: str) -> str:
    """Return what to say where an attribute is set that an optimizer does not have."""
    if name in cls.group_checks:
        expected = f"it to be set in a group, opt.param_groups[0][{name!r}] = ..."
        return f"{name}: expected {expected}, got an assignment to the optimizer"
    return unknown(name, name, "attributes", ("param_groups", *CHECKS))


def hint(name: str, known: Collection[str]) -> str:
    """Return what a name is called here, which class has it, or what is spelt like it; or nothing.

    `known` are the names that could stand in its place.
    """
    if said := _about(name, name):
        return f" ({said})"
    if said := perhaps(name, known):
        return said
    elsewhere = {*NAMES, *CHECKS, *(each for cls in registry.values() for each in cls.checks)}
    if close := _closest(name, elsewhere):
        return f" (perhaps {close}: {_about(close, 'it')})"
    return ""


def perhaps(name: str, known: Collection[str]) -> str:
    """Return which of the known names is spelt like this one, or nothing."""
    close = _closest(name, known)
    return f" (perhaps {close})" if close else ""


def _about(name: str, called: str) -> str:
    """Return what a name is called here, and which classes have it as a hyperparameter."""
    said = [f"here it is {NAMES[name]}"] if name in NAMES else []
    if owners := [cls.__name__ for cls in registry.values() if name in cls.checks]:
        said.append(f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} {called}")
    if name in CHECKS:
        said.append(f"the optimizer as a whole has {called}")
    return "; ".join(said)


def _closest(name: str, names: Collection[str]) -> str | None:
    """Return the name that is spelt most like this one, if any is."""
    from difflib import get_close_matches  # which only errors need

    return next(iter(get_close_matches(str(name).lower(), sorted(names), 1, cutoff=0.75)), None)
