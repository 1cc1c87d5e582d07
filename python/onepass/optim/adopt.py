"""ADOPT: Adam that divides by the square it had before the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Flag, Number
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class ADOPT(Optimizer, rule="adopt"):
    r"""ADOPT: Adam, but a gradient is divided before it enters either average.

    The averages are Adam's, but a gradient is divided by what came before it, and not by itself.
    Take it where Adam does not converge and no other second beta helps. Its authors' learning rate
    is Adam's, 1e-3.

    The first step only begins :math:`v`; for :math:`t > 1`

    .. math::

        v &\leftarrow g^2 & (t = 1) \\
        n &= \max(\min(g / \max(\sqrt{v}, \epsilon),\; c_t),\; -c_t),
            \qquad c_t = (t - 1)^\alpha & (t > 1) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) n \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta m

    with :math:`\alpha` `clip_exponent`. It converges with any :math:`\beta_2`, because :math:`v`
    under the root does not know the gradient above it.

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
        The least that a gradient is divided by. With 0 a weight whose first gradient is 0 becomes
        NaN (0 / 0).
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`; unless `decoupled_weight_decay` is
        on.
    decoupled_weight_decay : bool
        The weights shrink before the step instead,
        :math:`w \leftarrow (1 - \eta \lambda)\, w`, as in `AdamW`.
    clip_exponent : float in [0, 1]
        How fast the limit of a normalised gradient grows; with 0 it is always 1.
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

    * PyTorch: it has no ADOPT.
    * The authors' code, optax: nothing, but that here the decoupled decay shrinks the weights in
      the first step too, and that they can leave the clipping out.
    * timm: its exponent is 0.333.

    References
    ----------
    S. Taniguchi et al., "ADOPT: modified Adam can converge with any beta2 with the optimal rate",
    NeurIPS 2024, arXiv:2411.02853.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.ADOPT(w, lr=0.1)
    >>> grad = np.array([100.0, -0.01])
    >>> info = opt.step(grad)  # nothing moves
    >>> info = opt.step(grad)  # the average of 0 and of g over the last g
    >>> w.round(6)
    array([0.99, 1.01])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "decoupled_weight_decay": Flag(),
        "clip_exponent": Number(high=1.0),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.9), "eps": 0.5, "clip_exponent": 0.0},
        {"decoupled_weight_decay": True, "clip_exponent": 1.0},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.9999),
        eps: Setting = 1e-6,
        weight_decay: Setting = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        clip_exponent: float = 0.25,
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
            clip_exponent=clip_exponent,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas (the first step has its own), the rate, epsilon and the limit."""
        beta1, beta2 = values["betas"]
        first = step == 1
        return {
            "beta1": 1.0 if first else beta1,
            "one_minus_beta1": 0.0 if first else 1 - beta1,
            "beta2": 0.0 if first else beta2,
            "one_minus_beta2": 1.0 if first else 1 - beta2,
            "lr": values["lr"],
            "eps": values["eps"],
            "limit": 0.0 if first else float(step - 1) ** values["clip_exponent"],
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
        lr: float,
        eps: float,
        limit: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and average square."""
        normed = grad / np.maximum(np.sqrt(exp_avg_sq), eps)
        exp_avg = beta1 * exp_avg + one_minus_beta1 * np.clip(normed, -limit, limit)
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        return param - lr * exp_avg, exp_avg, exp_avg_sq
