"""Muon: momentum whose matrices are made nearly orthogonal; AdamW for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

from onepass._hyperparameters import (
    BETAS,
    DECAY_RATE,
    SCHEDULED,
    Choice,
    Fixed,
    Flag,
    Maybe,
    Number,
    Several,
    Whole,
)
from onepass._typing import Array, Pair, Params, Setting
from onepass.optim._newton_schulz import orthogonalize
from onepass.optim._settings import StepOptions
from onepass.optim.adam import Adam
from onepass.optim.optimizer import Optimizer

_COEFFICIENT = Number(low=-math.inf)


class Muon(Optimizer, rule="muon"):
    r"""Muon: momentum made nearly orthogonal, for the matrices of hidden layers.

    The average :math:`B` smooths the gradient, and matrix products then make its directions about
    equally long, so that rare directions are learned too. Take it for the weight matrices of
    hidden layers, and AdamW for all other parameters. Jordan's learning rate is 0.02 for matrices,
    and 3e-4 for AdamW's part; with ``adjust_lr_fn="match_rms_adamw"`` AdamW's rate fits both.

    .. math::

        B &\leftarrow \mu B + (1 - \mu) G \\
        U &= \mu B + (1 - \mu) G \quad\text{with Nesterov's form, else } B \\
        X_0 &= U / \max(\|U\|_F, \epsilon) \\
        A_k &= X_k X_k^\top, \qquad X_{k+1} = (a I + b A_k + c A_k A_k)\, X_k \\
        W &\leftarrow (1 - \eta \lambda) W - \eta\, r X_K

    The last :math:`X` has the singular vectors of :math:`U`, and singular values from 0.68 to 1.14,
    but for those below a hundredth of the norm. A step thus moves all directions of the matrix by
    about as much. :math:`r` depends on the shape, see `adjust_lr_fn`.

    Groups with ``use_muon=False`` are stepped by `AdamW` in the same call, so that one optimizer,
    one norm of the gradients and one checkpoint serve a model. Put into them what is no matrix, and
    also embeddings and the last layer, as the authors do.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs. With more than two dimensions, as in a convolution, all but the first are taken as
        one, in the order of NumPy's indices; fewer are an error but where `use_muon` is False.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0. It is
        AdamW's too, which is why a group of AdamW's usually has its own.
    weight_decay : float >= 0, or schedule
        Decoupled, in units of `lr`.
    momentum : float in [0, 1), or schedule
        How much of the old average of the gradients stays, :math:`\mu`.
    nesterov : bool
        Step along the average that the next gradient would make, were it the same.
    ns_coefficients : three floats
        :math:`a, b, c` of the Newton-Schulz iteration.
    eps : float >= 0, or schedule
        The least norm that :math:`U` is divided by. Where gradients may be smaller, 1e-30 keeps the
        step independent of their scale.
    ns_steps : int in [0, 100)
        The iterations :math:`K`.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        :math:`r`: "original", as None, is :math:`\sqrt{\max(1, m / n)}` for m rows and n columns;
        "match_rms_adamw" is :math:`0.2 \sqrt{\max(m, n)}`, with which Muon's elements move about as
        far as AdamW's, so that AdamW's rate and decay fit.
    use_muon : bool
        False: step this group by `AdamW`.
    adam_betas : two floats in [0, 1), or schedules
        `AdamW`'s `betas`.
    adam_eps : float >= 0, or schedule
        `AdamW`'s `eps`.
    maximize : bool
        Ascend instead of descend; the decay still shrinks.
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, has too few dimensions, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``momentum_buffer``; with ``use_muon=False``, ``exp_avg`` and
    ``exp_avg_sq``.

    A step is two passes over the arrays and, between them, the matrix products, which take nearly
    all of the time: NumPy's, hence its BLAS's, with its threads, whatever
    `onepass.set_num_threads` says. They are computed in float32, or in float64 for parameters of
    float64. The second pass writes the parameters and the state, so that an error or an interrupt
    before it has changed nothing. During a step there is one more array for each of Muon's
    parameters. What of the result is the same bits, and where, is on the page "Promises"; the order
    of the products is in ``onepass.optim._newton_schulz``.

    Differs from

    * PyTorch: nothing but the products, which are taken in bfloat16 there, whatever the parameters'
      dtype: its step is about 1.5 % of the step's norm away. It takes two dimensions only. The
      groups with ``use_muon=False``, ``maximize`` and an epsilon of 0 beside gradients of 0 (NaN
      there, no step here) are ours.
    * Jordan's: it adds the epsilon to the norm, keeps a bias of no decay, and takes the ratio of a
      convolution from the last two dimensions of its kernel; betas of (0.9, 0.95) and an epsilon of
      1e-10 in AdamW.
    * optax, in `optax.contrib`: its ratio is that of kernels of shape (in, out), its Nesterov form
      has bias corrections, and AdamW takes what is no matrix by itself; it is called ``adam_b1``
      and so on there.
    * Keras: it keeps the sum of gradients, not their average, and its ratio is "match_rms_adamw".
    * The paper and PyTorch's own page write the sum too. The direction is the same: it has no
      scale.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/.
    J. Liu et al., "Muon is scalable for LLM training", 2025, arXiv:2502.16982 (the second ratio).
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019,
    arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w, bias = np.zeros((2, 2)), np.zeros(2)
    >>> opt = op.Muon([{"params": w, "lr": 0.1}, {"params": bias, "use_muon": False}])
    >>> info = opt.step([np.array([[4.0, 0.0], [0.0, -3.0]]), np.array([1.0, -5.0])])
    >>> w.round(1)  # both directions by about 0.1
    array([[-0.1,  0. ],
           [ 0. ,  0.1]])
    >>> bias.round(6)  # AdamW's first step, of lr
    array([-0.001,  0.001])
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "momentum": DECAY_RATE,
        "nesterov": Flag(),
        "ns_coefficients": Several((_COEFFICIENT, _COEFFICIENT, _COEFFICIENT)),
        "eps": SCHEDULED,
        "ns_steps": Whole(below=100),
        "adjust_lr_fn": Maybe(Choice(("original", "match_rms_adamw"))),
        "use_muon": Flag(),
        "adam_betas": BETAS,
        "adam_eps": SCHEDULED,
        "decoupled_weight_decay": Fixed(Flag(), True),
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {
            "momentum": 0.5,
            "nesterov": False,
            "ns_coefficients": (2.0, -1.5, 0.5),
            "eps": 20.0,
            "ns_steps": 3,
            "adjust_lr_fn": "match_rms_adamw",
        },
        {"use_muon": False},
        {"use_muon": False, "adam_betas": (0.8, 0.9), "adam_eps": 1e-3},
    )
    step_if_missing: ClassVar[int] = 1

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        weight_decay: Setting = 0.1,
        momentum: Setting = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: Setting = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        use_muon: bool = True,
        adam_betas: Pair = (0.9, 0.999),
        adam_eps: Setting = 1e-8,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            use_muon=use_muon,
            adam_betas=adam_betas,
            adam_eps=adam_eps,
            maximize=maximize,
            **{"decoupled_weight_decay": True, **options},  # type: ignore[arg-type]
        )

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the momentum and the rate, and AdamW's numbers."""
        momentum, lr = values["momentum"], values["lr"]
        adam = {"lr": lr, "betas": values["adam_betas"], "eps": values["adam_eps"]}
        return {
            "momentum": momentum,
            "one_minus_momentum": 1 - momentum,
            "nesterov": float(values["nesterov"]),
            "lr": lr,
            **Adam.scalars(step, {**Adam.defaults, **adam}),
        }

    @staticmethod
    def direct(  # type: ignore[override]
        grad: Array,
        momentum_buffer: Array,
        *_: Array | None,
        nesterov: float,
        **scalars: float,
    ) -> Array:
        """Return the momentum after the step, or what Nesterov's form looks at."""
        buffer = _averaged(momentum_buffer, grad, scalars)
        return _averaged(buffer, grad, scalars) if nesterov else buffer

    @staticmethod
    def finish_directions(
        directions: Sequence[tuple[Array, float, Mapping[str, float]]],
    ) -> None:
        """Make each of them orthogonal, times the ratio of its shape."""
        orthogonalize(directions)

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        momentum_buffer: Array | None,
        exp_avg: Array | None,
        exp_avg_sq: Array | None,
        *,
        use_muon: bool,
        direction: Array | None = None,
        lr: float,
        **scalars: float,
    ) -> tuple[Array, Array | None, Array | None, Array | None]:
        """Return the new parameter and its state."""
        if use_muon:
            assert momentum_buffer is not None
            assert direction is not None
            momentum_buffer = _averaged(momentum_buffer, grad, scalars)
            return param - lr * direction, momentum_buffer, None, None
        assert exp_avg is not None
        assert exp_avg_sq is not None
        param, exp_avg, exp_avg_sq, _ = Adam.reference(
            param, grad, exp_avg, exp_avg_sq, None, cautious=False, **scalars
        )
        return param, None, exp_avg, exp_avg_sq


def _averaged(buffer: Array, grad: Array, scalars: Mapping[str, float]) -> Array:
    return scalars["momentum"] * buffer + scalars["one_minus_momentum"] * grad
