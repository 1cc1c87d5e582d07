"""What a user's function returns as its loss."""

from typing import Any


def to_loss(name: str, value: Any) -> float:
    """Return a loss as a float; one that is not finite is a result, not an error."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected it to return a number, got {value!r}") from None
