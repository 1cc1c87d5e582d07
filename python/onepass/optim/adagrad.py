"""AdaGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import NON_NEGATIVE, SCHEDULED
from onepass._typing import Array, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adagrad(Optimizer, rule="adagrad"):
    r"""AdaGrad: each element's rate falls with the sum of its squared gradients.

    The sum :math:`s` shortens the steps of weights that have moved much, so that weights of rare
    features keep long steps. Take it for sparse data and convex problems; in long trainings of
    networks its steps become too short, and `RMSprop` mends that. PyTorch's learning rate is 0.01;
    GloVe was trained with 0.05 (Pennington et al., EMNLP 2014).

    .. math::

        s &\leftarrow s + g^2 \\
        w &\leftarrow w - \frac{\eta}{1 + (t - 1)\,\mathrm{lr\_decay}}
            \frac{g}{\sqrt{s + \epsilon_\mathrm{root}} + \epsilon}

    with :math:`s` starting at `initial_accumulator_value` and :math:`t` counted from 1. Both
    textbook forms are here: `eps` stands outside the root, `eps_root` inside.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    lr_decay : float >= 0
        How fast the rate falls besides, 0 by default: the sum makes steps shorter anyway.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`.
    initial_accumulator_value : float >= 0
        Where :math:`s` starts, 0 by default. A larger one, 0.1 in Keras and optax, makes the first
        steps shorter.
    eps : float >= 0, or schedule
        Outside the root. With 0 here, in `eps_root` and in the accumulator, an element whose
        gradient has always been 0 becomes NaN (0 / 0).
    eps_root : float >= 0, or schedule
        Is added inside the root, 0 by default; 1e-7 in Keras and optax.
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
    State per parameter: ``sum``.

    Differs from

    * PyTorch: nothing; `eps_root` is ours.
    * Keras, optax: their epsilon (1e-7) is inside the root and their accumulator starts at 0.1:
      ``Adagrad(eps=0, eps_root=1e-7, initial_accumulator_value=0.1)``.
    * The paper: `eps` is its delta, and its accumulator starts at 0.

    References
    ----------
    J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization", JMLR 12, 2011.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Adagrad(w, lr=0.5)
    >>> info = opt.step(np.array([100.0, 0.01]))  # the first step is lr, however long the gradient
    >>> w.round(6)
    array([0.5, 0.5])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "lr_decay": NON_NEGATIVE,
        "initial_accumulator_value": NON_NEGATIVE,
        "eps": SCHEDULED,
        "eps_root": SCHEDULED,
    }
    cases: ClassVar = (
        {},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1},
        {"eps": 0.0, "eps_root": 1e-7},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: Setting = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Setting = 1e-10,
        *,
        eps_root: Setting = 0.0,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            eps_root=eps_root,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the step's decayed learning rate, and the epsilons."""
        step_size = values["lr"] / (1 + (step - 1) * values["lr_decay"])
        return {"step_size": step_size, "eps": values["eps"], "eps_root": values["eps_root"]}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        sum: Array,  # noqa: A002
        *,
        step_size: float,
        eps: float,
        eps_root: float,
    ) -> tuple[Array, Array]:
        """Return the new parameter and sum of squares."""
        sum = sum + grad * grad  # noqa: A001
        return param - step_size * grad / (np.sqrt(sum + eps_root) + eps), sum
