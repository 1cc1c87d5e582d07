"""RMSProp, plain and centred, with or without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import DECAY_RATE, SCHEDULED, Flag, Number
from onepass._typing import Array, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class RMSprop(Optimizer, rule="rmsprop"):
    r"""RMSProp: AdaGrad that forgets.

    The average :math:`s` of squares gives each weight a step of its own size; unlike `Adagrad`'s
    sum it can fall again, so that steps do not become ever shorter. Take it for recurrent networks
    and reinforcement learning, where it is common, or as an Adam that keeps one array. Keras's
    learning rate is 1e-3 with ``alpha=0.9``; DQN learned Atari's games with 2.5e-4 (Mnih et al.,
    Nature 2015).

    .. math::

        s &\leftarrow \alpha s + (1 - \alpha) g^2 \\
        w &\leftarrow w - \eta \frac{g}{\sqrt{s + \epsilon_\mathrm{root}} + \epsilon}

    `eps` stands outside the root, `eps_root` inside. ``centered=True`` also averages the gradient,
    :math:`a \leftarrow \alpha a + (1 - \alpha) g`, and puts the variance
    :math:`\max(s - a^2, 0)` in the place of :math:`s` under the root. With `momentum` :math:`\mu`
    the quotient goes into a buffer, :math:`b \leftarrow \mu b + g / (\ldots)`, and
    :math:`w \leftarrow w - \eta b`.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    alpha : float in [0, 1), or schedule
        How much of the old average stays.
    eps : float >= 0, or schedule
        Is added outside the root, 1e-8 by default.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`.
    momentum : float in [0, 1), or schedule
        How much of the buffer stays; 0, the default, keeps no buffer.
    centered : bool
        Divide by the deviation of the gradient from its average instead of its root mean square.
        Off by default; it makes steps longer where gradients agree, and keeps one more array.
    eps_root : float >= 0, or schedule
        Is added inside the root, 0 by default; 1e-7 in Keras, 1e-8 in optax.
    maximize : bool
        Ascend instead of descend.
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``square_avg``; ``momentum_buffer`` with momentum; ``grad_avg`` where
    centred.

    Differs from

    * PyTorch: where rounding makes :math:`s - a^2` negative, PyTorch's result is NaN; here the
      variance is 0. `eps_root` is ours.
    * Keras: decay 0.9, epsilon inside the root (1e-7), and the learning rate inside the buffer.
    * optax: decay 0.9, epsilon inside the root by default, and the learning rate inside the buffer.
    * The lecture has no epsilon; Graves' centred form has it inside the root.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera: Neural networks for machine
    learning, 2012.
    A. Graves, "Generating sequences with recurrent neural networks", arXiv:1308.0850, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.RMSprop(w, lr=0.01)
    >>> info = opt.step(np.array([100.0, 0.01]))  # lr / sqrt(1 - alpha), whatever the gradient
    >>> w.round(4)
    array([0.9, 0.9])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "alpha": DECAY_RATE,
        "eps": SCHEDULED,
        "momentum": Number(below=1.0, schedulable=True),
        "centered": Flag(),
        "eps_root": SCHEDULED,
    }
    cases: ClassVar = (
        {},
        {"momentum": 0.9},
        {"centered": True},
        {"momentum": 0.9, "alpha": 0.9, "centered": True, "eps": 0.0, "eps_root": 1e-4},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-2,
        alpha: Setting = 0.99,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        momentum: Setting = 0.0,
        centered: bool = False,
        *,
        eps_root: Setting = 0.0,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            eps_root=eps_root,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG004
        """Return the hyperparameters; RMSProp does not count its steps."""
        alpha = values["alpha"]
        return {
            "alpha": alpha,
            "one_minus_alpha": 1 - alpha,
            "momentum": values["momentum"],
            "lr": values["lr"],
            "eps": values["eps"],
            "eps_root": values["eps_root"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        square_avg: Array,
        momentum_buffer: Array | None,
        grad_avg: Array | None,
        *,
        alpha: float,
        one_minus_alpha: float,
        momentum: float,
        lr: float,
        eps: float,
        eps_root: float,
        **_: Any,
    ) -> tuple[Array, Array, Array | None, Array | None]:
        """Return the new parameter, average square, buffer and average gradient."""
        square_avg = alpha * square_avg + one_minus_alpha * grad * grad
        variance = square_avg
        if grad_avg is not None:
            grad_avg = alpha * grad_avg + one_minus_alpha * grad
            variance = square_avg - grad_avg * grad_avg
            variance = np.where(variance < 0, variance.dtype.type(0), variance)
        denominator = np.sqrt(variance + eps_root) + eps
        if momentum_buffer is None:
            return param - lr * grad / denominator, square_avg, None, grad_avg
        momentum_buffer = momentum * momentum_buffer + grad / denominator
        return param - lr * momentum_buffer, square_avg, momentum_buffer, grad_avg
