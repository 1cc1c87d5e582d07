"""What surrounds the rule in a step, whichever it is: clipping, loss scale, weight average.

The kernels' stages (cpp/include/onepass/update.hpp, reduce.hpp) once more, in NumPy: the oracle.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypedDict

import numpy as np

from onepass import _core
from onepass._hyperparameters import Check, Choice, Flag, Maybe, Number, Whole
from onepass._typing import Array, Grads, Schedule

GROUP_CHECKS: Mapping[str, Check] = {
    "max_grad_value": Maybe(Number(above=0.0, schedulable=True)),
    "ema_decay": Maybe(Number(below=1.0, schedulable=True)),
    "ema_warmup": Flag(),
    "swa_start": Maybe(Whole(low=1)),
    "state_format": Maybe(Choice(("bf16", "q8"))),
    "rounding": Choice(("master", "stochastic", "nearest")),
}
"""What may differ from group to group."""

GROUP_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "max_grad_value": None,
        "ema_decay": None,
        "ema_warmup": False,
        "swa_start": None,
        "state_format": None,
        "rounding": "master",
    }
)

CHECKS: Mapping[str, Check] = {
    "max_grad_norm": Maybe(Number(above=0.0, infinite=True, schedulable=True)),
    "nonfinite": Choice(("propagate", "skip", "raise")),
    "clear_grads": Flag(),
    "seed": Whole(below=2**53),
}
"""What belongs to the whole optimizer."""

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"max_grad_norm": None, "nonfinite": "propagate", "clear_grads": False, "seed": 0}
)

GRAD_SCALE = Number(low=2.0**-126, high=float(np.finfo(np.float32).max))
"""Neither it nor its inverse is infinite in float32."""

NONFINITE = {
    "propagate": _core.Nonfinite.propagate,
    "skip": _core.Nonfinite.skip,
    "raise": _core.Nonfinite.raise_,
}


class StepOptions(TypedDict, total=False):
    """What every optimizer takes besides its hyperparameters; see `onepass.Optimizer`."""

    max_grad_norm: float | Schedule | None
    max_grad_value: float | Schedule | None
    nonfinite: Literal["propagate", "skip", "raise"]
    clear_grads: bool
    ema_decay: float | Schedule | None
    ema_warmup: bool
    swa_start: int | None
    state_format: Literal["bf16", "q8"] | None
    rounding: Literal["master", "stochastic", "nearest"]
    seed: int
    grads: Grads
    copy_to: Grads


FLUSH_EVERY = 64
"""In every so many steps, what is kept loses its subnormal numbers (update.hpp has it again)."""

PLAIN = (1.0, 0.0, 1.0, np.inf, 0.0, 0, 1)
"""The scalars of a step that does nothing but its rule."""


def check_together(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where stages that are valid alone do not go together."""
    if settings["ema_decay"] is not None and settings["swa_start"] is not None:
        raise ValueError(
            f"swa_start: expected None with ema_decay (one average), got {settings['swa_start']}"
        )
    if settings["ema_warmup"] and settings["ema_decay"] is None:
        raise ValueError("ema_warmup: expected False without ema_decay, got True")


def averages(settings: Mapping[str, Any]) -> bool:
    """Return whether these settings keep an average of the weights."""
    return settings["ema_decay"] is not None or settings["swa_start"] is not None


def constants(values: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the numbers of the stages that stay the same until a value changes.

    They are the sign of the gradient, the coupled weight decay, what the weights shrink to by the
    decoupled one, and the largest value of the gradient.
    """
    decay, max_value = values["weight_decay"], values["max_grad_value"]
    decoupled = values.get("decoupled_weight_decay", False)
    return (
        -1.0 if values["maximize"] else 1.0,
        0.0 if decoupled else decay,
        1 - values["lr"] * decay if decoupled else 1.0,
        np.inf if max_value is None else max_value,
    )


def average_weight(step: int, averaged: int, values: Mapping[str, Any]) -> float:
    """Return the weight that the parameters of step `step` have in their new average.

    `averaged` counts the steps since the average began, this one included.
    """
    start: int | None = values["swa_start"]
    if start is not None:
        return 1.0 / max(1, min(averaged, step - start + 1))
    if averaged == 1:
        return 1.0
    decay: float = values["ema_decay"]
    return 1 - (min(decay, (1 + averaged) / (10 + averaged)) if values["ema_warmup"] else decay)


# The oracle

LANES, ROWS, BLOCK = 64, 4, 16384


def sum_of_squares(grad: Array) -> list[float]:
    """Return the sums of a gradient's blocks, in double: four rows of lanes at a time."""
    flat = grad.ravel(order="K").astype(np.float64)
    sums = []
    for begin in range(0, flat.size, BLOCK):
        squares = np.square(flat[begin : begin + BLOCK])
        whole = squares.size // (ROWS * LANES) * (ROWS * LANES)
        rest = np.zeros(-(-(squares.size - whole) // LANES) * LANES)
        rest[: squares.size - whole] = squares[whole:]
        four = squares[:whole].reshape(-1, ROWS, LANES)
        terms = (four[:, 0] + four[:, 1]) + (four[:, 2] + four[:, 3])
        lanes = np.zeros(LANES)
        for row in (*terms, *rest.reshape(-1, LANES)):
            lanes += row
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        sums.append(float(lanes[0]))
    return sums


def grad_norm(grads: Sequence[Array], grad_scale: float = 1.0) -> float:
    """Return the norm of gradients that lie as their parameters do, divided by `grad_scale`."""
    total = 0.0
    for grad in grads:
        for block in sum_of_squares(grad):
            total += block
    return float(np.sqrt(total)) / grad_scale


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Return what gradients of this norm are multiplied by: PyTorch's rule."""
    coefficient = 1.0 if max_norm == np.inf else max_norm / (norm + 1e-6)
    return 1.0 if coefficient > 1 else coefficient  # a NaN stays one


def moved_average(average: Array, param: Array, weight: float) -> Array:
    """Return the average, in float64, after the parameters have entered it."""
    if weight == 1:
        return param.astype(np.float64)
    way = param - average
    rest = 1 - weight
    return average + weight * way if weight < rest else param - rest * way


def flushed(values: Array) -> Array:
    """Return what is kept: zero where a number is subnormal."""
    return np.where(np.abs(values) < np.finfo(values.dtype).smallest_normal, 0, values)
