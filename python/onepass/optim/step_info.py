"""What a step reports."""

from typing import Literal, NamedTuple


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes
    ----------
    step : int
        How many steps the optimizer has completed, this one included.
    lr : float
        The learning rate it used (of the first of `param_groups`).
    grad_norm : float or None
        The norm of all gradients together, unscaled and not clipped. None where neither
        `max_grad_norm`, `max_grad_norm_each`, `skip_grad_norm` nor `nonfinite` asks for it.
    clipped : bool
        Whether `max_grad_norm` or `max_grad_norm_each` made a gradient smaller.
    skipped : bool
        Whether the step was left out: everything is as it was, but for gradients that are zeroed.
    d : float or None
        `Prodigy`'s estimate after the step; of other optimizers None.
    skip_reason : {None, "nonfinite", "grad_norm"}
        Why the step was left out: a gradient was not finite, or `grad_norm` was above
        `skip_grad_norm`. None where it was taken.
    """

    step: int
    lr: float
    grad_norm: float | None = None
    clipped: bool = False
    skipped: bool = False
    d: float | None = None
    skip_reason: Literal["nonfinite", "grad_norm"] | None = None
