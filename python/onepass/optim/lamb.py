"""LAMB: Adam with a trust ratio for each array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._reference import squared
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class LAMB(Optimizer, rule="lamb"):
    r"""LAMB: Adam whose step is as long as the weights of its array allow, for large batches.

    The averages :math:`m` and :math:`v` are Adam's; the norms then set how far each layer moves,
    in proportion to the layer's weights. Take it in the place of `AdamW` for batches of
    thousands of rows. Its authors trained BERT with a learning rate of 6.25e-4 for batches of 512
    rows, which grew with the root of the batch's size, to 5e-3 for 32,768.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda w \\
        w &\leftarrow w - \eta\, \frac{\|w\|}{\|u\|}\, u

    with :math:`t` counted from 1 and the norms taken of a whole array. Where one of them is 0, the
    ratio is 1: weights of zero would never move. Give each layer as an array of its own, and not as
    a part of one long vector.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate: a step moves an array by this share of the array's own norm. A schedule is
        called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old averages of g and of g squared stays.
    eps : float >= 0, or schedule
        Is added outside the root.
    weight_decay : float >= 0, or schedule
        Is part of :math:`u`, and so scaled with it.
    trust_clip : bool
        Let the ratio be at most 1 (LAMBC).
    maximize : bool
        Ascend instead of descend; the decay still shrinks.
    **options
        The options of a step: see `onepass.Optimizer`. There is no `cautious_weight_decay`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``exp_avg``, ``exp_avg_sq``. A step reads all arrays twice: first for the
    norms, then to update; arrays that fit the cache together are read from memory once.

    Differs from

    * PyTorch: it has no such class.
    * optax: its default decay is 0; the rule is the same.
    * apex, timm: they take the ratio only where there is a decay, unless they are told to adapt
      always, and clip by a common norm of 1 by default, which is ``max_grad_norm=1``.
    * Keras: its decay is outside the ratio.
    * bitsandbytes: its LAMB is Adam whose update has a largest norm, another rule.
    * The paper's first versions do not correct the averages, and clip the norm of the weights at
      10.

    References
    ----------
    Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR
    2020, arXiv:1904.00962.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0, 4.0])
    >>> opt = op.LAMB(w, lr=0.1, eps=0.0, weight_decay=0.0)
    >>> info = opt.step(np.array([1.0, 0.01]))  # 0.1 times the norm of 5, along (1, 1)
    >>> w.round(6)
    array([2.646447, 3.646447])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "trust_clip": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.6), "eps": 1e-3, "trust_clip": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-6,
        weight_decay: Setting = 0.01,
        *,
        trust_clip: bool = False,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            trust_clip=trust_clip,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return Adam's numbers, the largest ratio, and the rate."""
        beta1, beta2 = values["betas"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "inv_bias1": 1 / (1 - beta1**step),
            "inv_bias2": 1 / (1 - beta2**step),
            "eps": values["eps"],
            "weight_decay": values["weight_decay"],
            "max_ratio": 1.0 if values["trust_clip"] else math.inf,
            "step_size": values["lr"],
        }

    @staticmethod
    def measure(  # type: ignore[override]
        param: Array, grad: Array, exp_avg: Array, exp_avg_sq: Array, **scalars: float
    ) -> tuple[Array, Array]:
        """Return the squares of the parameter and of its update."""
        update, _, _ = _update(param, grad, exp_avg, exp_avg_sq, scalars)
        return squared(param), squared(update)

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:  # noqa: ARG004
        """Return the numbers with the rate times the ratio of the norms."""
        is_zero = not (sums[0] > 0 and sums[1] > 0)
        ratio = 1.0 if is_zero else math.sqrt(sums[0]) / math.sqrt(sums[1])
        return {**scalars, "step_size": scalars["step_size"] * min(ratio, scalars["max_ratio"])}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        step_size: float,
        **scalars: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and average square."""
        update, exp_avg, exp_avg_sq = _update(param, grad, exp_avg, exp_avg_sq, scalars)
        return param - step_size * update, exp_avg, exp_avg_sq


def _update(
    param: Array, grad: Array, exp_avg: Array, exp_avg_sq: Array, scalars: Mapping[str, float]
) -> tuple[Array, Array, Array]:
    exp_avg = scalars["beta1"] * exp_avg + scalars["one_minus_beta1"] * grad
    exp_avg_sq = scalars["beta2"] * exp_avg_sq + scalars["one_minus_beta2"] * grad * grad
    root = np.sqrt(exp_avg_sq * scalars["inv_bias2"]) + scalars["eps"]
    update = exp_avg * scalars["inv_bias1"] / root + scalars["weight_decay"] * param
    return update, exp_avg, exp_avg_sq
