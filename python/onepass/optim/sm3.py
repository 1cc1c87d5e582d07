"""SM3: Adagrad with a number for each place along every axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import DECAY_RATE, SCHEDULED
from onepass._typing import Array, Params, Setting
from onepass.optim import _factored
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class SM3(Optimizer, rule="sm3"):
    r"""SM3: Adagrad with momentum whose sums of squares are kept by rows, columns and so on.

    The numbers :math:`\mu_a` bound `Adagrad`'s sums from above and take hardly any memory;
    :math:`m` is momentum. Take it for large matrices and embeddings where Adam's state would not
    fit. Its authors let the learning rate grow with the square of the step, and then keep it
    constant; they choose its value anew for each task.

    .. math::

        v &= g^2 + \min_a \mu_a, \qquad
        u = \begin{cases} g / \sqrt{v + \epsilon} & v \neq 0 \\ 0 & v = 0 \end{cases} \\
        m &\leftarrow \beta m + (1 - \beta) u \\
        w &\leftarrow w - \eta m, \qquad
        \mu_a \leftarrow \max\nolimits_{\text{all but } a} v

    with a vector :math:`\mu_a` for each axis :math:`a`, as long as that axis; of an element, the
    minimum is of the numbers at its places along all axes, and so never less than the sum of its
    squared gradients. An array of one axis or none keeps :math:`v` itself, which is that sum.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    momentum : float in [0, 1), or schedule
        :math:`\beta`, how much of the old average of the updates stays.
    eps : float >= 0, or schedule
        Is added inside the root.
    weight_decay : float >= 0, or schedule
        Coupled (L2): ``weight_decay * w`` is added to g.
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
    State per parameter: ``accumulators``, the numbers of all axes one after the other, those of the
    first axis first: 7 for an array of shape (3, 4), and an array of its own shape for one of one
    axis or none; and ``exp_avg``, which is :math:`m`. `state_format` is that of ``exp_avg``; the
    accumulators are small, and stay as they are computed. In an array whose last axis is short, as
    that of a kernel of 3 x 3, a step takes several times as long for each element.

    Differs from

    * optax: it keeps an array for each axis, and refuses arrays without any; the numbers are the
      same, but for a NaN, which it hides where :math:`v` is one.
    * PyTorch: it has no such class.
    * The authors' code: no epsilon, and a default momentum of 0.9 too.

    References
    ----------
    R. Anil et al., "Memory-efficient adaptive optimization", NeurIPS 2019, arXiv:1901.11150.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.zeros((2, 2))
    >>> opt = op.SM3(w, lr=1.0, momentum=0.0, eps=0.0)
    >>> info = opt.step(np.array([[3.0, 0.0], [0.0, 4.0]]))  # the first step is by 1, or not at all
    >>> w
    array([[-1.,  0.],
           [ 0., -1.]])
    >>> opt.state_dict()["state"][0]["accumulators"]  # of two rows and two columns
    array([ 9., 16.,  9., 16.])
    """

    checks: ClassVar = {"lr": SCHEDULED, "momentum": DECAY_RATE, "eps": SCHEDULED}
    cases: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"momentum": 0.5, "eps": 1e-3})

    def __init__(
        self,
        params: Params,
        lr: Setting = 0.1,
        momentum: Setting = 0.9,
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG004
        """Return the hyperparameters; the step's number changes nothing."""
        return {
            "momentum": values["momentum"],
            "one_minus_momentum": 1 - values["momentum"],
            "eps": values["eps"],
            "lr": values["lr"],
        }

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        accumulators: Array,
        exp_avg: Array,
        *,
        momentum: float,
        one_minus_momentum: float,
        eps: float,
        lr: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, accumulators and average update."""
        is_factored = param.ndim > 1 and param.size > 0
        bound = accumulators
        if is_factored:
            bound = _factored.smallest_of_axes(accumulators, param.shape)
        elif param.ndim > 1:
            bound = grad
        bound = grad * grad + bound
        update = np.where(bound == 0, 0, grad / np.sqrt(bound + eps))
        exp_avg = momentum * exp_avg + one_minus_momentum * update
        if is_factored:
            accumulators = _factored.largest_of_axes(bound)
        elif param.ndim < 2:
            accumulators = bound
        return param - lr * exp_avg, accumulators, exp_avg
