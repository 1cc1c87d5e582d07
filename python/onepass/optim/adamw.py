"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import ClassVar, Unpack

from onepass._hyperparameters import Fixed, Flag
from onepass._typing import Pair, Params, Setting
from onepass.optim._settings import StepOptions
from onepass.optim.adam import Adam


class AdamW(Adam, rule="adamw"):
    r"""Adam with decoupled weight decay.

    Its state is `Adam`'s; the decay shrinks all weights by the same share, while a decay inside
    the gradient would shrink those with large gradients less. Take it as the first choice for
    networks, transformers above all. LLaMA was trained with learning rates of 1.5e-4 and 3e-4, a
    decay of 0.1 and ``betas=(0.9, 0.95)`` (arXiv:2302.13971); BERT is fine-tuned with 2e-5 to 5e-5
    (arXiv:1810.04805).

    It is `Adam` with ``decoupled_weight_decay=True`` and a default of 0.01 for the decay. The
    parameter shrinks first, then Adam steps, with the same options; the decay :math:`\lambda` never
    enters the averages:

    .. math:: w \leftarrow (1 - \eta \lambda)\, w, \qquad \text{then Adam's step}

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
        Is added outside the root, 1e-8 by default; as in `Adam`.
    weight_decay : float >= 0, or schedule
        Decoupled, in units of `lr`.
    amsgrad, bias_correction, eps_hat, eps_root, amsgrad_corrected, cautious
        As in `Adam`.
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
    State per parameter: as `Adam`'s.

    Differs from

    * PyTorch: nothing; `bias_correction`, `eps_hat`, `eps_root`, `amsgrad_corrected` and `cautious`
      are ours.
    * Keras: as for `Adam`, its form is ``eps_hat=True`` with eps=1e-7; its decay defaults to 0.004.
    * optax: ``adamw`` adds :math:`\lambda w` to the step, so decay and step see the same old
      parameter; equal in exact arithmetic, not in floats. Its default weight decay is 1e-4.
    * The paper: its decay is :math:`\eta_t \lambda` with :math:`\eta_t` the schedule's factor
      alone; here, as in PyTorch, it is multiplied by the whole learning rate.
    * DeepSpeed and bitsandbytes call this rule Adam.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019,
    arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> info = opt.step(np.array([100.0, 0.01]))  # 1 - 0.1 * 0.5, then Adam's first step
    >>> w.round(6)
    array([0.85, 0.85])
    """

    checks: ClassVar = {**Adam.checks, "decoupled_weight_decay": Fixed(Flag(), True)}
    cases: ClassVar = tuple(case for case in Adam.cases if "decoupled_weight_decay" not in case)

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        betas: Pair = (0.9, 0.999),
        eps: Setting = 1e-8,
        weight_decay: Setting = 1e-2,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_hat: bool = False,
        eps_root: Setting = 0.0,
        amsgrad_corrected: bool = False,
        cautious: bool = False,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            eps_hat=eps_hat,
            eps_root=eps_root,
            amsgrad_corrected=amsgrad_corrected,
            cautious=cautious,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )
