"""Schedule-free learning: the average that is shown, and the two kinds of weights that are kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from onepass._hyperparameters import Number
from onepass._typing import Array

MOMENTUM = Number(low=1e-3, below=1.0)
"""Less of x in y would leave x to the rounding of y."""


def scalars(step: int, values: Mapping[str, Any], lr: float, momentum: float) -> dict[str, float]:
    """Return the numbers of a step of `lr`, and the memory after it.

    Where all weights so far are 0, as with a rate of 0, a step has no share in the average.
    """
    lr_max = max(values["lr_max"], lr)
    weight = step ** values["r"] * lr_max ** values["weight_lr_power"]
    weight_sum = values["weight_sum"] + weight
    share = weight / weight_sum if weight_sum > 0 else 0.0
    return {
        "is_first": float(step == 1),
        "share": share,
        "rest": 1 - share,
        "lr": lr,
        "param_lr": lr * (1 - momentum * (1 - share)),
        "weight_sum": weight_sum,
        "lr_max": lr_max,
    }


def warmed_up(step: int, values: Mapping[str, Any]) -> float:
    """Return the learning rate, which grows in a straight line over the first steps."""
    lr: float = values["lr"]
    warmup_steps: int = values["warmup_steps"]
    return lr * (step / warmup_steps) if step < warmup_steps else lr


def moved(
    param: Array,
    z: Array,
    update: Array,
    *,
    is_first: float,
    share: float,
    rest: float,
    lr: float,
    param_lr: float,
) -> tuple[Array, Array]:
    """Return the weights y, where gradients are taken, and z, which descends, after a step."""
    before = param if is_first > 0 else z
    way = before - param
    is_near = param.dtype.type(share) < param.dtype.type(rest)
    nearer = param + share * way if is_near else before - rest * way
    return nearer - param_lr * update, before - lr * update


def shown(param: Array, z: Array, momentum: float) -> Array:
    """Return the average x of the weights z, from which y lies between x and z."""
    return np.asarray(param + (1 - 1 / momentum) * (z - param))


def check_together(name: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a second average, and for what would move y without x and z."""
    for average in ("ema_decay", "swa_start"):
        if (got := settings.get(average)) is not None:
            expected = f"None for {name} (it averages by itself)"
            raise ValueError(f"{average}: expected {expected}, got {got!r}")
    if (every := settings.get("lookahead_every")) is not None:
        expected = f"None for {name} (its weights lie between two others)"
        raise ValueError(f"lookahead_every: expected {expected}, got {every!r}")
