"""What is made of times: medians, and ratios of contenders that were timed in turns."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple


class Ratio(NamedTuple):
    """How many times as long one contender took as another, in the median round."""

    value: float
    unsteady: bool
    """Whether the middle half of the rounds spreads over half of that."""

    def __str__(self) -> str:
        """Return it with a question mark where it is unsteady."""
        return f"{self.value:.2f}{'?' * self.unsteady}"


def ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> Ratio | None:
    """Return the ratio of two contenders, None where one of them was not timed."""
    if not {name, to} <= seconds.keys():
        return None
    # One of the two may have sat out the last rounds.
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds[to], strict=False))
    middle, quarter = median(ratios), len(ratios) // 4
    return Ratio(middle, ratios[-1 - quarter] - ratios[quarter] > middle / 2)


def microseconds(seconds: Mapping[str, Sequence[float]], name: str) -> float | None:
    """Return the median time of a call, None where the contender was not timed."""
    return 1e6 * median(seconds[name]) if name in seconds else None
