"""Averaged SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import NON_NEGATIVE, SCHEDULED, Number
from onepass._typing import Array, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class ASGD(Optimizer, rule="asgd"):
    r"""Averaged SGD: descent with a falling rate, beside which the mean of the weights is kept.

    It keeps one array, the mean of the weights, which lies nearer to the minimum than weights that
    jump about it. Take it for convex problems, with `t0` as the step from which on the path only
    jumps about. PyTorch's learning rate is 0.01; AWD-LSTM, a language model, was trained by a form
    of it with 30 (arXiv:1708.02182).

    .. math::

        \eta_t &= \eta \,/\, (1 + \lambda \eta (t - 1))^\alpha \\
        w &\leftarrow (1 - \lambda \eta_t)\, w - \eta_t g \\
        a &\leftarrow a + \mu_t (w - a), \qquad \mu_t = 1 / \max(1,\, t - 1 - t_0)

    with :math:`t` counted from 1. :math:`a` is the mean of the weights from the step after
    :math:`t_0` on, and before it the weights themselves. `averaged` shows it; with `ema_decay` or
    `swa_start` it shows their average.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        The first learning rate, :math:`\eta`. A schedule is called with the number of completed
        steps, from 0, and the decay by :math:`\lambda` comes on top.
    lambd : float >= 0
        How fast the rate falls, and a decay of the weights.
    alpha : float in [0, 10]
        The power by which the rate falls.
    t0 : float >= 0
        The step from which on the weights are averaged.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`.
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
    State per parameter: ``ax``, which is kept as it is computed whatever `state_format` says. A
    saved state has PyTorch's ``eta`` and ``mu`` too, the numbers of the next step; on loading they
    are computed anew.

    Differs from

    * PyTorch: there a new learning rate acts one step late, since the rate of the next step is
      computed in this one; here at once. Neither `lambd` nor `alpha` is checked there.
    * optax: it has no ASGD; `swa_start` is the average alone, of any rule.
    * Polyak and Juditsky: they have no :math:`\lambda`. This is Bottou's SGD, with its schedule.

    References
    ----------
    B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
    J. Control Optim. 30, 1992.
    L. Bottou, "Large-scale machine learning with stochastic gradient descent", COMPSTAT 2010.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0])
    >>> opt = op.ASGD(w, lr=0.5, lambd=0.0, t0=0.0)
    >>> for grad in (1.0, -1.0, 1.0):
    ...     info = opt.step(np.array([grad]))
    >>> w
    array([0.5])
    >>> with opt.averaged():  # of 1.0 and 0.5: the first step is before t0
    ...     print(w)
    [0.75]
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "lambd": NON_NEGATIVE,
        "alpha": Number(high=10.0),
        "t0": NON_NEGATIVE,
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"lambd": 0.5, "alpha": 0.5, "t0": 2.0})

    saved_scalars: ClassVar = ("eta", "mu")

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: Setting = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lambd=lambd,
            alpha=alpha,
            t0=t0,
            weight_decay=weight_decay,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the rate of this step, what it leaves of the weights, and the part in the mean."""
        eta = values["lr"] / (1 + values["lambd"] * values["lr"] * (step - 1)) ** values["alpha"]
        averaged = step - 1 - values["t0"]
        return {
            "shrink": 1 - values["lambd"] * eta,
            "eta": eta,
            "mu": 1 / averaged if averaged > 1 else 1.0,
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        ax: Array,
        *,
        shrink: float,
        eta: float,
        mu: float,
    ) -> tuple[Array, Array]:
        """Return the new parameter and its mean."""
        param = shrink * param - eta * grad
        is_copy = param.dtype.type(mu) == 1
        return param, np.where(is_copy, param, ax + mu * (param - ax))

    @staticmethod
    def own_average(_param: Array, _: Mapping[str, Any], state: Mapping[str, Array]) -> Array:
        """Return the mean of the weights."""
        return state["ax"]
