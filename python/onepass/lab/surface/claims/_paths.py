"""The paths that claims are measured on."""

from collections.abc import Sequence

import numpy.typing as npt

from onepass.lab.surface.descent import Trajectory
from onepass.lab.surface.surfaces import Surface
from onepass.lab.surface.walking import walkers

SGDS = ("SGD", "Momentum", "Nesterov")
"""Plain descent and both forms of momentum."""


def descend_by(
    names: Sequence[str],
    surface: Surface,
    start: npt.ArrayLike | None = None,
    lr: float | None = None,
    steps: int = 1000,
) -> dict[str, Trajectory]:
    """Return the paths of these walkers, by default from the surface's start, at its rates."""
    known = walkers()
    return {name: known[name].descend(surface, start, steps, lr) for name in names}
