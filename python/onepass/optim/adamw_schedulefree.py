"""Schedule-free AdamW, and rectified as RAdam is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import (
    DECAY_RATE,
    SCHEDULED,
    Flag,
    Number,
    Several,
    Whole,
)
from onepass._typing import Array, Params, Schedule, Setting
from onepass.optim import _schedulefree
from onepass.optim._rectification import rectification
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class AdamWScheduleFree(Optimizer, rule="adamw_schedulefree"):
    r"""Schedule-free AdamW: an average of the weights stands for momentum and for a schedule.

    The weights :math:`z` move as Adam's without momentum, and their average :math:`x` ends where a
    falling rate would have led. Take it where you do not know how long the run will be, or want
    good weights at any time. Its authors use learning rates 1 to 10 times as large as with a
    schedule, and advise a warm-up.

    .. math::

        v &\leftarrow \beta_2 v + (1 - \beta_2)\, g(y)^2 \\
        u &= g(y) \Big/ \left(\sqrt{\frac{v}{1 - \beta_2^t}} + \epsilon\right) + \lambda y \\
        z &\leftarrow z - \eta_t u \\
        x &\leftarrow (1 - c_t)\, x + c_t\, z \\
        y &= (1 - \beta_1)\, z + \beta_1\, x

    with :math:`t` counted from 1, and :math:`\eta_t` and :math:`c_t` those of `SGDScheduleFree`.
    The parameters are :math:`y`, where the gradient is to be taken. The weights that training is
    for are the average :math:`x`: `averaged` shows them. So evaluate, and save weights for others,
    inside ``with opt.averaged():``, and train outside it.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate; no decay of it is needed, and it may be larger than Adam's. A schedule is
        called with the number of completed steps, from 0.
    betas : a float in [0.001, 1), and one in [0, 1) or schedule
        The share of :math:`x` in :math:`y`, and how much of the old average of g squared stays. Do
        not change the first one in a run: :math:`x` is found from :math:`y` and :math:`z` with it.
        So the second alone takes a schedule.
    eps : float >= 0, or schedule
        Is added outside the root.
    weight_decay : float >= 0, or schedule
        Decoupled, in units of `lr`, and taken at :math:`y`.
    warmup_steps : int >= 0
        Over how many steps the rate grows in a straight line; 0 for none.
    r : float in [0, 10]
        Step :math:`t` weighs :math:`t^r` in the average; 0 lets all weigh alike.
    weight_lr_power : float in [0, 10]
        A step weighs the largest rate so far to this power.
    maximize : bool
        Ascend instead of descend; the decay still shrinks.
    rectify, silent_sgd_phase
        As in `RAdamScheduleFree`, which is this class with ``rectify=True``.
    **options
        The options of a step: see `onepass.Optimizer`. `ema_decay` and `swa_start` are refused,
        because there is an average already, and `lookahead_every`, because it would move :math:`y`
        alone; `rounding` must be "master", because rounded weights would drift apart from
        :math:`z`, and there is no `cautious_weight_decay`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``z``, which is kept as it is computed whatever `state_format` says and
    begins as the weights of the first step, ``exp_avg_sq``, and two numbers, ``weight_sum`` and
    ``lr_max``, which belong to a parameter: one that misses a step keeps its own. Of weights that
    you change, and of BatchNorm, see `SGDScheduleFree`.

    Differs from

    * schedulefree, the authors' package: there ``opt.eval()`` and ``opt.train()`` go from
      :math:`y` to :math:`x` and back, and lose a few bits on the way; `averaged` restores
      :math:`y` to the bit. There the numbers belong to a group.
    * optax: ``contrib.schedule_free_adamw`` has no `r`, and takes a number for the rate.
    * Keras: its share is :math:`1 / t`, whatever the rate does.
    * PyTorch: it has no such class.

    References
    ----------
    A. Defazio et al., "The road less scheduled", NeurIPS 2024, arXiv:2405.15682.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.AdamWScheduleFree(w, lr=0.1, betas=(0.5, 0.5))
    >>> info = opt.step(np.array([100.0, 0.01]))  # both move alike: the gradient's size cancels
    >>> w.round(6)
    array([0.9, 0.9])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": Several((_schedulefree.MOMENTUM, DECAY_RATE)),
        "eps": SCHEDULED,
        "warmup_steps": Whole(below=2**53),
        "r": Number(high=10.0),
        "weight_lr_power": Number(high=10.0),
        "rectify": Flag(),
        "silent_sgd_phase": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"lr": 0.1, "betas": (0.5, 0.6), "warmup_steps": 2, "r": 1.5, "weight_lr_power": 0.0},
        {"betas": (0.5, 0.9), "eps": 1e-3, "rectify": True},
        {"betas": (0.5, 0.9), "rectify": True, "silent_sgd_phase": False},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 2.5e-3,
        betas: tuple[float, float | Schedule] = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        rectify: bool = False,
        silent_sgd_phase: bool = True,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            maximize=maximize,
            rectify=rectify,
            silent_sgd_phase=silent_sgd_phase,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for a second average."""
        _schedulefree.check_together(cls.__name__, settings)

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return Adam's numbers, the rates, the point's share, and the memory after the step."""
        lr, (beta1, beta2) = _schedulefree.warmed_up(step, values), values["betas"]
        divides = True
        if values["rectify"]:
            length, factor = rectification(beta2, step)
            divides = length > 4
            lr *= factor if divides else float(not values["silent_sgd_phase"])
        return {
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "inv_bias2": 1 / (1 - beta2**step),
            "divides": float(divides),
            "eps": values["eps"],
            "weight_decay": values["weight_decay"],
            **_schedulefree.scalars(step, values, lr, beta1),
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        z: Array,
        exp_avg_sq: Array,
        *,
        beta2: float,
        one_minus_beta2: float,
        inv_bias2: float,
        divides: float,
        eps: float,
        weight_decay: float,
        **move: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new weights y and z, and the average square."""
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        denominator = np.where(divides > 0, np.sqrt(exp_avg_sq * inv_bias2) + eps, 1)
        update = grad / denominator + weight_decay * param
        return *_schedulefree.moved(param, z, update, **move), exp_avg_sq

    @staticmethod
    def own_average(param: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Array:
        """Return x, the average of z."""
        return _schedulefree.shown(param, state["z"], settings["betas"][0])
