"""RAdam: Adam whose first steps are rectified."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._rectification import rectification
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class RAdam(Optimizer, rule="radam"):
    r"""RAdam: Adam, but plain momentum until its average square is to be trusted.

    The averages are Adam's; while :math:`v` has seen too few gradients to be trusted, steps do not
    use it. Take it where Adam's first steps diverge, and you do not want to choose a warm-up.
    Learning rates are Adam's, 1e-3 by default; its authors tried 3e-3 to 0.1 on CIFAR-10, and
    found it less sensitive to them than Adam.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho_\infty &= \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\, \rho_\infty}
            {(\rho_\infty - 4)(\rho_\infty - 2)\, \rho_t}} \\
        w &\leftarrow w - \frac{\eta}{1 - \beta_1^t} \cdot
            \begin{cases} r_t \sqrt{1 - \beta_2^t} \; m / (\sqrt{v} + \epsilon) & \rho_t > 5 \\
            m & \text{else} \end{cases}

    with :math:`t` counted from 1. With :math:`\beta_2 \ge 0.9` the first rectified step is the
    sixth; with :math:`\beta_2 \le 2/3` there is none. Until then the steps are momentum's with the
    whole learning rate, which may be long.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old averages of g and of g squared stays.
    eps : float >= 0, or schedule
        Outside the root, and not corrected.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`; unless `decoupled_weight_decay` is
        on.
    maximize : bool
        Ascend instead of descend.
    decoupled_weight_decay : bool
        The weights shrink before the step instead,
        :math:`w \leftarrow (1 - \eta \lambda)\, w`, as in `AdamW`.
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

    * PyTorch: nothing.
    * optax: its epsilon is corrected, as `Adam`'s is, and it rectifies at 5 itself; equal with
      eps=0.
    * The paper: it rectifies above 4; the authors' code, PyTorch and optax from 5 on.
    * schedulefree: its RAdam rectifies above 4 too, and does not move before.

    References
    ----------
    L. Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020,
    arXiv:1908.03265.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.RAdam(w, lr=0.1)
    >>> info = opt.step(np.array([1.0, 0.01]))  # the first step is plain descent
    >>> w.round(6)
    array([0.9  , 0.999])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "decoupled_weight_decay": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.6)},
        {"betas": (0.5, 0.99), "eps": 1e-3, "decoupled_weight_decay": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the rectified and corrected rate, and epsilon."""
        beta1, beta2 = values["betas"]
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        length, factor = rectification(beta2, step)
        rectified = length > 5
        factor = factor * math.sqrt(bias2) if rectified else 1.0
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "step_size": values["lr"] * factor / bias1,
            "rectified": float(rectified),
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
        beta2: float,
        one_minus_beta2: float,
        step_size: float,
        rectified: float,
        eps: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and average square."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        denominator = np.where(rectified > 0, np.sqrt(exp_avg_sq) + eps, 1)
        return param - step_size * exp_avg / denominator, exp_avg, exp_avg_sq
