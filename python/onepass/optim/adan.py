"""Adan: Adam with Nesterov's momentum, and with the change of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import DECAY_RATE, SCHEDULED, Fixed, Flag, Several
from onepass._typing import Array, Params, Setting, Triple
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adan(Optimizer, rule="adan"):
    r"""Adan: Adam with Nesterov's momentum, estimated from the change of the gradient.

    The average :math:`n` of the gradient's change lets a step look ahead, as Nesterov's momentum
    does, without a second gradient; :math:`m` and :math:`v` do what they do in Adam. Take it for
    large batches or few epochs, if twice Adam's state fits. Its authors use learning rates 5 to 10
    times as large as Adam's, and a decay of 0.02.

    .. math::

        d &= g - g' \qquad (0 \text{ in the first step}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        n &\leftarrow \beta_2 n + (1 - \beta_2) d \\
        v &\leftarrow \beta_3 v + (1 - \beta_3) (g + \beta_2 d)^2 \\
        w &\leftarrow w - \eta \frac{m / (1 - \beta_1^t) + \beta_2\, n / (1 - \beta_2^t)}
            {\sqrt{v / (1 - \beta_3^t)} + \epsilon}

    with :math:`t` counted from 1 and :math:`g'` the gradient of the last step.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : three floats in [0, 1), or schedules
        How much of the old averages stays: of g, of its change, and of the square. They are 1 minus
        the paper's.
    eps : float >= 0, or schedule
        Is added outside the root, 1e-8 by default.
    weight_decay : float >= 0, or schedule
        Proximal: :math:`w \leftarrow w / (1 + \eta \lambda)` after the step; with `no_prox`
        decoupled, :math:`w \leftarrow (1 - \eta \lambda)\, w` before it.
    no_prox : bool
        Let weights decay before the step, as AdamW's do, instead of after it. Off by default, as
        in all of the paper's experiments.
    maximize : bool
        Ascend instead of descend; the decay still shrinks.
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``exp_avg``, ``exp_avg_diff``, ``exp_avg_sq``, ``neg_pre_grad``. The last
    one, minus the last gradient, as it was clipped and unscaled, is kept as it is computed whatever
    `state_format` says, since a difference of neighbours is taken of it.

    Differs from

    * PyTorch: it has no Adan.
    * The authors' code, timm: nothing; clipping by the norm is `max_grad_norm`.
    * optax: its ``adan`` has :math:`1 - \beta_2` where :math:`\beta_2` belongs (optax#1715).

    References
    ----------
    X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models",
    TPAMI 2024, arXiv:2208.06677.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Adan(w, lr=0.1)
    >>> info = opt.step(np.array([100.0, -0.01]))  # the first step is lr, whatever the gradient
    >>> w.round(6)
    array([0.9, 1.1])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": Several((DECAY_RATE,) * 3),
        "eps": SCHEDULED,
        "no_prox": Flag(),
        "decoupled_weight_decay": Fixed(Flag(), True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.9, 0.8), "eps": 1e-3, "no_prox": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Triple = (0.98, 0.92, 0.99),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        *,
        no_prox: bool = False,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            no_prox=no_prox,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the sizes, the correction, and whether this is no first step."""
        lr, (beta1, beta2, beta3) = values["lr"], values["betas"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "beta3": beta3,
            "one_minus_beta3": 1 - beta3,
            "avg_size": lr / (1 - beta1**step),
            "diff_size": lr * beta2 / (1 - beta2**step),
            "inv_bias3": 1 / (1 - beta3**step),
            "eps": values["eps"],
            "differs": float(step > 1),
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_diff: Array,
        exp_avg_sq: Array,
        neg_pre_grad: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        beta3: float,
        one_minus_beta3: float,
        avg_size: float,
        diff_size: float,
        inv_bias3: float,
        eps: float,
        differs: float,
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Return the new parameter, the averages, and minus the gradient."""
        diff = np.where(differs > 0, grad + neg_pre_grad, 0)
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_diff = beta2 * exp_avg_diff + one_minus_beta2 * diff
        ahead = grad + beta2 * diff
        exp_avg_sq = beta3 * exp_avg_sq + one_minus_beta3 * ahead * ahead
        update = avg_size * exp_avg + diff_size * exp_avg_diff
        param = param - update / (np.sqrt(exp_avg_sq * inv_bias3) + eps)
        return param, exp_avg, exp_avg_diff, exp_avg_sq, -grad
