"""Lion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Fixed, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim import _cautious
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Lion(Optimizer, rule="lion"):
    r"""Lion: each element steps by the learning rate, in the direction of an average's sign.

    The average :math:`m` is all that it keeps, half of Adam's state, and a step is made of signs
    alone. Take it for large models and batches, or where memory is short; with small batches many
    signs are noise. Its authors use learning rates three to ten times smaller than AdamW's,
    because a step is `lr` long in every element, and decays as many times larger.

    .. math::

        w &\leftarrow w - \eta \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    With ``betas=(b, b)`` it is Signum, the sign of a moving average, and with ``betas=(0, 0)``
    SignSGD, the sign of the gradient, both bit for bit.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the average counts in the step, and how much of it stays.
    weight_decay : float >= 0, or schedule
        Decoupled: :math:`w \leftarrow (1 - \eta \lambda)\, w` before the step.
    cautious : bool
        Leave those elements where they are whose step :math:`u`, the sign, disagrees with the
        gradient, and let the others go as much further: :math:`u \circ \phi / \max(\bar\phi,
        10^{-3})`, where :math:`\phi` is 1 where the average times the gradient is positive, else
        0, and :math:`\bar\phi` its mean over the array. It is not `cautious_weight_decay`.
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
    State per parameter: ``exp_avg``. The sign of 0 is 0.

    Differs from

    * PyTorch: it has no Lion. Its ``sign`` of a NaN is 0; here a gradient of NaN makes the weight
      NaN.
    * optax, lucidrains: nothing but optax's default decay, 1e-3. lucidrains'
      ``decoupled_weight_decay=True`` means another decay, which the first learning rate divides.
    * timm: its ``caution`` is `cautious`.
    * Keras: nothing but its default learning rate, 1e-3.
    * bitsandbytes: its 32-bit Lion had a coupled decay until July 2026; Hugging Face's Trainer
      gives its Lion Adam's betas.

    References
    ----------
    X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, arXiv:2302.06675.
    J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018,
    arXiv:1802.04434.
    K. Liang, L. Chen, B. Liu and Q. Liu, "Cautious optimizers: improving training with one line of
    code", 2024, arXiv:2411.16085.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Lion(w, lr=0.1)
    >>> info = opt.step(np.array([100.0, -0.01]))  # each step is lr, whatever the gradient
    >>> w.round(6)
    array([0.9, 1.1])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "cautious": Flag(),
        "decoupled_weight_decay": Fixed(Flag(), True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.9)},
        {"cautious": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-4,
        betas: Pair = (0.9, 0.99),
        weight_decay: Setting = 0.0,
        *,
        cautious: bool = False,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            cautious=cautious,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG004
        """Return the betas and the learning rate."""
        beta1, beta2 = values["betas"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "lr": values["lr"],
            "mask": 1.0,
        }

    measure = staticmethod(_cautious.measure)
    weigh = staticmethod(_cautious.weigh)

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        lr: float,
        mask: float,
        cautious: bool,
    ) -> tuple[Array, Array]:
        """Return the new parameter and average."""
        average = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg = beta2 * exp_avg + one_minus_beta2 * grad
        direction = np.sign(average)
        if cautious:
            direction = direction * (mask * _cautious.agreeing(average, grad))
        return param - lr * direction, exp_avg
