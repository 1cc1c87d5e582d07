"""The loop of `minimize`: evaluate, look whether to end, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from onepass._box import Box
from onepass._loss import to_loss
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import Optimizer

FunAndGrad: TypeAlias = Callable[[Array], tuple[Any, Any]]


class Iterate(NamedTuple):
    """A point at which `minimize` has evaluated the function.

    Attributes
    ----------
    x, fun, jac : ndarray, float, ndarray
        The point, and the value and the gradient there; read-only copies, which you may keep.
    nit : int
        How many iterations led to it.
    """

    x: Array
    fun: float
    jac: Array
    nit: int


class Rules(NamedTuple):
    """When a descent ends."""

    maxiter: int
    gtol: float | None
    ftol: float | None
    patience: int
    nonfinite: str


class End(NamedTuple):
    """Why it has ended."""

    status: int
    message: str


NO_SLOPE = End(0, "No element of the gradient is larger than `gtol`.")
NO_FALL = End(0, "In `patience` iterations the value has fallen by no more than `ftol`.")
MAXITER = End(1, "Maximum number of iterations has been reached.")
NOT_FINITE = End(3, "The value or the gradient is not finite.")
STOPPED = End(99, "`callback` raised `StopIteration`.")
INTERRUPTED = End(130, "Interrupted (Ctrl-C).")


class Descent:
    """An optimizer on its way down a function, and the points worth keeping."""

    best: Iterate
    last: Iterate

    def __init__(self, fun_and_grad: FunAndGrad, x: Array, opt: Optimizer, box: Box | None) -> None:
        """Take the parameter `x` of the optimizer, which is inside the box."""
        self._fun_and_grad, self._x, self._opt, self._box = fun_and_grad, x, opt, box
        self.history: list[float] = []
        self.nit = self.nfev = 0

    def run(
        self,
        rules: Rules,
        callback: Callable[[Iterate], object] | None,
        show: Callable[[float, str], object] | None = None,
    ) -> End:
        """Descend until a rule says to end, or the callback does."""
        level, waited = math.inf, 0
        self._evaluate()
        while True:
            now = self.last
            slope = self._slope()
            finite = math.isfinite(now.fun) and math.isfinite(slope)
            if not finite and rules.nonfinite == "raise":
                expected = "fun_and_grad: expected a finite value and gradient"
                raise ValueError(f"{expected}, got {now.fun} and {now.jac}")
            if not finite and rules.nonfinite == "stop":
                return NOT_FINITE
            if finite and rules.gtol is not None and slope <= rules.gtol:
                return NO_SLOPE
            if rules.ftol is not None:
                is_fall = level == math.inf or now.fun < level - rules.ftol * max(abs(level), 1)
                level, waited = (now.fun, 0) if is_fall else (level, waited + 1)
                if waited == rules.patience:
                    return NO_FALL
            if self.nit == rules.maxiter:
                return MAXITER
            if finite:
                self._step()
            self.nit += 1
            self._evaluate()
            if show is not None:
                show(self.nit, f"{self.best.fun:<12.6g}")
            try:
                if callback is not None:
                    callback(self.last)
            except StopIteration:
                return STOPPED

    def at_average(self) -> Iterate | None:
        """Evaluate the average of the weights, if the optimizer keeps one that is finite."""
        try:
            x = self.average()
        except ValueError:
            return None
        return self._at(x) if self.nit and np.isfinite(x).all() else None

    def average(self) -> Array:
        """Return the average of the weights; ValueError where the optimizer keeps none."""
        with self._opt.averaged():
            x = self._x.copy()
        if self._box is not None:
            self._box.project(x)
        return x

    def _evaluate(self) -> None:
        found = self._at(self._x)
        is_first = not self.history
        if is_first or found.fun < self.best.fun or math.isnan(self.best.fun):
            self.best = found
        self.last = found
        self.history.append(found.fun)

    def _at(self, x: Array) -> Iterate:
        returned = self._fun_and_grad(x.copy())
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise TypeError(
                f"fun_and_grad: expected it to return a value and a gradient, got {returned!r}"
            )
        self.nfev += 1
        value = to_loss("fun_and_grad", returned[0])
        grad = real("fun_and_grad", returned[1]).copy()
        if grad.shape != x.shape:
            expected = f"fun_and_grad: expected a gradient of shape {x.shape}"
            raise ValueError(f"{expected}, got {grad.shape}")
        kept = x.copy()
        kept.flags.writeable = grad.flags.writeable = False
        return Iterate(kept, value, grad, self.nit)

    @quiet
    def _slope(self) -> float:
        """Return how steep it is here, in the direction in which it is steepest."""
        x, grad = self.last.x, self.last.jac
        way = grad if self._box is None else self._box.way(x, grad)
        return float(np.abs(way).max(initial=0.0))

    def _step(self) -> None:
        grad = self.last.jac
        if self._box is None:
            self._opt.step(grad)
        else:
            self._opt.step(self._box.inward(self._x, grad))
            self._box.project(self._x)


def real(name: str, value: Any) -> Array:
    """Return an array of float64."""
    array = np.asarray(value)
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array.astype(np.float64, copy=False)
