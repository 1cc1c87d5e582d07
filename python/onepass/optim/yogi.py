"""Yogi: Adam whose average square moves by steps of the squared gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, NON_NEGATIVE, SCHEDULED
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Yogi(Optimizer, rule="yogi"):
    r"""Yogi: Adam, but its second moment moves by no more than the squared gradient.

    The average :math:`m` is Adam's; :math:`v` falls by small amounts only, so that steps do not
    become long at once when gradients become small. Take it where Adam does not settle because
    gradients are sparse or come in bursts. The defaults, a learning rate of 0.01 and ``eps=1e-3``,
    are those of TensorFlow Addons.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow v - (1 - \beta_2) \operatorname{sign}(v - g^2)\, g^2 \\
        w &\leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`t` counted from 1, and :math:`m` and :math:`v` starting at
    `initial_accumulator_value`. So :math:`v` falls slowly after large gradients, and stays
    positive.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old average of g stays; how small a part of g squared v moves by.
    eps : float >= 0, or schedule
        Is added outside the root, 1e-3 by default.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`.
    initial_accumulator_value : float >= 0
        What both states start from. With 0 here and in `eps` a weight whose gradient has always
        been 0 becomes NaN (0 / 0).
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
    State per parameter: ``exp_avg``, ``exp_avg_sq``.

    Differs from

    * PyTorch: it has no Yogi.
    * optax, jettify: nothing; their accumulator starts both states too.
    * The paper: it has no bias correction, and its :math:`v` starts from the first gradient's
      square.

    References
    ----------
    M. Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Yogi(w, lr=0.1, eps=0.0, initial_accumulator_value=0.0)
    >>> info = opt.step(np.array([100.0, -0.01]))  # as Adam's: lr, whatever the gradient
    >>> w.round(6)
    array([0.9, 1.1])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "initial_accumulator_value": NON_NEGATIVE,
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.9), "eps": 1e-2, "initial_accumulator_value": 0.5},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-2,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-3,
        weight_decay: Setting = 0.0,
        *,
        initial_accumulator_value: float = 1e-6,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the corrections and epsilon."""
        beta1, beta2 = values["betas"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,
            "step_size": values["lr"] / (1 - beta1**step),
            "inv_bias2": 1 / (1 - beta2**step),
            "eps": values["eps"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        one_minus_beta2: float,
        step_size: float,
        inv_bias2: float,
        eps: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and second moment."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        square = grad * grad
        exp_avg_sq = exp_avg_sq - one_minus_beta2 * np.sign(exp_avg_sq - square) * square
        return (
            param - step_size * exp_avg / (np.sqrt(exp_avg_sq * inv_bias2) + eps),
            exp_avg,
            exp_avg_sq,
        )
