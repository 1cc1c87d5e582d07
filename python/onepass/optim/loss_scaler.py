"""The scale of a loss whose gradients would vanish or overflow in a short format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onepass._hyperparameters import Checks, Number, Whole
from onepass._quiet import quiet
from onepass._typing import Grads
from onepass.optim._settings import GRAD_SCALE
from onepass.optim.optimizer import Optimizer
from onepass.optim.step_info import StepInfo

SMALLEST, LARGEST = GRAD_SCALE.low, GRAD_SCALE.high
"""What a step can divide by."""

_CHECKS: Checks = {
    "scale": Number(high=LARGEST),
    "growth_factor": Number(above=1.0),
    "backoff_factor": Number(above=0.0, below=1.0),
    "growth_interval": Whole(low=1),
    "_growth_tracker": Whole(),
}
"""What values a scaler's settings may take, under PyTorch's keys."""


class LossScaler:
    r"""Dynamic loss scaling: multiply the loss by a number as large as the gradients allow.

    Gradients of a loss :math:`s L` are :math:`s` times as large; the step divides them by
    :math:`s`. If one of them overflows, the step is left out, or the call of `accumulate` that was
    given it, and the scale :math:`s` changes:

    .. math::

        s &\leftarrow s \cdot \mathrm{backoff\_factor}
            \quad \text{after an overflow;} \\
        s &\leftarrow s \cdot \mathrm{growth\_factor}
            \quad \text{after growth\_interval updates in a row without one.}

    The scale is a number of float32, and stays between :math:`2^{-126}` and the largest of them. A
    step that `skip_grad_norm` leaves out is no overflow: it counts like a step that was taken.

    Parameters
    ----------
    init_scale : float in [2**-126, 2**128)
        The first scale.
    growth_factor : float > 1
    backoff_factor : float in (0, 1)
    growth_interval : int >= 1
        How many updates in a row without an overflow make the scale grow.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from

    * PyTorch's ``torch.amp.GradScaler``: nothing in names and defaults, nor in the rule but at its
      end. There many overflows in a row take the scale below :math:`2^{-127}`, whose inverse
      float32 does not have, and then to 0: the next finite gradients make the weights infinite.
      ``unscale_`` is a pass of its own there, before clipping; here `step` unscales as it goes.
      The optimizer must have ``nonfinite="skip"``, and counts the steps that were skipped. If
      gradients are accumulated there, an overflow in one batch costs all batches of the step.

    References
    ----------
    P. Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv:1710.03740.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0])
    >>> opt = op.SGD(w, lr=0.1, nonfinite="skip")
    >>> scaler = op.LossScaler(init_scale=4.0)
    >>> def grad():  # of w**2 / 2, once the loss is scaled
    ...     return scaler.scale(w)
    >>> scaler.step(opt, grad()).skipped
    False
    >>> scaler.update()
    >>> scaler.step(opt, np.array([np.inf])).skipped
    True
    >>> scaler.update()
    >>> scaler.get_scale(), w
    (2.0, array([0.9]))

    The mean of several batches, one of which overflows and is left out:

    >>> n = sum(opt.accumulate(scaler.scale(np.array([g]))) for g in (1.0, np.inf, 3.0))
    >>> scaler.step(opt, grad_scale=max(n, 1)).skipped
    False
    >>> scaler.update()
    >>> scaler.get_scale(), w
    (1.0, array([0.7]))
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        given = {
            "growth_factor": growth_factor,
            "backoff_factor": backoff_factor,
            "growth_interval": growth_interval,
            "_growth_tracker": 0,
        }
        scale = _in_range(GRAD_SCALE("init_scale", init_scale))
        checked = {name: _CHECKS[name](name, value) for name, value in given.items()}
        self._settings = {"scale": scale, **checked}
        self._begin()

    def get_scale(self) -> float:
        """Return the scale."""
        scale: float = self._settings["scale"]
        return scale

    @quiet
    def scale(self, outputs: Any) -> Any:
        """Return a loss, or its derivative, times the scale."""
        return outputs * self.get_scale()

    def step(
        self,
        optimizer: Optimizer,
        grads: Grads = None,
        *,
        grad_scale: float = 1.0,
        stats: bool = False,
        num_threads: int | None = None,
    ) -> StepInfo:
        """Step with gradients of the scaled loss; skipped if one of them is not finite.

        Parameters
        ----------
        optimizer : Optimizer
            With ``nonfinite="skip"``. If `Optimizer.accumulate` has left out gradients since the
            last step, the scale falls too, and the step is taken with the others.
        grads, stats, num_threads
            As for `Optimizer.step`.
        grad_scale : float in [2**-126, 2**128)
            What the gradients are divided by besides the scale: the number of batches that were
            summed, say. Call `update` only after the step, so that all of these batches have the
            same scale.

        Returns
        -------
        StepInfo

        Raises
        ------
        TypeError, ValueError
            If the optimizer or an array is not as it must be. Then nothing has changed.
        """
        if optimizer.nonfinite != "skip":
            got = optimizer.nonfinite
            raise ValueError(f"optimizer: expected one with nonfinite='skip', got {got!r}")
        own, scale = GRAD_SCALE("grad_scale", grad_scale), self.get_scale()
        if not SMALLEST <= own * scale <= LARGEST:
            expected = f"{GRAD_SCALE} also when multiplied by the scale, {scale:g}"
            raise ValueError(f"grad_scale: expected {expected}, got {own:g}")
        has_left_out = optimizer._engine.left_out > 0
        info = optimizer.step(grads, grad_scale=own * scale, stats=stats, num_threads=num_threads)
        self._found_nonfinite |= has_left_out or info.skip_reason == "nonfinite"
        self._grad_scales.append(own)
        return info

    def update(self) -> None:
        """Adapt the scale, once all optimizers have stepped.

        Raises
        ------
        ValueError
            If none has stepped since the last update.
        """
        if not self._grad_scales:
            raise ValueError("update: expected a step since the last update, got none")
        own = self._settings
        if self._found_nonfinite:
            smaller = _in_range(own["scale"] * own["backoff_factor"])
            if self._fits(smaller):
                own["scale"] = smaller
            own["_growth_tracker"] = 0
        else:
            own["_growth_tracker"] += 1
            if own["_growth_tracker"] >= own["growth_interval"]:
                grown = own["scale"] * own["growth_factor"]
                if self._fits(grown):
                    own["scale"] = _in_range(grown)
                own["_growth_tracker"] = 0
        self._begin()

    def _begin(self) -> None:
        """Forget the steps before: the next update is about those to come."""
        self._grad_scales: list[float] = []
        self._found_nonfinite = False

    def _fits(self, scale: float) -> bool:
        """Return whether steps like those since the last update can divide by such a scale."""
        return all(SMALLEST <= scale * other <= LARGEST for other in (1.0, *self._grad_scales))

    def state_dict(self) -> dict[str, Any]:
        """Return everything a run needs to continue, under PyTorch's names."""
        return dict(self._settings)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned here, or in PyTorch.

        A scale that no step could divide by, as PyTorch's may become, is the smallest that one can.

        Raises
        ------
        TypeError, ValueError
            If it is not such a dictionary. Then nothing has changed.
        """
        if not isinstance(state_dict, Mapping) or state_dict.keys() != _CHECKS.keys():
            got = list(state_dict) if isinstance(state_dict, Mapping) else state_dict
            raise ValueError(f"state_dict: expected the keys {list(_CHECKS)}, got {got!r}")
        checked = {name: check(name, state_dict[name]) for name, check in _CHECKS.items()}
        self._settings = {**checked, "scale": _in_range(checked["scale"])}
        self._begin()


def _in_range(scale: float) -> float:
    """Return what a scale becomes: a number of float32, as PyTorch's, that a step can divide by."""
    return float(np.float32(max(scale, SMALLEST)))
