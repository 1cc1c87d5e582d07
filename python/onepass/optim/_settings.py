"""The settings of a step that every optimizer has: one table for checks, defaults and types."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypedDict

import numpy as np

from onepass import _core
from onepass._hyperparameters import Check, Choice, Flag, Maybe, Number, Whole, check_setting
from onepass._typing import Overrides, OwnArrays, Schedule, StateAlloc

GROUP_CHECKS: Mapping[str, Check] = {
    "max_grad_value": Maybe(Number(above=0.0, schedulable=True)),
    "ema_decay": Maybe(Number(high=1.0, schedulable=True)),
    "ema_warmup": Flag(),
    "swa_start": Maybe(Whole(low=1, below=2**53)),
    "average_every": Whole(low=1, below=2**53),
    "average_dtype": Choice(("float64", "float32")),
    "state_format": Maybe(Choice(("bf16", "q8"))),
    "rounding": Choice(("master", "stochastic", "nearest")),
    "cautious_weight_decay": Flag(),
    "max_grad_norm_each": Maybe(Number(above=0.0, schedulable=True)),
    "lookahead_every": Maybe(Whole(low=1, below=2**53)),
    "lookahead_weight": Number(low=2.0**-126, high=1.0),
}
"""What may differ from group to group."""

GROUP_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "max_grad_value": None,
        "ema_decay": None,
        "ema_warmup": False,
        "swa_start": None,
        "average_every": 1,
        "average_dtype": "float64",
        "state_format": None,
        "rounding": "master",
        "cautious_weight_decay": False,
        "max_grad_norm_each": None,
        "lookahead_every": None,
        "lookahead_weight": 0.5,
    }
)

CHECKS: Mapping[str, Check] = {
    "max_grad_norm": Maybe(Number(above=0.0, infinite=True, schedulable=True)),
    "skip_grad_norm": Maybe(Number(above=0.0, schedulable=True)),
    "nonfinite": Choice(("propagate", "skip", "raise")),
    "clear_grads": Flag(),
    "seed": Whole(below=2**53),
}
"""What belongs to the whole optimizer."""

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "max_grad_norm": None,
        "skip_grad_norm": None,
        "nonfinite": "propagate",
        "clear_grads": False,
        "seed": 0,
    }
)

OWN_FIELDS = _core.Fields(dict(CHECKS), check_setting)

GRAD_SCALE = Number(low=2.0**-126, high=float(np.finfo(np.float32).max))
"""Neither it nor its inverse is infinite in float32."""


class StepOptions(TypedDict, total=False):
    """What every optimizer takes besides its hyperparameters; see `onepass.Optimizer`."""

    max_grad_norm: float | Schedule | None
    max_grad_norm_each: float | Schedule | None
    max_grad_value: float | Schedule | None
    skip_grad_norm: float | Schedule | None
    nonfinite: Literal["propagate", "skip", "raise"]
    clear_grads: bool
    ema_decay: float | Schedule | None
    ema_warmup: bool
    swa_start: int | None
    average_every: int
    average_dtype: Literal["float64", "float32"]
    lookahead_every: int | None
    lookahead_weight: float
    state_format: Literal["bf16", "q8"] | None
    rounding: Literal["master", "stochastic", "nearest"]
    cautious_weight_decay: bool
    seed: int
    overrides: Overrides
    grads: OwnArrays
    copy_to: OwnArrays
    state_alloc: StateAlloc | None


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where settings that are valid alone do not go together."""
    if settings["ema_decay"] is not None and settings["swa_start"] is not None:
        raise ValueError(
            f"swa_start: expected None with ema_decay (one average), got {settings['swa_start']}"
        )
    if settings["ema_warmup"] and settings["ema_decay"] is None:
        raise ValueError("ema_warmup: expected False without ema_decay, got True")
    if settings["average_every"] != 1 and not averages(settings):
        got = settings["average_every"]
        raise ValueError(f"average_every: expected 1 without ema_decay or swa_start, got {got}")
    if settings["cautious_weight_decay"]:
        if not settings.get("decoupled_weight_decay", False):
            expected = "False with a weight decay that is coupled"
            raise ValueError(f"cautious_weight_decay: expected {expected}, got True")
        if not settings.get("no_prox", True):
            expected = "False with a weight decay that is proximal"
            raise ValueError(f"cautious_weight_decay: expected {expected}, got True")


def averages(settings: Mapping[str, Any]) -> bool:
    """Return whether these settings keep an average of the weights."""
    return settings["ema_decay"] is not None or settings["swa_start"] is not None
