"""The guesses with which the course feels its way down, before it has a gradient."""

from typing import NamedTuple

from onepass.lab.surface.surfaces import SURFACES

_NEURON = SURFACES["neuron"]


class Guess(NamedTuple):
    """One of the course's guesses, the loss it prints, and the loss that the formula gives."""

    w: float
    b: float
    printed: str
    loss: float

    @property
    def holds(self) -> bool:
        """Whether the loss, rounded, is what the course prints."""
        return f"{self.loss:.4f}" == self.printed


_GUESSES = (
    (0.50, 0.00, "0.0730"),
    (-0.10, 0.00, "0.1481"),
    (0.94, -0.94, "0.0214"),
    (1.42, -1.73, "0.0028"),
    (1.65, -2.08, "0.0003"),
    (1.78, -2.27, "0.0000"),
)


def guesses() -> list[Guess]:
    """Return the guesses with which the course feels its way down, and their losses.

    Three are as printed. The other three are not, by 0.0001, 0.0003 and 0.0001. Guesses within
    half a unit of the last digit of these w and b do give the printed losses, with further digits
    cut off; so the course may have rounded its guesses for print.

    Examples
    --------
    >>> import onepass as op
    >>> for guess in op.surface.claims.guesses():
    ...     print(f"{guess.w:5} {guess.b:5} {guess.printed} {guess.loss:.4f} {guess.holds}")
      0.5   0.0 0.0730 0.0731 False
     -0.1   0.0 0.1481 0.1481 True
     0.94 -0.94 0.0214 0.0217 False
     1.42 -1.73 0.0028 0.0029 False
     1.65 -2.08 0.0003 0.0003 True
     1.78 -2.27 0.0000 0.0000 True
    """
    return [Guess(w, b, printed, float(_NEURON.loss((w, b)))) for w, b, printed in _GUESSES]
