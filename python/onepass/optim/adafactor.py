"""Adafactor: a second moment of rows and columns, and steps as long as the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import (
    DECAY_RATE,
    NON_NEGATIVE,
    SCHEDULED,
    Flag,
    Maybe,
    Number,
    Several,
)
from onepass._memory import order_of
from onepass._typing import Array, Params, Schedule, Setting
from onepass.optim import _factored
from onepass.optim._reference import squared
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adafactor(Optimizer, rule="adafactor"):
    r"""Adafactor: RMSprop that keeps a number for each row and column, with steps relative to w.

    It replaces Adam's second array by the means of rows and columns, and keeps no momentum unless
    you set `beta1`, so that it needs hardly any memory. Take it where state would not fit, in
    large language models above all. The paper bounds the relative rate by 0.01, the default; T5
    was fine-tuned with a constant 1e-3 (arXiv:1910.10683), for which transformers advises
    ``scale_parameter=False, relative_step=False``.

    .. math::

        w_t &= t^\gamma, \qquad
        \alpha = \max(\epsilon_2, \operatorname{rms}(w)) \, \min(\eta, 1 / \sqrt t) \\
        R_i &\leftarrow (1 - w_t) R_i + w_t \operatorname{mean}_j(g_{ij}^2), \qquad
        C_j \leftarrow (1 - w_t) C_j + w_t \operatorname{mean}_i(g_{ij}^2) \\
        V_{ij} &= \frac{R_i}{\max(\operatorname{mean}(R), \epsilon_1)} \, C_j, \qquad
        U = \frac{g}{\sqrt{\max(V, \epsilon_1^2)}} \\
        w &\leftarrow (1 - \eta\lambda) w - \frac{\alpha}{\max(1, \operatorname{rms}(U) / d)} U

    with :math:`t` counted from 1 and :math:`\operatorname{rms}` the root of the mean square of a
    whole array, of the weights as they are before the decay. An array of two or more axes is a
    matrix, or a batch of them, in its last two axes. An array of one axis or none keeps :math:`V`
    itself: :math:`V \leftarrow (1 - w_t) V + w_t g^2`.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, C- or F-contiguous, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        The longest step, relative to the weights: :math:`1 / \sqrt t` takes its place once that is
        less. A schedule is called with the number of completed steps, from 0.
    beta2_decay : float <= 0
        :math:`\gamma`: how fast what a step weighs in :math:`R` and :math:`C` falls. The first
        step weighs 1, so nothing has to be corrected.
    eps : float >= 0 or None, and float >= 0 or schedule
        The first is the least root that :math:`g` is divided by; None is the machine epsilon of the
        dtype that the parameter's step computes in, so of float32 beside 16 bits. The second is the
        least length of weights that steps are relative to: weights of zero would never move. The
        second alone takes a schedule, since with `add_eps` the first stays in the moments.
    d : float >= 1, may be infinite
        The largest :math:`\operatorname{rms}(U)`; a longer update is made shorter.
    weight_decay : float >= 0, or schedule
        Decoupled: in each step the weights shrink to 1 - lr * weight_decay of what they were. It
        does not fall with :math:`1 / \sqrt t`.
    beta1 : float in [0, 1), or schedule, optional
        Average the finished updates with this momentum, and step by the average. That keeps
        ``exp_avg``, an array like the parameter.
    scale_parameter : bool
        Let steps be relative to the weights. False: :math:`\alpha = \min(\eta, 1 / \sqrt t)`.
    relative_step : bool
        Let :math:`1 / \sqrt t` bound the step. False: :math:`\eta` stands for the minimum.
    add_eps : bool
        Add :math:`\epsilon_1` to :math:`g^2` and let nothing be bounded by it, as in the paper.
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
    State per parameter: ``row_var`` of shape (..., m, 1) and ``col_var`` of shape (..., 1, n)
    beside one of shape (..., m, n), else ``variance``; and ``exp_avg`` with `beta1`. `state_format`
    is that of the last two; the others are small, and stay as they are computed. A step reads the
    gradient three times and the parameter twice; arrays that fit the cache together are read from
    memory once. It keeps some room for sums, at most a thirtieth of the largest array where its
    axes are longer than 64.

    A NaN or an infinity in one gradient makes the whole array NaN, since the sums spread it:
    ``nonfinite="skip"`` leaves such a step out.

    Differs from

    * PyTorch: where ``eps[0]`` is None it takes the dtype of the *first* parameter of a group for
      all of them; here each has its own, so that groups may mix dtypes. A NaN in a vector does not
      reach the other elements there.
    * transformers, fairseq: ``op.Adafactor(lr=1e-2, eps=(1e-30, 1e-3), add_eps=True)`` has the
      numbers of their defaults, ``scale_parameter=True, relative_step=True, warmup_init=False``.
      With ``relative_step=False`` both take `lr` as it is. Their `warmup_init` is a schedule here,
      ``lr=lambda step: min(1e-2, 1e-6 * (step + 1))``. Their decay is multiplied with the step's
      whole length, :math:`\alpha`, and here with `lr`.
    * optax: it factors the two largest axes, and only where both have at least 128 elements; it
      multiplies with :math:`\operatorname{rms}(w)` and not with :math:`\min(\eta, 1/\sqrt t)`.
    * Keras, timm: :math:`\epsilon_1` is added to the square there too; timm factors from 16
      elements on.

    References
    ----------
    N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML
    2018, arXiv:1804.04235.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([[1.0, 1.0], [1.0, 1.0]])
    >>> opt = op.Adafactor(w)
    >>> info = opt.step(np.array([[1.0, 2.0], [10.0, 20.0]]))  # rank 1: all move alike, by 1 %
    >>> w.round(6)
    array([[0.99, 0.99],
           [0.99, 0.99]])
    >>> list(opt.state_dict()["state"][0])
    ['step', 'row_var', 'col_var']
    >>> op.Adafactor.state_shapes(w.shape)
    [(2, 1), (1, 2), None, None]
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "beta2_decay": Number(low=-math.inf, high=0.0),
        "eps": Several((Maybe(NON_NEGATIVE), SCHEDULED)),
        "d": Number(low=1.0, infinite=True),
        "beta1": Maybe(DECAY_RATE),
        "scale_parameter": Flag(),
        "relative_step": Flag(),
        "add_eps": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"beta2_decay": -2.0, "eps": (1e-3, 1e-2), "d": 2.0},
        {
            "lr": 0.5,
            "eps": (1e-3, 1e-3),
            "beta1": 0.9,
            "scale_parameter": False,
            "relative_step": False,
            "add_eps": True,
        },
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float | Schedule] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: Setting = 0.0,
        *,
        beta1: Setting | None = None,
        scale_parameter: bool = True,
        relative_step: bool = True,
        add_eps: bool = False,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            beta2_decay=beta2_decay,
            eps=eps,
            d=d,
            weight_decay=weight_decay,
            beta1=beta1,
            scale_parameter=scale_parameter,
            relative_step=relative_step,
            add_eps=add_eps,
            maximize=maximize,
            **options,
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return what the step weighs, the bounds, and the rate; its length is still to come."""
        weight = float(step) ** values["beta2_decay"]
        lr, (eps1, eps2) = values["lr"], values["eps"]
        beta1 = values["beta1"] or 0.0
        return {
            "weight": weight,
            "rest": 1 - weight,
            "eps1": math.nan if eps1 is None else eps1,
            "adds_eps": float(values["add_eps"]),
            "eps2": eps2,
            "d": values["d"],
            "scales": float(values["scale_parameter"]),
            "rate": min(lr, 1 / math.sqrt(step)) if values["relative_step"] else lr,
            "shrink": 1 - lr * values["weight_decay"],
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "step_size": 0.0,
        }

    @staticmethod
    def measure(  # type: ignore[override]
        param: Array,
        grad: Array,
        row_var: Array | None,
        col_var: Array | None,
        variance: Array | None,
        exp_avg: Array | None,  # noqa: ARG004
        **scalars: float,
    ) -> tuple[Array, Array]:
        """Return the squares of the parameter and of its update."""
        update, *_ = _update(param, grad, row_var, col_var, variance, scalars)
        return squared(param), squared(update)

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:
        """Return the numbers with the length of the step."""
        count = max(size, 1)
        in_param, in_update = (math.sqrt(total / count) for total in sums)
        scale = float(np.maximum(scalars["eps2"], in_param)) if scalars["scales"] else 1.0
        length = float(np.maximum(1.0, in_update / scalars["d"]))
        return {**scalars, "step_size": scale * scalars["rate"] / length}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        row_var: Array | None,
        col_var: Array | None,
        variance: Array | None,
        exp_avg: Array | None,
        *,
        step_size: float,
        shrink: float,
        beta1: float,
        one_minus_beta1: float,
        **scalars: float,
    ) -> tuple[Array | None, ...]:
        """Return the new parameter, second moments and average update."""
        update, *moments = _update(param, grad, row_var, col_var, variance, scalars)
        step = step_size * update
        if exp_avg is not None:
            exp_avg = step = beta1 * exp_avg + one_minus_beta1 * step
        return shrink * param - step, *moments, exp_avg


def _update(
    param: Array,
    grad: Array,
    row_var: Array | None,
    col_var: Array | None,
    variance: Array | None,
    scalars: Mapping[str, float],
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """Return the update before its length is known, and the new second moments."""
    dtype = param.dtype.type
    eps1 = dtype(np.finfo(dtype).eps if math.isnan(scalars["eps1"]) else scalars["eps1"])
    least, added = (dtype(0), eps1) if scalars["adds_eps"] else (eps1, dtype(0))
    rest, weight = dtype(scalars["rest"]), dtype(scalars["weight"])

    def moved(moment: Array, mean: Array) -> Array:
        new = float(rest) * moment.astype(np.float64) + float(weight) * (mean + float(added))
        return new.astype(dtype)

    if row_var is None or col_var is None:
        assert variance is not None
        variance = rest * variance + weight * (grad * grad + added)
        update: Array = grad / np.sqrt(np.maximum(variance, least * least))
    elif param.size:
        order = order_of(param)
        rows, columns = _factored.mean_squares(grad, order)
        row_var, col_var = moved(row_var, rows), moved(col_var, columns)
        least_mean = np.maximum(_factored.mean_of_rows(row_var, order), float(least))
        inv_row = (1 / np.sqrt(row_var.astype(np.float64) / least_mean)).astype(dtype)
        inv_column = (1 / np.sqrt(col_var.astype(np.float64))).astype(dtype)
        update = grad * np.minimum(inv_row * inv_column, 1 / least)
    else:
        update = grad
    return update, row_var, col_var, variance
