"""The oracle: what surrounds the rule in a step, whichever it is, in NumPy.

The kernels' stages (cpp/include/onepass/update.hpp, reduce.hpp) once more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onepass._memory import raveled
from onepass._typing import Array
from onepass.optim.step_info import ParamStats

FLUSH_EVERY = 64
"""In every step of this many, subnormal numbers become zero (update.hpp has it again)."""


def constants(values: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return the numbers of the stages that stay the same until a value changes.

    They are the sign of the gradient, the coupled weight decay, what the weights shrink to by the
    decoupled one, and the largest value of the gradient.
    """
    decay, max_value = values["weight_decay"], values["max_grad_value"]
    decoupled = values.get("decoupled_weight_decay", False)
    is_late = values["cautious_weight_decay"] or not values.get("no_prox", True)
    return (
        -1.0 if values["maximize"] else 1.0,
        0.0 if decoupled else decay,
        1 - values["lr"] * decay if decoupled and not is_late else 1.0,
        np.inf if max_value is None else max_value,
    )


def decayed_late(before: Array, param: Array, values: Mapping[str, Any]) -> Array:
    """Return the weights after the decays that come after the rule, which began from `before`."""
    if not values.get("decoupled_weight_decay", False):
        return param
    part = values["lr"] * values["weight_decay"]
    if not values.get("no_prox", True):
        late_shrink: float = 1 / (1 + part)
        return param * late_shrink
    if not values["cautious_weight_decay"]:
        return param
    nearer = ((before > 0) & (param < before)) | ((before < 0) & (param > before))
    return param - np.where(nearer, part * before, 0)


def average_weight(step: int, averaged: int, values: Mapping[str, Any]) -> float:
    """Return the weight that the parameters of step `step` have in their new average.

    `averaged` counts the steps since the average began, this one included.
    """
    start, every = values["swa_start"], values["average_every"]
    first = every if start is None else start
    entering = range(first, step + 1, every)
    taken = len(entering) - len(range(first, step - averaged + 1, every))
    if not taken:
        return 1.0
    if step not in entering:
        return 0.0
    if start is not None or taken == 1:
        return 1.0 / taken
    decay: float = values["ema_decay"]
    if values["ema_warmup"] and decay < 1:
        decay = min(decay, (1 + taken) / (10 + taken))
    return 1 - decay


def summed_rows(index: Array, values: Array, dtype: Any) -> tuple[Array, Array]:
    """Return the rows that are named, ascending, and the sum of each one's values, in their order.

    -0.0 is the number that changes no other by being added to it.
    """
    rows, places = np.unique(index, return_inverse=True)
    sums = np.full((len(rows), *values.shape[1:]), -0.0, dtype)
    np.add.at(sums, places, values.astype(dtype))
    return rows, sums


LANES, ROWS, BLOCK = 64, 4, 16384


def _folded(lanes: Array) -> float:
    """Return the sum of the lanes, added up in halves."""
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return float(lanes[0])


def squared(values: Array) -> Array:
    """Return squares to be summed: in double."""
    return np.square(values.astype(np.float64))


def measured(terms: Array, order: Any) -> float:
    """Return the sum of what a rule measures, as it lies in memory, in double.

    A block is summed in lanes, and the blocks' sums in their order (measure.hpp).
    """
    terms = raveled(terms, order).astype(np.float64)
    total = 0.0
    for begin in range(0, terms.size, BLOCK):
        block = terms[begin : begin + BLOCK]
        rows = np.zeros((-(-block.size // LANES), LANES))
        rows.ravel()[: block.size] = block
        lanes = np.zeros(LANES)
        for row in rows:
            lanes += row
        total += _folded(lanes)
    return total


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
        sums.append(_folded(lanes))
    return sums


WATCHED = 1024
"""Elements that step between two looks at the weights (watch.cpp has it again)."""


def watched_norm(values: Array) -> float:
    """Return the norm of weights, or of what a step has added to them."""
    flat, total = values.ravel(order="K").astype(np.float64), 0.0
    for begin in range(0, flat.size, BLOCK):
        block, own = flat[begin : begin + BLOCK], 0.0
        for first in range(0, block.size, WATCHED):
            own += sum_of_squares(block[first : first + WATCHED])[0]
        total += own
    return float(np.sqrt(total))


def param_stats(grad: Array, before: Array, after: Array, grad_scale: float = 1.0) -> ParamStats:
    """Return what a step with ``stats=True`` says of a parameter, in the layout of that."""
    update_norm = watched_norm(after.astype(np.float64) - before)
    param_norm = watched_norm(after)
    return ParamStats(
        grad_norm([grad], grad_scale),
        np.count_nonzero(grad == 0) / grad.size if grad.size else 0.0,
        update_norm,
        param_norm,
        update_norm / param_norm if update_norm else 0.0,
    )


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


def own_clipping(grad: Array, factor: float, values: Mapping[str, Any]) -> float:
    """Return what the gradient of one array is clipped by, once it is multiplied by `factor`."""
    max_norm: float | None = values["max_grad_norm_each"]
    return 1.0 if max_norm is None else clip_coefficient(grad_norm([grad]) * factor, max_norm)


def slow_weights(
    slow: Array | None, param: Array, step: int, values: Mapping[str, Any]
) -> Array | None:
    """Return Lookahead's slow weights: those with which its round begins."""
    every: int | None = values["lookahead_every"]
    return slow if every is None or (step - 1) % every else param


def looked_ahead(param: Array, slow: Array | None, step: int, values: Mapping[str, Any]) -> Array:
    """Return the weights after a step, which go back towards the slow ones where a round ends."""
    every: int | None = values["lookahead_every"]
    if every is None or step % every:
        return param
    assert slow is not None
    moved: Array = slow + values["lookahead_weight"] * (param - slow)
    return moved


def average_dtype(dtype: Any, values: Mapping[str, Any]) -> Any:
    """Return the dtype of the average of weights that the rule computes in `dtype`."""
    return np.float64 if values["average_dtype"] == "float64" else dtype


def moved_average(
    average: Array, param: Array, step: int, averaged: int | None, values: Mapping[str, Any]
) -> Array:
    """Return the average after the parameters of step `step` have entered it, if they do."""
    weight = average_weight(step, averaged or step, values)
    if weight == 0:
        return average
    if weight == 1:
        return param.astype(average_dtype(param.dtype, values))
    way = param - average
    rest = 1 - weight
    moved = average + weight * way if weight < rest else param - rest * way
    return flushed(moved) if step % FLUSH_EVERY == 0 else moved


def flushed(values: Array) -> Array:
    """Return what is kept: zero where a number is subnormal."""
    return np.where(np.abs(values) < np.finfo(values.dtype).smallest_normal, 0, values)
