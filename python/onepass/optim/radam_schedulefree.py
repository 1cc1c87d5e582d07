"""Schedule-free RAdam: schedule-free AdamW, rectified."""

from __future__ import annotations

from typing import ClassVar, Unpack

from onepass._hyperparameters import Fixed, Flag, Whole
from onepass._typing import Params, Schedule, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.adamw_schedulefree import AdamWScheduleFree


class RAdamScheduleFree(AdamWScheduleFree, rule="radam_schedulefree"):
    r"""Schedule-free RAdam: the rectification stands for a warm-up too.

    Its state is `AdamWScheduleFree`'s. Take it in the place of that class if you do not want to
    choose a warm-up either. Learning rates are those of `AdamWScheduleFree`.

    It is `AdamWScheduleFree` with ``rectify=True`` and no warm-up. `RAdam`'s factor multiplies
    the rate:

    .. math::

        \eta_t = \eta \cdot
            \begin{cases} r_t & \rho_t > 4 \\ 0 & \text{else} \end{cases}

    with :math:`\rho_t` and :math:`r_t` as in `RAdam`. Where :math:`\rho_t \le 4` the gradient is
    not divided, and `silent_sgd_phase` says whether the weights stay where they are, as above.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr, betas, eps, weight_decay, r, weight_lr_power, maximize
        As in `AdamWScheduleFree`.
    silent_sgd_phase : bool
        True: the weights stay where they are while :math:`\rho_t \le 4`. False: those steps are
        plain gradient descent, with :math:`\eta_t = \eta`.
    **options
        As in `AdamWScheduleFree`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: as `AdamWScheduleFree`'s.

    Differs from

    * schedulefree, the authors' package: as `AdamWScheduleFree`.
    * optax: ``contrib.schedule_free`` around its ``radam``, whose threshold is 5.
    * PyTorch: it has no such class; its RAdam rectifies above 5, and here it is 4.

    References
    ----------
    A. Defazio et al., "The road less scheduled", NeurIPS 2024, arXiv:2405.15682.
    L. Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020,
    arXiv:1908.03265.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0])
    >>> opt = op.RAdamScheduleFree(w, lr=0.1)
    >>> for _ in range(4):
    ...     info = opt.step(np.array([1.0]))
    >>> w  # the fifth step is the first that moves
    array([1.])
    """

    checks: ClassVar = {
        **AdamWScheduleFree.checks,
        "rectify": Fixed(Flag(), True),
        "warmup_steps": Fixed(Whole(), 0),
    }
    cases: ClassVar = (
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.1, "betas": (0.5, 0.8), "r": 1.5, "weight_lr_power": 0.0},
        {"betas": (0.5, 0.9), "silent_sgd_phase": False},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 2.5e-3,
        betas: tuple[float, float | Schedule] = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        silent_sgd_phase: bool = True,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        fixed = {"rectify": True, "warmup_steps": 0}
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            r=r,
            weight_lr_power=weight_lr_power,
            silent_sgd_phase=silent_sgd_phase,
            maximize=maximize,
            **{**fixed, **options},  # type: ignore[arg-type]
        )
