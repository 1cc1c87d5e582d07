"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Flag, Number
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class NAdam(Optimizer, rule="nadam"):
    r"""NAdam: Adam with Nesterov's momentum, and a momentum that grows.

    The averages :math:`m` and :math:`v` are Adam's; the product of momenta corrects :math:`m`,
    because its momentum grows. Take it in the place of Adam where Nesterov's momentum would help;
    AlgoPerf's baseline is a form of it, by other settings. PyTorch's learning rate is 2e-3.

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \mu_t &= \beta_1 \left(1 - \tfrac{1}{2} \cdot 0.96^{t \psi}\right), \qquad
        M_t = \mu_1 \mu_2 \cdots \mu_t \\
        w &\leftarrow w - \eta \left( \frac{1 - \mu_t}{1 - M_t}\, g +
            \frac{\mu_{t+1}}{1 - M_{t+1}}\, m \right) \Big/
            \left( \sqrt{\frac{v}{1 - \beta_2^t}} + \epsilon \right)

    with :math:`t` counted from 1 and :math:`\psi` the `momentum_decay`. The step weighs this
    gradient by its own momentum, and the average by the momentum of the next step: so it looks one
    step ahead.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    betas : two floats in [0, 1), or schedules
        How much of the old averages of g and of g squared stays.
    eps : float >= 0, or schedule
        Is added outside the root.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`; unless `decoupled_weight_decay` is
        on.
    momentum_decay : float >= 0, or ``math.inf``
        :math:`\psi`: how fast the momentum grows from :math:`\beta_1 / 2` to :math:`\beta_1`. With
        ``math.inf`` the momentum is :math:`\beta_1` from the first step on; with 0 it stays
        :math:`\beta_1 / 2`.
    decoupled_weight_decay : bool
        The weights shrink before the step instead,
        :math:`w \leftarrow (1 - \eta \lambda)\, w`, as in `AdamW`.
    maximize : bool
        Ascend instead of descend.
    correct_ahead : bool
        Divide the average by :math:`1 - M_{t+1}` (True) or by :math:`1 - M_t` (False).
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``exp_avg``, ``exp_avg_sq``, and ``mu_product``, one number, which is
    :math:`M_t`. It is the product of the momenta that there were, whatever `betas` are now, and
    belongs to a parameter: one that misses a step keeps its own.

    Differs from

    * PyTorch: only the precision of :math:`M_t`, which is float32 there unless its default dtype is
      float64.
    * Keras: there :math:`\psi = 1`: equal with ``lr=1e-3, eps=1e-7, momentum_decay=1``.
    * optax: its ``nadam`` and ``nadamw`` keep the momentum at :math:`\beta_1`: equal with
      ``momentum_decay=math.inf``, and for ``nadamw`` with ``decoupled_weight_decay=True``.
    * timm's NAdamW and AlgoPerf's baseline keep the momentum at :math:`\beta_1` too, and divide the
      average by :math:`1 - M_t`: equal with
      ``momentum_decay=math.inf, correct_ahead=False, decoupled_weight_decay=True``.

    References
    ----------
    T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.NAdam(w, lr=0.1, betas=(0.5, 0.5), momentum_decay=np.inf)
    >>> info = opt.step(np.array([1.0, 0.01]))  # both move alike: the gradient's size cancels
    >>> w.round(6)
    array([0.866667, 0.866667])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "momentum_decay": Number(infinite=True),
        "decoupled_weight_decay": Flag(),
        "correct_ahead": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"betas": (0.5, 0.6), "momentum_decay": 1.0},
        {"betas": (0.5, 0.99), "eps": 1e-3, "decoupled_weight_decay": True},
        {"momentum_decay": np.inf, "correct_ahead": False},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 2e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        correct_ahead: bool = True,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            correct_ahead=correct_ahead,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the betas, the two rates, the correction, epsilon and the momenta's product."""
        lr, (beta1, beta2) = values["lr"], values["betas"]

        def momentum(t: int) -> float:
            growth: float = 0.96 ** (t * values["momentum_decay"])
            return float(beta1 * (1 - 0.5 * growth))

        now, following = momentum(step), momentum(step + 1)
        product = values["mu_product"] * now
        ahead = 1 - (product * following if values["correct_ahead"] else product)
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "grad_rate": lr * (1 - now) / (1 - product),
            "momentum_rate": lr * following / ahead,
            "inv_bias2": 1 / (1 - beta2**step),
            "eps": values["eps"],
            "mu_product": product,
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        grad_rate: float,
        momentum_rate: float,
        inv_bias2: float,
        eps: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, average gradient and average square."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        update = grad_rate * grad + momentum_rate * exp_avg
        return param - update / (np.sqrt(exp_avg_sq * inv_bias2) + eps), exp_avg, exp_avg_sq
