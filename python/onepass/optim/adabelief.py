"""AdaBelief: Adam over the gradient's distance from its average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, NON_NEGATIVE, SCHEDULED, Fixed, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._rectification import rectification
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class AdaBelief(Optimizer, rule="adabelief"):
    r"""AdaBelief: Adam, but divided by how far the gradient is from its average.

    The average :math:`m` smooths the gradient, and :math:`s` says how far gradients are from that
    average: where they are as expected, steps are long. Take it where Adam is fast but SGD ends
    with the better accuracy; it was made for that case. Its authors use Adam's learning rate,
    1e-3.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        s &\leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon_\mathrm{root} \\
        w &\leftarrow w - \frac{\eta}{1 - \beta_1^t} \cdot
            \begin{cases} r_t \sqrt{1 - \beta_2^t} \; m / (\sqrt{s} + \epsilon) & \rho_t \ge 5 \\
            m & \text{else} \end{cases}

    with :math:`t` counted from 1, and the rectification :math:`r_t, \rho_t` of `RAdam`. With
    ``rectify=False`` the last line is Adam's,
    :math:`w \leftarrow w - \eta\, m / (1 - \beta_1^t) \,/ (\sqrt{s / (1 - \beta_2^t)} + \epsilon)`.
    The average :math:`m` under the square is the new one.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old averages of g and of the squared distance stays.
    eps : float >= 0, or schedule
        Is added outside the root, 1e-16 by default.
    weight_decay : float >= 0, or schedule
        Decoupled: :math:`w \leftarrow (1 - \eta \lambda)\, w` before the step.
    rectify : bool
        Rectify the first steps, as `RAdam` does.
    eps_root : float >= 0
        Added to the average square in each step, so that it accumulates there: after many steps it
        is :math:`\epsilon_\mathrm{root} / (1 - \beta_2)`. So it takes no schedule.
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
    State per parameter: ``exp_avg``, ``exp_avg_var``.

    Differs from

    * PyTorch: it has no AdaBelief.
    * The authors' code: nothing; its one `eps` is both of these. Before version 0.1 it was 1e-8,
      which outweighs small gradients, and `rectify` was off.
    * optax: its ``adabelief`` is ``rectify=False``.
    * The paper: its epsilon is added in the same places.

    References
    ----------
    J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    NeurIPS 2020, arXiv:2010.07468.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.AdaBelief(w, lr=0.09, rectify=False)
    >>> info = opt.step(np.array([100.0, -0.01]))  # g is 0.9 g from its average: lr / 0.9
    >>> w.round(6)
    array([0.9, 1.1])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "rectify": Flag(),
        "eps_root": NON_NEGATIVE,
        "decoupled_weight_decay": Fixed(Flag(), True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"rectify": False},
        {"betas": (0.5, 0.9), "eps": 1e-3, "eps_root": 1e-6},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-16,
        weight_decay: Setting = 0.0,
        *,
        rectify: bool = True,
        eps_root: float = 1e-16,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            rectify=rectify,
            eps_root=eps_root,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the rate, the corrections and the epsilons."""
        beta1, beta2 = values["betas"]
        bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        factor, inv_bias2, divides = 1.0, 1 / bias2, True
        if values["rectify"]:
            length, factor = rectification(beta2, step)
            divides, inv_bias2 = length >= 5, 1.0
            factor = factor * math.sqrt(bias2) if divides else 1.0
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "step_size": values["lr"] * factor / bias1,
            "inv_bias2": inv_bias2,
            "divides": float(divides),
            "eps": values["eps"],
            "eps_root": values["eps_root"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_var: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        step_size: float,
        inv_bias2: float,
        divides: float,
        eps: float,
        eps_root: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and average square of the distance."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        surprise = grad - exp_avg
        exp_avg_var = beta2 * exp_avg_var + one_minus_beta2 * surprise * surprise + eps_root
        denominator = np.where(divides > 0, np.sqrt(exp_avg_var * inv_bias2) + eps, 1)
        return param - step_size * exp_avg / denominator, exp_avg, exp_avg_var
