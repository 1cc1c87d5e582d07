"""RAdam's rectification: how much of Adam's step the variance of the average square allows."""

import math


def rectification(beta2: float, step: int) -> tuple[float, float]:
    """Return the length of the simple moving average that is alike, and the factor of the step.

    The factor is 0 where the variance is infinite, at lengths up to 4.
    """
    power = beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * power / (1 - power)
    if not length > 4:
        return length, 0.0
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return length, math.sqrt(ratio)
