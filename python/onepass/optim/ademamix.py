"""AdEMAMix: Adam with a second, slow average of the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import (
    DECAY_RATE,
    SCHEDULED,
    Fixed,
    Flag,
    Several,
    Whole,
)
from onepass._typing import Array, Params, Setting, Triple
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class AdEMAMix(Optimizer, rule="ademamix"):
    r"""AdEMAMix: Adam, but with a second average that remembers ten thousand gradients.

    The fast average :math:`m_1` follows the latest gradients, the slow one :math:`m_2` keeps a
    direction for long, and :math:`v` is Adam's. Take it for runs of some ten thousand steps and
    more, because in short ones the slow average has seen too little. Its authors use a learning
    rate of 1e-3, a decay of 0.1, ``alpha=8``, and warm-ups as long as the run.

    .. math::

        m_1 &\leftarrow \beta_1 m_1 + (1 - \beta_1) g \\
        m_2 &\leftarrow \beta_3 m_2 + (1 - \beta_3) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta \frac{m_1 / (1 - \beta_1^t) + \alpha m_2}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with :math:`t` counted from 1. The slow average is not corrected. Both its weight and its memory
    may grow over the first steps, because old gradients hurt while the loss falls fast: in a
    warm-up of :math:`T` steps :math:`\alpha_t = \alpha\, t / T`, and :math:`1 / \log \beta_{3,t}`
    is :math:`t / T` of the way from :math:`1 / \log \beta_1` to :math:`1 / \log \beta_3`.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : three floats in [0, 1), or schedules
        How much of the old averages stays: of the fast one, of the squares, and of the slow one.
    alpha : float >= 0, or schedule
        How much the slow average counts.
    eps : float >= 0, or schedule
        Is added outside the root, 1e-8 by default.
    weight_decay : float >= 0, or schedule
        Decoupled: :math:`w \leftarrow (1 - \eta \lambda)\, w` before the step.
    alpha_warmup, beta3_warmup : int >= 0
        Over how many steps `alpha` grows from 0, and the third beta from the first one; 0: none.
        The paper takes the length of the training.
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
    State per parameter: ``exp_avg_fast``, ``exp_avg_slow``, ``exp_avg_sq``.

    Differs from

    * PyTorch: it has no AdEMAMix.
    * The authors' code: they add 1e-8 to the betas before the logarithms of the warm-up.
    * optax: its ``ademamix`` has alpha=5, and takes schedules for alpha and the third beta.
    * bitsandbytes: alpha=5, and a decay of 0.01; its ``t_alpha`` and ``t_beta3`` are these
      warm-ups, which its 32-bit class ignored for a time.

    References
    ----------
    M. Pagliardini, P. Ablin and D. Grangier, "The AdEMAMix optimizer: better, faster, older", ICLR
    2025, arXiv:2409.03137.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.AdEMAMix(w, lr=0.1, betas=(0.9, 0.999, 0.5), alpha=2.0)
    >>> info = opt.step(np.array([100.0, -0.01]))  # lr, and alpha times half of lr
    >>> w.round(6)
    array([0.8, 1.2])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": Several((DECAY_RATE,) * 3),
        "alpha": SCHEDULED,
        "eps": SCHEDULED,
        "alpha_warmup": Whole(below=2**53),
        "beta3_warmup": Whole(below=2**53),
        "decoupled_weight_decay": Fixed(Flag(), True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.9, 0.99), "alpha": 5.0, "eps": 1e-3},
        {"alpha_warmup": 5, "beta3_warmup": 4},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Triple = (0.9, 0.999, 0.9999),
        alpha: Setting = 2.0,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        *,
        alpha_warmup: int = 0,
        beta3_warmup: int = 0,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the sizes of the two steps, the correction and epsilon."""
        lr, alpha, (beta1, beta2, beta3) = values["lr"], values["alpha"], values["betas"]
        if step < values["alpha_warmup"]:
            alpha = alpha * step / values["alpha_warmup"]
        if step < values["beta3_warmup"]:
            beta3 = _between(beta1, beta3, step / values["beta3_warmup"])
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "beta3": beta3,
            "one_minus_beta3": 1 - beta3,
            "fast_size": lr / (1 - beta1**step),
            "slow_size": lr * alpha,
            "inv_bias2": 1 / (1 - beta2**step),
            "eps": values["eps"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg_fast: Array,
        exp_avg_slow: Array,
        exp_avg_sq: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        beta3: float,
        one_minus_beta3: float,
        fast_size: float,
        slow_size: float,
        inv_bias2: float,
        eps: float,
    ) -> tuple[Array, Array, Array, Array]:
        """Return the new parameter, both averages, and the average square."""
        exp_avg_fast = beta1 * exp_avg_fast + one_minus_beta1 * grad
        exp_avg_slow = beta3 * exp_avg_slow + one_minus_beta3 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        update = fast_size * exp_avg_fast + slow_size * exp_avg_slow
        param = param - update / (np.sqrt(exp_avg_sq * inv_bias2) + eps)
        return param, exp_avg_fast, exp_avg_slow, exp_avg_sq


def _between(beta: float, final: float, progress: float) -> float:
    """Return the decay whose half-life is that much of the way from one decay's to another's."""
    rate = (1 - progress) * _inverse_log(beta) + progress * _inverse_log(final)
    return math.exp(1 / rate) if rate else 0.0


def _inverse_log(beta: float) -> float:
    return 1 / math.log(beta) if beta else 0.0
