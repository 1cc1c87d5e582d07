"""Adam, with every bias correction in use, and AMSGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import BETAS, SCHEDULED, Flag
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim import _cautious
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Adam(Optimizer, rule="adam"):
    r"""Adam: momentum over a running average of the squared gradient.

    The average :math:`m` smooths the noise of batches, as momentum does, and the average :math:`v`
    of squares gives each weight a step of its own size: about `lr`, whatever the scale of its
    gradient. Take it for a first try at nearly anything; if weights are to decay, take `AdamW`.
    The paper's learning rate is 1e-3; GPT-3 was trained with 6e-5 to 6e-4, the larger the model
    the smaller, and ``betas=(0.9, 0.95)`` (arXiv:2005.14165).

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        w &\leftarrow w - \eta \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t) + \epsilon_\mathrm{root}} + \epsilon}

    with :math:`t` counted from 1. Options change where the corrections and the epsilons stand:

    * ``bias_correction=False``: both :math:`1 - \beta^t` are 1.
    * ``eps_hat=True``, the paper's second form, in which epsilon is not corrected:
      :math:`w \leftarrow w - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
      \frac{m}{\sqrt{v + \epsilon_\mathrm{root}} + \epsilon}`.
    * `eps` stands outside the root, `eps_root` inside.
    * ``amsgrad=True``: the largest :math:`v` so far, raw, takes the place of :math:`v` under the
      root; with ``amsgrad_corrected=True`` the largest :math:`v / (1 - \beta_2^t)` so far takes
      that of the whole fraction.

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
        Is added outside the root, 1e-8 by default. It keeps steps short where gradients are nearly
        0; a larger one, as 1e-3, makes steps there more like momentum's.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`; unless the next one is on.
    amsgrad : bool
        Divide by the largest average square so far, so that steps never become longer. Off by
        default; turn it on where Adam does not settle. It keeps one more array.
    bias_correction : bool
        Correct the averages, which begin at 0 and are too small at first. On by default; turn it
        off to repeat a run of MLX, or of any other program that leaves it out.
    eps_hat : bool
        Do not correct epsilon, so that it counts more in the first steps. Off by default; turn it
        on to repeat a run of Keras, TensorFlow, scikit-learn or Thinc.
    eps_root : float >= 0, or schedule
        Is added inside the root, 0 by default; it is optax's. Gradients that are taken through a
        step want it, because the root has no derivative at 0.
    amsgrad_corrected : bool
        Take the largest of the corrected averages, as optax does, where PyTorch takes the largest
        of the raw ones. Off by default; it needs `amsgrad`, and excludes `eps_hat`.
    cautious : bool
        Leave those elements where they are whose average and gradient disagree, and let the others
        go as much further: :math:`m \leftarrow m \circ \phi / \max(\bar\phi, 10^{-3})` in the
        last line, where :math:`\phi` is 1 where :math:`m g > 0`, else 0, and :math:`\bar\phi` its
        mean over the array. The state is Adam's. It is not `cautious_weight_decay`.
    maximize : bool
        Ascend instead of descend.
    decoupled_weight_decay : bool
        The weights shrink before the step instead,
        :math:`w \leftarrow (1 - \eta \lambda)\, w`, as in `AdamW`.
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``exp_avg``, ``exp_avg_sq``; ``max_exp_avg_sq`` with amsgrad. The powers
    of beta are taken in double, once a step.

    Differs from

    * PyTorch: nothing; `bias_correction`, `eps_hat`, `eps_root`, `amsgrad_corrected` and `cautious`
      are ours.
    * timm: its ``caution`` is `cautious`. The authors' first code divides the sum of the mask, plus
      1, by the size instead.
    * Keras, TensorFlow, scikit-learn, Thinc: theirs is ``eps_hat=True`` (Keras with eps=1e-7).
    * optax: nothing; its ``amsgrad`` is ``amsgrad=True, amsgrad_corrected=True``.
    * MLX: its default is ``bias_correction=False``.
    * The paper: Algorithm 1 is the default here, the form at the end of its section 2 `eps_hat`.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015,
    arXiv:1412.6980.
    S. J. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", ICLR 2018,
    arXiv:1904.09237.
    K. Liang, L. Chen, B. Liu and Q. Liu, "Cautious optimizers: improving training with one line of
    code", 2024, arXiv:2411.16085.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Adam(w, lr=0.1)
    >>> info = opt.step(np.array([100.0, 0.01]))  # the first step is lr, whatever the gradient
    >>> w.round(6)
    array([0.9, 0.9])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "betas": BETAS,
        "eps": SCHEDULED,
        "amsgrad": Flag(),
        "bias_correction": Flag(),
        "eps_hat": Flag(),
        "eps_root": SCHEDULED,
        "amsgrad_corrected": Flag(),
        "cautious": Flag(),
        "decoupled_weight_decay": Flag(),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"amsgrad": True},
        {"bias_correction": False},
        {"eps_hat": True, "eps": 1e-4},
        {"eps": 0.0, "eps_root": 1e-6},
        {"amsgrad": True, "eps_hat": True, "eps_root": 1e-4, "betas": (0.8, 0.9)},
        {"amsgrad": True, "amsgrad_corrected": True, "betas": (0.8, 0.9)},
        {"cautious": True},
        {"cautious": True, "amsgrad": True},
        {"decoupled_weight_decay": True},
    )

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_hat: bool = False,
        eps_root: Setting = 0.0,
        amsgrad_corrected: bool = False,
        cautious: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            bias_correction=bias_correction,
            eps_hat=eps_hat,
            eps_root=eps_root,
            amsgrad_corrected=amsgrad_corrected,
            cautious=cautious,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError where there is no largest average, or no correction, to choose."""
        if settings["amsgrad_corrected"] and (not settings["amsgrad"] or settings["eps_hat"]):
            expected = "False without amsgrad" if not settings["amsgrad"] else "False with eps_hat"
            raise ValueError(f"amsgrad_corrected: expected {expected}, got True")

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the step's betas, epsilons and bias corrections."""
        lr, (beta1, beta2) = values["lr"], values["betas"]
        bias1 = bias2 = 1.0
        if values["bias_correction"]:
            bias1, bias2 = 1 - beta1**step, 1 - beta2**step
        if values["eps_hat"]:
            step_size, inv_bias2 = lr * math.sqrt(bias2) / bias1, 1.0
        else:
            step_size, inv_bias2 = lr / bias1, 1 / bias2
        early = values["amsgrad_corrected"]
        return {
            "beta1": beta1,
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "step_size": step_size,
            "early_inv_bias2": inv_bias2 if early else 1.0,
            "inv_bias2": 1.0 if early else inv_bias2,
            "eps": values["eps"],
            "eps_root": values["eps_root"],
            "mask": 1.0,
        }

    measure = staticmethod(_cautious.measure)
    weigh = staticmethod(_cautious.weigh)

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        max_exp_avg_sq: Array | None,
        *,
        beta1: float,
        one_minus_beta1: float,
        beta2: float,
        one_minus_beta2: float,
        step_size: float,
        early_inv_bias2: float,
        inv_bias2: float,
        eps: float,
        eps_root: float,
        mask: float,
        cautious: bool,
        **_: Any,
    ) -> tuple[Array, Array, Array, Array | None]:
        """Return the new parameter, average gradient, average square and its maximum."""
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
        second_moment = exp_avg_sq
        if max_exp_avg_sq is not None:
            second_moment = max_exp_avg_sq = np.maximum(
                max_exp_avg_sq, exp_avg_sq * early_inv_bias2
            )
        denominator = np.sqrt(second_moment * inv_bias2 + eps_root) + eps
        average = exp_avg * (mask * _cautious.agreeing(exp_avg, grad)) if cautious else exp_avg
        return param - step_size * average / denominator, exp_avg, exp_avg_sq, max_exp_avg_sq
