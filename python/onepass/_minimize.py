"""Minimizing a function with any of the optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from onepass._box import Box
from onepass._descent import INTERRUPTED, Descent, End, FunAndGrad, Iterate, Rules, real
from onepass._extras import require
from onepass._hyperparameters import Checks, Choice, Flag, Maybe, Number, Whole, check_setting
from onepass._typing import Array
from onepass.optim import Optimizer, registry

_CHECKS: Checks = {
    "maxiter": Whole(),
    "gtol": Maybe(Number()),
    "ftol": Maybe(Number()),
    "patience": Whole(low=1),
    "nonfinite": Choice(("stop", "skip", "raise")),
    "point": Choice(("best", "last", "averaged")),
    "progress": Flag(),
}
Callback: TypeAlias = Callable[[Iterate], object] | None
NOT_HERE = ("maximize", "clear_grads", "overrides", "grads", "copy_to", "state_alloc")
"""Settings of an optimizer that make no sense here."""


@dataclass(frozen=True, eq=False)
class MinimizeResult:
    """What `minimize` has found, under SciPy's names.

    Attributes
    ----------
    x, fun, jac : ndarray, float, ndarray
        The point, and the value and the gradient there.
    nit, nfev, njev : int
        How many iterations were done, and how often value and gradient were computed.
    status : int
        Why it ended: see `minimize`.
    success : bool
        True if a tolerance ended the run.
    message : str
        Why it ended, in words.
    history : ndarray
        The values in the order in which they were computed, the first of them at `x0`.
    """

    x: Array
    fun: float
    jac: Array
    nit: int
    nfev: int
    njev: int
    status: int
    success: bool
    message: str
    history: Array


def minimize(
    fun_and_grad: FunAndGrad,
    x0: Any,
    *,
    optimizer: type[Optimizer] | str = "adam",
    maxiter: int = 1000,
    gtol: float | None = 1e-5,
    ftol: float | None = None,
    patience: int = 100,
    bounds: Any = None,
    callback: Callback = None,
    point: Literal["best", "last", "averaged"] = "best",
    nonfinite: Literal["stop", "skip", "raise"] = "stop",
    progress: bool = False,
    **settings: Any,
) -> MinimizeResult:
    r"""Minimize a function whose gradient is known, with any of the optimizers.

    It is for values and gradients that are noisy: of a part of the data, or of a simulation. For a
    smooth function without noise, L-BFGS (``scipy.optimize.minimize``) needs far fewer evaluations.

    .. math:: x_{k+1} = P(x_k + \mathrm{step}(\nabla f(x_k)))

    where :math:`P` moves each element that is out of bounds to its nearest bound. The step sees
    zeros in the gradient where :math:`x_k` is at a bound and would go beyond it, so that no
    momentum gathers there.

    Parameters
    ----------
    fun_and_grad : callable
        Takes the point, a float64 array of the shape of `x0`, and returns the value, a number, and
        the gradient, an array of that shape. The point is a copy, which it may keep or change.
    x0 : array_like of real numbers
        Where to begin, of any shape; not changed.
    optimizer : class, or str
        Any optimizer, or its name in `onepass.optim.registry`.
    maxiter : int >= 0
        How many iterations there may be, each a step and an evaluation.
    gtol : float >= 0, optional
        End where no element of the gradient is larger. With `bounds`, of the projected gradient
        :math:`x - P(x - \nabla f(x))`. Set None where a gradient may vanish by chance, as that of
        a batch may.
    ftol : float >= 0, optional
        End where `patience` iterations in a row have brought no value below :math:`f - t \max(|f|,
        1)`, with :math:`t` this tolerance and :math:`f` the last value that was such a fall.
    patience : int >= 1
        How many iterations `ftol` waits for such a fall.
    bounds : sequence of (low, high), or scipy.optimize.Bounds, optional
        What each element may be: a pair for each in the order of ``x0.ravel()``, with None where
        there is no bound, or an object with `lb` and `ub` of the shape of `x0`. `x0` is moved into
        them. No evaluation is out of bounds.
    callback : callable, optional
        Called with each `Iterate` but the first, `x0`. If it raises StopIteration, the run ends.
    point : {"best", "last", "averaged"}
        Which point is the result: that with the smallest value so far; the last one; or the average
        of the weights that the optimizer keeps, at which the function is evaluated at the end; that
        needs `ema_decay`, `swa_start`, `ASGD` or a schedule-free class. The smallest of noisy
        values is mostly luck: take another one.
    nonfinite : {"stop", "skip", "raise"}
        What to do where the value or the gradient is not finite: end the run; evaluate the same
        point again, for noisy functions; or raise ValueError.
    progress : bool
        Show a bar on a terminal, which needs ``onepass[progress]``.
    **settings
        Those of the optimizer: `lr`, a number or a schedule, and all others, but `maximize`,
        `clear_grads`, `overrides`, `grads`, `copy_to` and `state_alloc`. `weight_decay` is 0 unless
        you set it, since a decay moves the minimum. (`ASGD` also has `lambd`.)

    Returns
    -------
    MinimizeResult
        Its `status` is

        ====== =======================================================================
        0      a tolerance was met: the only success
        1      `maxiter` iterations were done
        3      the value or the gradient was not finite
        99     `callback` raised StopIteration
        130    Ctrl-C: the result is what was found so far
        ====== =======================================================================

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...`` if an argument is not as it must be, or `fun_and_grad`
        returns something else. Exceptions of `fun_and_grad` and `callback` pass through, and so
        does Ctrl-C before the first evaluation has ended.

    Notes
    -----
    Where the optimizer keeps an average of the weights (``ema_decay=``, ``swa_start=``, `ASGD` and
    the schedule-free ones), the function is evaluated there at the end, once more than `history`
    shows, and "best" takes the average if that has the smallest value. The average is of weights
    before :math:`P`, and is then moved into the bounds itself.

    With Adam and rules like it, `lr` is about how far a step moves an element: with the default,
    0.001, a thousand steps move none by much more than 1.

    Differs from

    * ``scipy.optimize.minimize``: value and gradient come from one function; there is no line
      search, so each iteration costs one evaluation; `x0` may have any shape.
    * `Optimizer`: `weight_decay` is 0 by default, and `nonfinite` is another setting.

    References
    ----------
    D. P. Bertsekas, "On the Goldstein-Levitin-Polyak gradient projection method", IEEE Transactions
    on Automatic Control 21, 1976 (projection).

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> def fun_and_grad(x):  # (x - 3)**2, of each element
    ...     return ((x - 3) ** 2).sum(), 2 * (x - 3)
    >>> found = op.minimize(fun_and_grad, [0.0, 5.0], optimizer=op.Adam, lr=0.1)
    >>> found.message
    'No element of the gradient is larger than `gtol`.'
    >>> found.x.round(4)
    array([3., 3.])
    >>> op.minimize(fun_and_grad, [0.0, 5.0], lr=0.1, bounds=[(0, 1), (4, None)]).x
    array([1., 4.])
    """
    rules = Rules(
        check_setting(_CHECKS, "maxiter", maxiter),
        check_setting(_CHECKS, "gtol", gtol),
        check_setting(_CHECKS, "ftol", ftol),
        check_setting(_CHECKS, "patience", patience),
        check_setting(_CHECKS, "nonfinite", nonfinite),
    )
    check_setting(_CHECKS, "point", point)
    for name in NOT_HERE:
        if name in settings:
            raise TypeError(f"{name}: expected no such setting of minimize, got {settings[name]!r}")
    cls = _class_of(optimizer)
    x = real("x0", x0).copy("C")
    box = None if bounds is None else Box(bounds, x.shape)
    if box is not None:
        box.project(x)
    if check_setting(_CHECKS, "progress", progress):
        require("progress", rich="rich")
    opt = cls(x, **{"weight_decay": 0.0, **settings})
    descent = Descent(fun_and_grad, x, opt, box)
    if point == "averaged":
        descent.average()  # an error where the optimizer keeps none
    end, found = _run(descent, rules, callback, point, progress)
    return MinimizeResult(
        x=found.x.copy(),
        fun=found.fun,
        jac=found.jac.copy(),
        nit=descent.nit,
        nfev=descent.nfev,
        njev=descent.nfev,
        status=end.status,
        success=end.status == 0,
        message=end.message,
        history=np.array(descent.history),
    )


def _run(
    descent: Descent, rules: Rules, callback: Callback, point: str, progress: bool
) -> tuple[End, Iterate]:
    """Return why the run ended, and the point to return."""
    try:
        if progress:
            from onepass._progress import progress as bar  # once rich is known to be there

            with bar(rules.maxiter, "iterations") as show:
                end = descent.run(rules, callback, show)
        else:
            end = descent.run(rules, callback)
        averaged = descent.at_average() if point != "last" else None
    except KeyboardInterrupt:
        if not descent.history:
            raise
        end, averaged = INTERRUPTED, None
    if averaged is not None and (point == "averaged" or averaged.fun < descent.best.fun):
        return end, averaged
    return end, descent.last if point == "last" else descent.best


def _class_of(optimizer: Any) -> type[Optimizer]:
    if isinstance(optimizer, str) and optimizer in registry:
        return registry[optimizer]
    is_class = isinstance(optimizer, type) and issubclass(optimizer, Optimizer)
    if is_class and optimizer is not Optimizer:  # the base of all has no rule
        return optimizer  # type: ignore[no-any-return]
    error = ValueError if isinstance(optimizer, str) else TypeError
    expected = f"a class of optimizers or one of the names {', '.join(registry)}"
    raise error(f"optimizer: expected {expected}, got {optimizer!r}")
