"""NovoGrad: momentum over normed gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from onepass._hyperparameters import BETAS, SCHEDULED, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._reference import squared
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class NovoGrad(Optimizer, rule="novograd"):
    r"""NovoGrad: momentum over gradients that are divided by the running norm of their array.

    The average :math:`m` is momentum, and one number for each array, :math:`v`, stands for Adam's
    second array. Take it for large batches, or to halve Adam's state; its authors need no warm-up.
    NVIDIA's QuartzNet, for speech, takes a learning rate of 0.01, ``betas=(0.8, 0.5)`` and a decay
    of 1e-3.

    .. math::

        v &\leftarrow \beta_2 v + (1 - \beta_2) \|g\|^2, \qquad v = \|g\|^2 \text{ at first} \\
        m &\leftarrow \beta_1 m + \left( \frac{g}{\sqrt{v} + \epsilon} + \lambda w \right) \\
        w &\leftarrow w - \eta m

    with the norm taken of a whole array, so that :math:`v` is one number for each. So it keeps
    half of Adam's state. Give each layer as an array of its own, and not as a part of one long
    vector.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old momentum and of the old squared norm stays.
    eps : float >= 0, or schedule
        Is added to the root. With 0, an array whose gradients have all been 0 becomes NaN (0 / 0).
    weight_decay : float >= 0, or schedule
        Enters the momentum, and is not divided by the norm.
    grad_averaging : bool
        Let the momentum be an average: multiply the bracket by :math:`1 - \beta_1`.
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
    State per parameter: ``exp_avg``, and one number, ``exp_avg_sq``, which is :math:`v`.

    Differs from

    * PyTorch: it has no such class.
    * optax: its default betas are (0.9, 0.25), and its epsilon is 1e-6.
    * timm: it begins :math:`v` anew whenever that is 0, so also after gradients of 0; here only the
      first step begins it.
    * apex: it averages norms, not their squares, and corrects the averages by default.

    References
    ----------
    B. Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for training
    of deep networks", 2019, arXiv:1905.11286.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.NovoGrad(w, lr=0.1)
    >>> info = opt.step(np.array([30.0, 40.0]))  # a gradient of norm 1, in the same direction
    >>> w.round(6)
    array([0.94, 0.92])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "grad_averaging": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.6), "eps": 1e-3, "grad_averaging": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.95, 0.98),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        grad_averaging: bool = False,
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
            grad_averaging=grad_averaging,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas and the rates; what the gradient is multiplied by is still to come."""
        beta1, beta2 = values["betas"]
        return {
            "beta1": beta1,
            "gain": 1 - beta1 if values["grad_averaging"] else 1.0,
            "beta2": beta2,
            "is_first": float(step == 1),
            "eps": values["eps"],
            "weight_decay": values["weight_decay"],
            "lr": values["lr"],
            "inv_root": 1.0,
            "exp_avg_sq": values["exp_avg_sq"],
        }

    @staticmethod
    def measure(
        param: Array,  # noqa: ARG004
        grad: Array,
        *state: Array | None,  # noqa: ARG004
        **scalars: float,  # noqa: ARG004
    ) -> tuple[Array, ...]:
        """Return the gradient's squares."""
        return (squared(grad),)

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:  # noqa: ARG004
        """Return the numbers with the average of the squared norm, and 1 over its root."""
        beta2, average = scalars["beta2"], scalars["exp_avg_sq"]
        average = sums[0] if scalars["is_first"] else beta2 * average + (1 - beta2) * sums[0]
        root = math.sqrt(average) + scalars["eps"]
        return {**scalars, "inv_root": 1 / root if root else math.inf, "exp_avg_sq": average}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        *,
        beta1: float,
        gain: float,
        weight_decay: float,
        lr: float,
        inv_root: float,
        **_: float,
    ) -> tuple[Array, Array]:
        """Return the new parameter and its momentum."""
        exp_avg = beta1 * exp_avg + gain * (grad * inv_root + weight_decay * param)
        return param - lr * exp_avg, exp_avg
