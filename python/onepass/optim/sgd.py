"""Gradient descent, momentum in its three forms, and Nesterov's acceleration in both of its."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Unpack

import numpy as np

from onepass._hyperparameters import SCHEDULED, Choice, Flag, Number
from onepass._quiet import quiet
from onepass._typing import Array, Params, Setting
from onepass.optim._arrays import Kept
from onepass.optim._settings import StepOptions
from onepass.optim._storage import opened, weights
from onepass.optim.optimizer import Optimizer


class SGD(Optimizer, rule="sgd"):
    r"""Gradient descent, with or without momentum.

    The buffer of momentum remembers the last steps: along a valley they add up, and across it they
    cancel; without momentum nothing is kept. Take it, with momentum, where you can search for a
    learning rate and its schedule: it keeps half of Adam's state. ResNet was trained with a rate
    of 0.1, momentum 0.9 and a decay of 1e-4, and the rate was divided by 10 when the error stood
    still (arXiv:1512.03385); Bengio begins with 0.01 (arXiv:1206.5533).

    Batch, mini-batch and stochastic gradient descent differ only in who computes the gradient
    :math:`g`; the update is this one. Without momentum

    .. math:: w \leftarrow w - \eta g

    and with it one of three forms, where :math:`\mu` is `momentum`, :math:`\eta` is `lr`:

    ============== ======================================== =================================
    ``form=``      buffer                                   parameter
    ============== ======================================== =================================
    "heavy_ball"   :math:`v \leftarrow \mu v + (1 - d) g`   :math:`w \leftarrow w - \eta v`
    "sutskever"    :math:`v \leftarrow \mu v + \eta g`      :math:`w \leftarrow w - v`
    "ema"          :math:`v \leftarrow \mu v + (1 - \mu) g` :math:`w \leftarrow w - \eta v`
    ============== ======================================== =================================

    (:math:`d` is `dampening`.)

    The first two take the same steps while `lr` is constant; when it changes, "sutskever" keeps
    moving at the old rate until the buffer has forgotten it. The third takes steps smaller by
    :math:`1 - \mu`.

    Nesterov's acceleration, in two ways. ``nesterov=True`` is the form rewritten for the gradient
    at :math:`w`: with :math:`u` what the gradient adds to the buffer, the step uses
    :math:`\mu v + u` in place of the new :math:`v`. And `lookahead` is the original: it shows the
    parameters at :math:`w - \mu v` (heavy_ball: :math:`w - \eta \mu v`) while the gradient is
    computed there.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays of float32, float64, float16 or ``ml_dtypes.bfloat16``, without gaps, updated
        in place. A group is a mapping with ``"params"`` and the hyperparameters in which it
        differs.
    lr : float >= 0, or schedule
        Learning rate. A schedule is called with the number of completed steps, from 0.
    momentum : float in [0, 1), or schedule
        How much of the buffer stays; 0, the default, keeps no buffer. 0.9 is usual.
    dampening : float in [0, 1]
        The share of a gradient that does not enter the buffer, 0 by default. Only for
        "heavy_ball", and not on the first step, where the buffer is the gradient.
    weight_decay : float >= 0, or schedule
        Coupled (L2): the gradient becomes :math:`g + \lambda w`.
    nesterov : bool
        Step from where momentum leads. Off by default; with a large momentum it swings less
        (Sutskever et al.). It needs momentum, no dampening, and the form "heavy_ball" or
        "sutskever". Where a schedule of `momentum` returns 0, the step is that without momentum.
    maximize : bool
        Ascend instead of descend.
    form : "heavy_ball", "sutskever" or "ema"
        Which of the three forms above momentum has, by default "heavy_ball", which is PyTorch's.
        Take "sutskever" to repeat a run of Keras or scikit-learn, "ema" for a moving average.
    **options
        The options of a step that every optimizer takes: see `onepass.Optimizer`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if a parameter cannot be updated in place, shares
        memory with another, or a hyperparameter is out of range.

    Notes
    -----
    State per parameter: ``momentum_buffer``, where there is momentum.

    Differs from

    * PyTorch: for "heavy_ball" only in that `dampening` is left out on a parameter's first step;
      there on its buffer's first, which is another one if `momentum` starts at 0. PyTorch has no
      other form and no look-ahead.
    * Keras and scikit-learn: theirs is "sutskever" (with the opposite sign in the buffer).
    * optax: ``sgd(momentum=)`` is "heavy_ball" without dampening.
    * Sutskever et al.: theirs is ``lookahead()`` with "sutskever".

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Y. Nesterov, "A method for solving the convex programming problem with convergence rate
    O(1/k^2)", 1983.
    I. Sutskever, J. Martens, G. Dahl and G. Hinton, "On the importance of initialization and
    momentum in deep learning", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0, -2.0])
    >>> opt = op.SGD(w, lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     info = opt.step(np.array([1.0, 1.0]))
    >>> w
    array([ 0.71, -2.29])

    The gradient at the look-ahead point:

    >>> with opt.lookahead():
    ...     grads = 2 * w
    >>> opt.step(grads).step
    3
    """

    checks: ClassVar = {
        "lr": SCHEDULED,
        "momentum": Number(below=1.0, schedulable=True),
        "dampening": Number(high=1.0),
        "nesterov": Flag(),
        "form": Choice(("heavy_ball", "sutskever", "ema")),
    }
    cases: ClassVar = (
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "form": "ema"},
        {"momentum": 0.9, "form": "sutskever"},
        {"momentum": 0.9, "form": "sutskever", "nesterov": True},
    )
    step_if_missing = 1  # enough to know that the first step, without dampening, is over

    def __init__(
        self,
        params: Params,
        lr: Setting = 1e-3,
        momentum: Setting = 0.0,
        dampening: float = 0.0,
        weight_decay: Setting = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        form: str = "heavy_ball",
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            form=form,
            **options,
        )

    @classmethod
    def check_together(cls, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for combinations that are no known rule."""
        form, dampening = settings["form"], settings["dampening"]
        if dampening and form != "heavy_ball":
            raise ValueError(f"dampening: expected 0 for form {form!r}, got {dampening}")
        if settings["nesterov"]:
            if not settings["momentum"]:
                raise ValueError("momentum: expected more than 0 for nesterov, got 0")
            if dampening:
                raise ValueError(f"dampening: expected 0 for nesterov, got {dampening}")
            if form == "ema":
                raise ValueError("form: expected no 'ema' for nesterov, got it")

    @staticmethod
    def scalars(step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the step's momentum, gain and step size: all in which the forms differ."""
        lr, momentum, form = values["lr"], values["momentum"], values["form"]
        if form == "sutskever":
            gain, step_size = lr, 1.0
        elif form == "ema":
            gain, step_size = 1 - momentum, lr
        else:
            undamped = step == 1 or momentum == 0
            gain, step_size = 1.0 if undamped else 1 - values["dampening"], lr
        return {"momentum": momentum, "gain": gain, "step_size": step_size}

    @staticmethod
    def reference(  # type: ignore[override]
        param: Array,
        grad: Array,
        momentum_buffer: Array | None,
        *,
        momentum: float,
        gain: float,
        step_size: float,
        nesterov: bool,
    ) -> tuple[Array, Array | None]:
        """Return the new parameter and buffer."""
        direction = update = gain * grad
        if momentum_buffer is not None:
            momentum_buffer = momentum * momentum_buffer + update
            direction = momentum * momentum_buffer + update if nesterov else momentum_buffer
        return param - step_size * direction, momentum_buffer

    def lookahead(self) -> AbstractContextManager[None]:
        r"""Show the parameters at the look-ahead point while the block runs.

        Compute the gradient in the block and step after it:
        ``with opt.lookahead(): grads = ...``, then ``opt.step(grads)``. The shift is
        :math:`\mu v` for "sutskever" and "ema" and :math:`\eta \mu v` for "heavy_ball", with the
        values that the coming step uses. Leaving the block, also by an exception, restores the
        parameters to the bit; it takes two copies of them.

        Raises
        ------
        ValueError
            Where a group has no momentum, has ``nesterov=True`` (the same idea twice), or the
            block is entered twice.
        """
        return self._show("lookahead", self._points_ahead)

    def _points_ahead(self) -> tuple[list[int], list[Any]]:
        coming = self._engine.values_of_coming_step()
        for given, settings in zip(self.param_groups, coming, strict=True):
            if not given["momentum"]:
                raise ValueError("momentum: expected more than 0 for lookahead, got 0")
            if settings["nesterov"]:
                raise ValueError("nesterov: expected False for lookahead, got True")
        now = self._engine.contents()
        each = zip(now["params"], now["group_of"], self._coming(), strict=True)
        values = [_ahead(param, coming[number], kept) for param, number, kept in each]
        return list(range(len(values))), values


@quiet
def _ahead(param: Array, settings: Mapping[str, Any], kept: Kept) -> Array:
    """Return a parameter at the look-ahead point."""
    buffer, _, master, _ = kept
    rate = settings["lr"] if settings["form"] == "heavy_ball" else 1.0
    buffer = opened(buffer, param, has_sign=True)
    return np.asarray(weights(param, master) - rate * settings["momentum"] * buffer)
