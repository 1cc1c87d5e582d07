"""Prodigy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import (
    BETAS,
    DECAY_RATE,
    SCHEDULED,
    Flag,
    Maybe,
    Number,
)
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Prodigy(Optimizer, rule="prodigy"):
    r"""Prodigy: Adam that finds its learning rate.

    The averages :math:`m` and :math:`v` are Adam's; the first weights and :math:`s` serve to
    estimate how far the weights have to go, and so the learning rate. Take it where you cannot try
    rates, if twice Adam's state fits. Leave `lr` at 1, constant or falling along a cosine, as its
    authors advise.

    The estimate :math:`d` of how far the weights :math:`w_0` have to go is one number for all
    parameters. It begins at :math:`d_0` and never falls. With :math:`\gamma = d \eta`, sums over
    the elements of all arrays, and :math:`d'` the estimate after the step:

    .. math::

        N &\leftarrow \beta_3 N + \frac{d}{d_0} \gamma \sum g\, (w_0 - w) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1)\, d\, g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2)\, d^2 g^2 \\
        s &\leftarrow \beta_3 s + \frac{d}{d_0} \gamma\, g, \qquad
        \hat d = c\, N / \textstyle\sum |s| \\
        d' &= \min\bigl(\hat d_\mathrm{max},\; r\,(d = d_0\; ?\; \max(d, \hat d) : d)\bigr) \\
        w &\leftarrow (1 - \lambda \gamma)\, w - \gamma \frac{m}{\sqrt{v} + d' \epsilon}

    where :math:`\hat d_\mathrm{max}` is the largest :math:`\hat d` so far, :math:`d_0` included.
    `StepInfo.d` is :math:`d'`.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs: `weight_decay` and a `lr` of 0. All else must be the same in all groups.
    lr : float >= 0, or schedule
        What the estimate is multiplied by. Leave it at 1, or let a schedule take it from 1 to 0. A
        group with 0 stays where it is, and only its averages move.
    betas : two floats in [0, 1), or schedules
        How much of the old averages of g and of g squared stays.
    beta3 : float in [0, 1), or schedule, optional
        How much of :math:`N` and :math:`s` stays; the default is the root of the second beta.
    eps : float >= 0, or schedule
        Outside the root, in units of :math:`d`.
    weight_decay : float >= 0, or schedule
        In units of :math:`\gamma`.
    decouple : bool
        False: the gradient becomes :math:`g + \lambda w` instead, and the weights do not shrink.
    use_bias_correction : bool
        Multiply :math:`\gamma` by Adam's :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    safeguard_warmup : bool
        Leave the learning rate out of :math:`s`, so that a warm-up does not enlarge the estimate.
    d0 : float > 0
        The first estimate; it rarely needs a change.
    d_coef : float > 0
        The :math:`c`: the way to make the estimates larger or smaller.
    growth_rate : float >= 1
        The :math:`r`: by how much the estimate may grow in a step. 1.02 is a warm-up of its own.
    maximize : bool
        Ascend instead of descend; the decay still shrinks.
    **options
        The options of a step: see `onepass.Optimizer`. `rounding` must be
        "master", because rounded weights would drift apart from :math:`w_0`, and there is no
        `cautious_weight_decay`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, a hyperparameter is out of range, or groups differ in one that they
        must share.

    Notes
    -----
    State per parameter: ``s``, ``p0``, ``exp_avg``, ``exp_avg_sq``; ``p0`` is :math:`w_0`, the
    weights before the first step. Of all together: ``d``, ``d_max``, ``d_numerator``, which stand
    in each of the ``param_groups`` of `state_dict`. A step reads the arrays twice: once for the
    sums, once to move them.

    Where all gradients so far have been 0, nothing moves, and the steps are counted.

    Differs from

    * PyTorch: it has no such class.
    * prodigyopt: it does not count a step where all gradients so far were 0. There a group with a
      `lr` of 0 leaves its averages alone. With a first beta of 0 its step is along :math:`d' g`,
      and here along :math:`d g`. `slice_p` and `fsdp_in_use` are not here.
    * optax: its ``contrib.prodigy`` always corrects the bias.

    References
    ----------
    K. Mishchenko and A. Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", ICML
    2024, arXiv:2306.06101.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0, -2.0])
    >>> opt = op.Prodigy(w)
    >>> for _ in range(200):
    ...     info = opt.step(2 * w)  # the gradient of the sum of squares
    >>> info.d > 0.1  # from a millionth
    True
    >>> bool(np.abs(w).max() < 0.5)
    True
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "beta3": Maybe(DECAY_RATE),
        "eps": SCHEDULED,
        "decouple": Flag(),
        "use_bias_correction": Flag(),
        "safeguard_warmup": Flag(),
        "d0": Number(above=0.0),
        "d_coef": Number(above=0.0),
        "growth_rate": Number(low=1.0, infinite=True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {
            "betas": (0.5, 0.9),
            "beta3": 0.7,
            "eps": 1e-3,
            "use_bias_correction": True,
            "d0": 1e-3,
            "growth_rate": 1.5,
        },
        {"decouple": False, "safeguard_warmup": True, "d0": 1e-2, "d_coef": 2.0, "lr": 0.5},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1.0,
        betas: Pair = (0.9, 0.999),
        beta3: Setting | None = None,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            beta3=beta3,
            eps=eps,
            weight_decay=weight_decay,
            decouple=decouple,
            use_bias_correction=use_bias_correction,
            safeguard_warmup=safeguard_warmup,
            d0=d0,
            d_coef=d_coef,
            growth_rate=growth_rate,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of a step by the estimate so far; that of the epsilon is to come."""
        beta1, beta2 = values["betas"]
        d0, decay = values["d0"], values["weight_decay"]
        begins = values["d"] == 0
        d = d0 if begins else values["d"]
        rate = d * values["lr"]
        if values["use_bias_correction"]:
            rate *= math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return {
            "is_first": float(step == 1),
            "weight_decay": 0.0 if values["decouple"] else decay,
            "beta1": beta1,
            "gain": d * (1 - beta1),
            "beta2": beta2,
            "square_gain": d * d * (1 - beta2),
            "beta3": math.sqrt(beta2) if values["beta3"] is None else values["beta3"],
            "s_gain": d / d0 * (d if values["safeguard_warmup"] else rate),
            "way_gain": d / d0 * rate,
            "shrink": 1 - decay * rate if values["decouple"] else 1.0,
            "rate": rate,
            "eps": d * values["eps"],
            "own_eps": values["eps"],
            "d0": d0,
            "d_coef": values["d_coef"],
            "growth_rate": values["growth_rate"],
            "d": d,
            "d_max": d if begins else values["d_max"],
            "d_numerator": values["d_numerator"],
        }

    @staticmethod
    def measure(  # type: ignore[override]
        param: Array,
        grad: Array,
        s: Array,
        p0: Array,
        *_: Array,
        is_first: float,
        weight_decay: float,
        beta3: float,
        s_gain: float,
        way_gain: float,
        **__: float,
    ) -> tuple[Array, Array]:
        """Return how far the weights have come along the gradients, and the size of their sum."""
        decayed = grad + weight_decay * param
        come = (param if is_first else p0) - param
        way = float(param.dtype.type(way_gain)) * (decayed.astype(float) * come.astype(float))
        return way, np.abs(beta3 * s + s_gain * decayed)

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:  # noqa: ARG004
        """Return the numbers with the new estimate."""
        if sums[1] == 0:
            return {**scalars, "shrink": 1.0}
        d = scalars["d"]
        numerator = scalars["beta3"] * scalars["d_numerator"] + sums[0]
        found = scalars["d_coef"] * numerator / sums[1]
        d_max = max(scalars["d_max"], found)
        d = min(d_max, (max(d, found) if d == scalars["d0"] else d) * scalars["growth_rate"])
        eps = d * scalars["own_eps"]
        return {**scalars, "eps": eps, "d": d, "d_max": d_max, "d_numerator": numerator}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        s: Array,
        p0: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        is_first: float,
        weight_decay: float,
        beta1: float,
        gain: float,
        beta2: float,
        square_gain: float,
        beta3: float,
        s_gain: float,
        shrink: float,
        rate: float,
        eps: float,
        **_: float,
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Return the new parameter and state."""
        decayed = grad + weight_decay * param
        s = beta3 * s + s_gain * decayed
        exp_avg = beta1 * exp_avg + gain * decayed
        exp_avg_sq = beta2 * exp_avg_sq + square_gain * decayed * decayed
        moved = shrink * param - rate * exp_avg / (np.sqrt(exp_avg_sq) + eps)
        return moved, s, param if is_first else p0, exp_avg, exp_avg_sq
