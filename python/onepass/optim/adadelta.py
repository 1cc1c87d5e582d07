"""AdaDelta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import SCHEDULED, Number
from onepass._typing import Array, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adadelta(Optimizer, rule="adadelta"):
    r"""AdaDelta: the step has the size of the steps before it, so that it needs no learning rate.

    The averages :math:`s`, of squared gradients, and :math:`u`, of squared steps, give each weight
    a step of its own size. Take it where nobody is there to choose a learning rate; its first
    steps are short, about the root of `eps`. Leave `lr` at 1, which is the paper's rule; the
    paper's settings are ``rho=0.95, eps=1e-6``.

    .. math::

        s &\leftarrow \rho s + (1 - \rho) g^2 \\
        d &= \sqrt{u + \epsilon} \,/ \sqrt{s + \epsilon}\; g \\
        u &\leftarrow \rho u + (1 - \rho) d^2 \\
        w &\leftarrow w - \eta d

    The step :math:`d` is taken with the old :math:`u`, and epsilon stands inside both roots.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        A factor of the step; the paper has none. A schedule is called with the number of completed
        steps, from 0.
    rho : float in [0, 1], or schedule
        How much of the old averages stays.
    eps : float >= 0, or schedule
        Inside both roots. It sets the size of the first steps, which is about its root; with 0
        nothing ever moves, and where the gradient has always been 0 the weight becomes NaN (0 / 0).
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
    State per parameter: ``square_avg``, ``acc_delta``.

    Differs from

    * PyTorch, optax, MLX: nothing.
    * Keras: its defaults are lr=1e-3, rho=0.95, eps=1e-7; with such a rate the steps are a thousand
      times shorter than the paper's.

    References
    ----------
    M. D. Zeiler, "ADADELTA: an adaptive learning rate method", 2012, arXiv:1212.5701.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Adadelta(w, rho=0.75, eps=0.01)
    >>> info = opt.step(np.array([100.0, -100.0]))  # the root of 0.01, over half of the gradient
    >>> w.round(3)
    array([0.8, 1.2])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "rho": Number(high=1.0, schedulable=True),
        "eps": SCHEDULED,
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"rho": 0.5, "eps": 1e-3}, {"rho": 1.0})

    def __init__(
        self,
        params: Params,
        lr: Setting = 1.0,
        rho: Setting = 0.9,
        eps: Setting = 1e-6,
        weight_decay: Setting = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            rho=rho,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG004
        """Return rho, the learning rate and epsilon."""
        rho = values["rho"]
        return {"rho": rho, "one_minus_rho": 1 - rho, "lr": values["lr"], "eps": values["eps"]}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        square_avg: Array,
        acc_delta: Array,
        *,
        rho: float,
        one_minus_rho: float,
        lr: float,
        eps: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average square, and average square of the steps."""
        square_avg = rho * square_avg + one_minus_rho * grad * grad
        delta = np.sqrt(acc_delta + eps) / np.sqrt(square_avg + eps) * grad
        acc_delta = rho * acc_delta + one_minus_rho * delta * delta
        return param - lr * delta, square_avg, acc_delta
