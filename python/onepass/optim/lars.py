"""LARS: SGD with a trust ratio for each array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from onepass._hyperparameters import DECAY_RATE, SCHEDULED, Flag, Maybe, Number
from onepass._typing import Array, Params, Setting
from onepass.optim._reference import squared
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class LARS(Optimizer, rule="lars"):
    r"""LARS: SGD whose steps are as long as the weights of their array allow, for large batches.

    The buffer :math:`v` is momentum's; the norms of weights and gradient set how far each layer
    moves. Take it in the place of `SGD` for batches of thousands of rows; its authors trained
    ResNet-50 with 32,768. SimCLR's learning rate is 0.3 for every 256 rows of a batch, so 4.8 for
    4,096, with a decay of 1e-6 (arXiv:2002.05709).

    .. math::

        r &= \tau \frac{\|w\|}{\|g\| + \lambda \|w\| + \epsilon} \\
        v &\leftarrow \mu v + r\, (g + \lambda w) \\
        w &\leftarrow w - \eta v

    with the norms taken of a whole array; where one of them is 0, the ratio is 1. Arrays without a
    decay, as by default, are left to SGD, :math:`r = 1`, unless `always_adapt` is on. Give each
    layer as an array of its own, and not as a part of one long vector.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs. The authors leave biases and BatchNorm's parameters to SGD: a group with
        ``trust_coeff=None`` and ``weight_decay=0``.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    momentum : float in [0, 1), or schedule
        How much of the buffer stays, :math:`\mu`. With 0 there is no buffer.
    dampening : float in [0, 1)
        From the second step on, what enters the buffer is multiplied by one minus this.
    weight_decay : float >= 0, or schedule
        :math:`\lambda`, scaled with the gradient.
    nesterov : bool
        Step by :math:`r (g + \lambda w) + \mu v` instead of :math:`v`.
    trust_coeff : float >= 0, optional
        :math:`\tau`. None leaves a group to SGD.
    eps : float >= 0, or schedule
        Is added to the denominator.
    trust_clip : bool
        Replace :math:`r` by :math:`\min(r / \eta, 1)`, so that the step is never longer than SGD's
        (LARC).
    always_adapt : bool
        Adapt arrays without a decay too. Use it where the decay is a schedule that reaches 0.
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
    State per parameter: ``momentum_buffer``, if there is momentum.

    Differs from

    * PyTorch: it has no such class.
    * timm: nothing; `trust_coeff=None` is ours.
    * optax: it takes one norm, that of :math:`g + \lambda w`, and its learning rate is inside the
      buffer.
    * The paper: its learning rate is inside the buffer too; the same for a constant rate.
    * bitsandbytes: its LARS is SGD whose update has a largest norm, another rule.

    References
    ----------
    Y. You, I. Gitman and B. Ginsburg, "Large batch training of convolutional networks", 2017,
    arXiv:1708.03888.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0, 4.0])
    >>> opt = op.LARS(w, lr=1.0, trust_coeff=0.1, always_adapt=True)
    >>> info = opt.step(np.array([0.0, 100.0]))  # 0.1 times the norm of w, whatever g's
    >>> w.round(6)
    array([3. , 3.5])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "momentum": DECAY_RATE,
        "dampening": Number(below=1.0),
        "nesterov": Flag(),
        "trust_coeff": Maybe(Number()),
        "eps": SCHEDULED,
        "trust_clip": Flag(),
        "always_adapt": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"always_adapt": True, "trust_coeff": 0.1, "eps": 1e-3},
        {
            "momentum": 0.9,
            "nesterov": True,
            "trust_coeff": 4.0,
            "trust_clip": True,
            "always_adapt": True,
        },
        {"momentum": 0.5, "dampening": 0.25, "always_adapt": True},
        {"momentum": 0.9, "trust_coeff": None, "always_adapt": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1.0,
        momentum: Setting = 0.0,
        dampening: float = 0.0,
        weight_decay: Setting = 0.0,
        nesterov: bool = False,
        trust_coeff: float | None = 1e-3,
        eps: Setting = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            trust_coeff=trust_coeff,
            eps=eps,
            trust_clip=trust_clip,
            always_adapt=always_adapt,
            maximize=maximize,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError where Nesterov's rule has no momentum, or a dampened one."""
        if not settings["nesterov"]:
            return
        if settings["momentum"] == 0 or settings["dampening"] != 0:
            raise ValueError("nesterov: expected momentum > 0 and dampening 0 with it, got others")

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return SGD's numbers and what the ratio is made of; the ratio is still to come."""
        momentum, decay = values["momentum"], values["weight_decay"]
        coeff = values["trust_coeff"]
        return {
            "momentum": momentum,
            "gain": 1.0 if step == 1 or momentum == 0 else 1 - values["dampening"],
            "nesterov": float(values["nesterov"]),
            "weight_decay": decay,
            "trust_coeff": 0.0 if coeff is None else coeff,
            "eps": values["eps"],
            "adapts": float(coeff is not None and (decay != 0 or values["always_adapt"])),
            "clips": float(values["trust_clip"]),
            "lr": values["lr"],
            "ratio": 1.0,
        }

    @staticmethod
    def measure(
        param: Array,
        grad: Array,
        *state: Array | None,  # noqa: ARG004
        **scalars: float,  # noqa: ARG004
    ) -> tuple[Array, ...]:
        """Return the squares of the parameter and of the gradient."""
        return squared(param), squared(grad)

    @staticmethod
    def weigh(scalars: dict[str, float], sums: Sequence[float], size: int) -> dict[str, float]:  # noqa: ARG004
        """Return the numbers with the ratio."""
        if not scalars["adapts"]:
            return scalars
        param_norm, grad_norm = map(math.sqrt, sums)
        ratio = 1.0
        if param_norm > 0 and grad_norm > 0:
            below = grad_norm + param_norm * scalars["weight_decay"] + scalars["eps"]
            ratio = scalars["trust_coeff"] * param_norm / below
        if scalars["clips"]:
            ratio = min(ratio / scalars["lr"], 1.0) if scalars["lr"] > 0 else 1.0
        return {**scalars, "ratio": ratio}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        momentum_buffer: Array | None,
        *,
        momentum: float,
        gain: float,
        nesterov: float,
        weight_decay: float,
        lr: float,
        ratio: float,
        **_: float,
    ) -> tuple[Array, Array | None]:
        """Return the new parameter and momentum buffer."""
        direction = scaled = ratio * (grad + weight_decay * param)
        if momentum_buffer is not None:
            momentum_buffer = momentum * momentum_buffer + gain * scaled
            direction = scaled + momentum * momentum_buffer if nesterov else momentum_buffer
        return param - lr * direction, momentum_buffer
