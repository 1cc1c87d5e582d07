"""What an optimizer knows of a group beside its settings, which are the user's to change."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Group:
    """The parameters of one group, and its settings as they were last resolved."""

    members: list[int]
    """The indices of its parameters."""
    schedules: list[str] = field(default_factory=list)
    """Which of its settings are schedules."""
    values: dict[str, Any] = field(default_factory=dict)
    """Those of the coming step, checked, schedules evaluated."""
    constants: tuple[float, ...] = ()
    """What `_stages.constants` makes of them."""
    options: int = -1
    """Which of the rule's options are on, as the kernels number them."""
    averages: bool = False
    """Whether an average of its weights is kept."""
    formats: tuple[str | None, str] = (None, "master")
    """How its state is kept, and its parameters are rounded."""
