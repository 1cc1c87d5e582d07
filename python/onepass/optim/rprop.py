"""Rprop: steps whose sizes follow the gradient's signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import NON_NEGATIVE, Number, Several
from onepass._typing import Array, Params
from onepass.optim._settings import StepOptions
from onepass.optim.optimizer import Optimizer


class Rprop(Optimizer, rule="rprop"):
    r"""Rprop: each element has a step of its own, which grows until its gradient changes sign.

    It keeps each weight's step, and the last gradient for its sign. Take it where the gradient is
    that of all data, without noise: for small networks and for fits, where it needs no search for
    a rate. Its authors begin with steps (`lr`) of 0.1, and found that this hardly matters.

    .. math::

        \Delta &\leftarrow \max(\min(\Delta \cdot
            \begin{cases} \eta^+ & g\, g' > 0 \\ \eta^- & g\, g' < 0 \\ 1 & \text{else} \end{cases},
            \;\Delta_\mathrm{max}),\; \Delta_\mathrm{min}) \\
        g' &\leftarrow \begin{cases} 0 & g\, g' < 0 \\ g & \text{else} \end{cases} \\
        w &\leftarrow w - \Delta \operatorname{sign}(g')

    with :math:`g'` what is remembered of the last gradient, at first 0, and :math:`\Delta` starting
    at `lr`. Where the sign has changed, the weight stays, and the next step counts as the first
    one. It wants the gradient of all data: a sign that is noise makes every step small.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0
        The first step of every element, brought between `step_sizes`. Later it means nothing, so it
        takes no schedule.
    etas : two floats, one in (0, 1), one > 1
        What a step is multiplied by where the sign of the gradient changes, and where it does not.
    step_sizes : two floats >= 0
        The smallest and the largest step.
    weight_decay : 0
        There is none, because only the sign of the gradient counts.
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
    State per parameter: ``prev``, ``step_size``. The product of gradients underflows where both are
    below about 1e-23 (float32) or 1e-162; then it is 0, and the step stays as it is. State is kept
    as it is computed, `state_format` has to be None.

    Differs from

    * PyTorch: its ``sign`` of a NaN is 0; here a gradient of NaN makes the weight NaN.
    * optax 0.2.8: its ``rprop`` returns the update of the step before, the first being 0
      (optax#1725).
    * The paper: it takes the last step back where the sign changes. This is iRprop- of Igel and
      Hüsken.

    References
    ----------
    M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm", ICNN 1993.
    C. Igel and M. Hüsken, "Improving the Rprop learning algorithm", NC 2000.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, 1.0])
    >>> opt = op.Rprop(w, lr=0.1)
    >>> info = opt.step(np.array([100.0, -0.01]))  # the first step is lr, whatever the gradient
    >>> info = opt.step(np.array([100.0, 0.01]))  # the second grows, or is left out
    >>> w.round(6)
    array([0.78, 1.1 ])
    """

    checks: ClassVar = {
        "lr": NON_NEGATIVE,
        "etas": Several((Number(above=0.0, below=1.0), Number(above=1.0))),
        "step_sizes": Several((NON_NEGATIVE, NON_NEGATIVE)),
        "weight_decay": NON_NEGATIVE,
    }
    cases: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"etas": (0.25, 2.0), "step_sizes": (0.005, 0.02)},
    )

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            etas=etas,
            step_sizes=step_sizes,
            weight_decay=weight_decay,
            maximize=maximize,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for what makes no sense with signs, and for sizes in the wrong order."""
        if settings["weight_decay"] != 0:
            got = settings["weight_decay"]
            raise ValueError(f"weight_decay: expected 0 for Rprop (it takes signs), got {got!r}")
        if (got := settings.get("state_format")) is not None:
            raise ValueError(f"state_format: expected None for Rprop, got {got!r}")
        smallest, largest = settings["step_sizes"]
        if smallest > largest:
            got = settings["step_sizes"]
            raise ValueError(f"step_sizes: expected the smaller one first, got {got!r}")

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:  # noqa: ARG004
        """Return the factors of a step, and its bounds."""
        (shrink, grow), (smallest, largest) = values["etas"], values["step_sizes"]
        return {"shrink": shrink, "grow": grow, "smallest": smallest, "largest": largest}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        prev: Array,
        step_size: Array,
        *,
        shrink: float,
        grow: float,
        smallest: float,
        largest: float,
    ) -> tuple[Array, Array, Array]:
        """Return the new parameter, what is remembered of the gradient, and the steps."""
        product = grad * prev
        factor = np.where(product > 0, grow, np.where(product < 0, shrink, 1))
        step_size = np.clip(step_size * factor.astype(grad.dtype), smallest, largest)
        prev = np.where(product < 0, 0, grad)
        return param - step_size * np.sign(prev), prev, step_size
