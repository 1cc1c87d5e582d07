"""AdaMax: Adam with the largest gradient of late in the place of the average square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, NON_NEGATIVE, SCHEDULED
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adamax(Optimizer, rule="adamax"):
    r"""AdaMax: Adam, but each element is divided by its largest gradient of late.

    The average :math:`m` is Adam's, and :math:`u` remembers each weight's largest gradient of
    late, so that one large gradient shortens steps for a while. Take it for models with
    embeddings, for which Keras recommends it, and other sparse gradients. The paper's learning
    rate is 2e-3.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        w &\leftarrow w - \frac{\eta}{1 - \beta_1^t} \frac{m}{u}

    with :math:`t` counted from 1.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old average of g stays, and how fast the largest gradient is forgotten.
    eps : float >= 0
        Added to the gradient's absolute value, inside the maximum, so that it stays in the state,
        and takes no schedule.
        With 0 a weight whose gradient has always been 0 becomes NaN (0 / 0).
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
    State per parameter: ``exp_avg``, ``exp_inf``.

    Differs from

    * PyTorch, optax: nothing.
    * Keras: its maximum is without epsilon, which is added to the denominator; its rate is 1e-3.
    * MLX: as Keras, and without the bias correction.
    * The paper: it has no epsilon.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 7.1,
    arXiv:1412.6980.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Adamax(w, lr=0.1)
    >>> info = opt.step(np.array([100.0, 0.01]))  # the first step is lr, whatever the gradient
    >>> w.round(6)
    array([0.9, 0.9])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": NON_NEGATIVE,
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"betas": (0.5, 0.9), "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: Setting = 2e-3,
        betas: Pair = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Setting = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the corrected rate and epsilon."""
        beta1, beta2 = values["betas"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "step_size": values["lr"] / (1 - beta1**step),
            "eps": values["eps"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_inf: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        step_size: float,
        eps: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and largest gradient."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_inf = np.maximum(beta2 * exp_inf, np.abs(grad) + eps)
        return param - step_size * exp_avg / exp_inf, exp_avg, exp_inf
