"""Cautious steps: elements whose step disagrees with the gradient stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onepass._typing import Array


def agreeing(step: Array, grad: Array) -> Array:
    """Return 1 where a step and its gradient have the same sign, else 0."""
    return (step * grad > 0).astype(step.dtype)


def measure(
    param: Array,  # noqa: ARG001
    grad: Array,
    *state: Array | None,
    **scalars: Any,
) -> tuple[Array, ...]:
    """Return where the average that the step goes along agrees with the gradient."""
    average = scalars["beta1"] * state[0] + scalars["one_minus_beta1"] * grad
    return (agreeing(average, grad),)


def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:
    """Return the numbers with what the elements that agree are multiplied by."""
    return {**scalars, "mask": 1 / max(sums[0] / max(size, 1), 1e-3)}
