"""Schedule-free SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from onepass._hyperparameters import SCHEDULED, Number, Whole
from onepass._typing import Array, Params, Setting
from onepass.optim import _schedulefree
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class SGDScheduleFree(Optimizer, rule="sgd_schedulefree"):
    r"""Schedule-free SGD: an average of the weights stands for a schedule of the rate.

    The weights :math:`z` move as plain SGD's, and their average :math:`x` stands for momentum and
    ends where a falling rate would have led. Take it in the place of `SGD` where you do not know
    how long the run will be. Its authors begin with learning rates 10 to 50 times as large as
    SGD's, and advise a warm-up.

    .. math::

        \eta_t &= \eta \min(1,\, t / T_\text{warmup}), \qquad
        c_t = \frac{\omega_t}{\omega_1 + \dots + \omega_t}, \quad
        \omega_t = t^{\,r} \left(\max_{s \le t} \eta_s\right)^p \\
        z &\leftarrow z - \eta_t g(y) \\
        x &\leftarrow (1 - c_t)\, x + c_t\, z \\
        y &= (1 - \mu)\, z + \mu\, x

    with :math:`t` counted from 1. The parameters are :math:`y`, where the gradient is to be taken.
    The weights that training is for are their average :math:`x`: `averaged` shows them. So
    evaluate, and save weights for others, inside ``with opt.averaged():``, and train outside it.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate; no decay of it is needed. A schedule is called with the number of completed
        steps, from 0.
    momentum : float in [0.001, 1)
        :math:`\mu`, the share of :math:`x` in :math:`y`. Do not change it in a run: :math:`x` is
        found from :math:`y` and :math:`z` with it.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda y`.
    warmup_steps : int >= 0
        Over how many steps the rate grows in a straight line, :math:`T_\text{warmup}`; 0 for none.
    r : float in [0, 10]
        Step :math:`t` weighs :math:`t^r` in the average; 0 lets all weigh alike.
    weight_lr_power : float in [0, 10]
        A step weighs the largest rate so far to this power, :math:`p`.
    maximize : bool
        Ascend instead of descend.
    **options
        The options of a step: see `onepass.Optimizer`. `ema_decay` and `swa_start` are refused,
        because there is an average already, and `lookahead_every`, because it would move :math:`y`
        alone; `rounding` must be "master", because rounded weights would drift apart from
        :math:`z`, and `cautious_weight_decay` needs a decoupled decay.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``z``, which is kept as it is computed whatever `state_format` says and
    begins as the weights of the first step, and two numbers, ``weight_sum`` and ``lr_max``, which
    belong to a parameter: one that misses a step keeps its own. Weights that you change after the
    first step are pulled back to where ``z`` is. The running statistics of a BatchNorm are of
    :math:`y`: for those of :math:`x`, let some batches pass inside the block before you evaluate.

    Differs from

    * schedulefree, the authors' package: there ``opt.eval()`` and ``opt.train()`` go from
      :math:`y` to :math:`x` and back, and lose a few bits on the way; `averaged` restores
      :math:`y` to the bit. A step in the wrong mode is an error in both.
      There the numbers belong to a group.
    * optax: ``contrib.schedule_free_sgd`` has no `r`, and takes a number for the rate.
    * PyTorch: it has no such class.

    References
    ----------
    A. Defazio et al., "The road less scheduled", NeurIPS 2024, arXiv:2405.15682.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0])
    >>> opt = op.SGDScheduleFree(w, lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     info = opt.step(w.copy())  # the gradient of w**2 / 2
    >>> w  # half way between z = 0.25 and x = (0.5 + 0.25) / 2
    array([0.3125])
    >>> with opt.averaged():
    ...     print(w)
    [0.375]
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "momentum": _schedulefree.MOMENTUM,
        "warmup_steps": Whole(below=2**53),
        "r": Number(high=10.0),
        "weight_lr_power": Number(high=10.0),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"lr": 0.1, "momentum": 0.5, "warmup_steps": 2, "r": 1.5, "weight_lr_power": 0.0},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1.0,
        momentum: float = 0.9,
        weight_decay: Setting = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            maximize=maximize,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for a second average."""
        _schedulefree.check_together(cls.__name__, settings)

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the rates, the point's share in the average, and the memory after the step."""
        lr = _schedulefree.warmed_up(step, values)
        return _schedulefree.scalars(step, values, lr, values["momentum"])

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        z: Array,
        **move: float,
    ) -> tuple[Array, Array]:
        """Return the new weights y and z."""
        return _schedulefree.moved(param, z, grad, **move)

    @staticmethod
    def own_average(param: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Array:
        """Return x, the average of z."""
        return _schedulefree.shown(param, state["z"], settings["momentum"])
