r"""How far to go along a direction: step sizes found anew in every step.

Along a direction :math:`d`, by default :math:`-g`, the loss is a function of one number,

.. math:: \phi(\eta) = f(w + \eta d)

and a line search looks for an :math:`\eta` at which it is small: `best_of` among given ones,
`backtracking` by shrinking one until it is good enough.

Use a loss that stays the same between evaluations: of the whole data, or of one batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from onepass import _core
from onepass._hyperparameters import Number, Whole
from onepass._loss import to_loss
from onepass._quiet import quiet
from onepass._typing import Grads, OwnArrays, Tree
from onepass.optim import SGD
from onepass.optim._storage import labels_with_copies
from onepass.optim._tree import Leaves, Node, flatten, mirror

__all__ = ["LineSearch", "LineSearchInfo", "backtracking", "best_of"]

_STEP_SIZE = Number(above=0.0)
_FRACTION = Number(above=0.0, below=1.0)


class LineSearchInfo(NamedTuple):
    """What a line search reports.

    Attributes
    ----------
    eta : float
        The step size that was taken; 0 where none was, and the parameters are as they were.
    loss : float
        The loss there.
    evaluations : int
        How often the loss was computed, once at the start included.
    """

    eta: float
    loss: float
    evaluations: int


class LineSearch(ABC):
    """Base of the line searches: what one is called with, and what it leaves behind."""

    def __call__(
        self,
        params: Tree,
        grads: Grads,
        loss: Callable[[], float],
        *,
        direction: Grads = None,
        copy_to: OwnArrays = None,
    ) -> LineSearchInfo:
        r"""Move the parameters in place to :math:`w + \eta d` for an :math:`\eta` that it chooses.

        The result is to the bit that of one step of ``onepass.SGD(params, lr=eta)``. While the
        search runs it takes a copy of the parameters. Each trial starts from that copy, and what
        comes out of `loss`, Ctrl-C included, leaves the parameters as they were, to the bit.

        Parameters
        ----------
        params : ndarray, sequence or mapping of them
            As for the optimizers, but without groups.
        grads : like the parameters
            The gradients at the start, as for `Optimizer.step`; None in it leaves that parameter
            alone.
        loss : callable
            Takes nothing, reads the parameters where they are and returns the loss. It must not
            change the gradients or the direction. A trial whose loss is not finite is rejected.
        direction : like the parameters, optional
            Where to go instead of down the gradients.
        copy_to : like the parameters, optional
            Arrays of 16 bits that hold the parameters rounded, for a loss that reads those: as for
            the optimizers. Each trial writes them.

        Returns
        -------
        LineSearchInfo

        Raises
        ------
        TypeError, ValueError
            If an array is not as it must be, or the loss at the start is not finite. Then nothing
            has changed.
        """
        line = _Line(params, grads, loss, direction, copy_to)
        eta, found = self._choose(line)
        if eta:
            line.move(eta)
        return LineSearchInfo(eta, found, line.evaluations)

    @abstractmethod
    def _choose(self, line: _Line) -> tuple[float, float]:
        """Return the step size to take and the loss there."""


class best_of(LineSearch):
    r"""Try each of a few step sizes, and take the one with the smallest loss.

    .. math:: \eta = \arg\min_{\eta \in \{0, \eta_1, \ldots, \eta_n\}} f(w + \eta d)

    The 0 is the start: where no step size has a smaller loss than it, the parameters stay. Of
    equal losses the first counts.

    Parameters
    ----------
    etas : iterable of float > 0
        The step sizes, at least one.

    Raises
    ------
    TypeError, ValueError
        If a step size is no such number.

    See Also
    --------
    LineSearch.__call__ : what it is called with.

    Notes
    -----
    It costs one evaluation of the loss at the start and one for each step size.

    Examples
    --------
    Of ``w**2 / 2`` a step of size 1 finds the minimum:

    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0])
    >>> search = op.line_search.best_of([10, 1, 0.1])
    >>> search(w, w.copy(), lambda: w @ w / 2)
    LineSearchInfo(eta=1.0, loss=0.0, evaluations=4)
    >>> w
    array([0.])
    """

    def __init__(self, etas: Iterable[float]) -> None:
        self.etas = tuple(_STEP_SIZE(f"etas[{i}]", eta) for i, eta in enumerate(etas))
        if not self.etas:
            raise ValueError("etas: expected at least one, got none")

    def _choose(self, line: _Line) -> tuple[float, float]:
        losses = {0.0: line.loss_at_start()}
        for eta in self.etas:
            losses[eta] = line.loss_at(eta)
        return min(losses.items(), key=lambda item: item[1])


class backtracking(LineSearch):
    r"""Shrink the step size until the loss falls enough: Armijo's condition.

    The first :math:`\eta` of :math:`\eta_0, \eta_0 \rho, \eta_0 \rho^2, \ldots` with

    .. math:: f(w + \eta d) \le f(w) + c \, \eta \, g \cdot d

    where the product goes over all parameters. Where none of `max_trials` is good enough, the
    parameters stay and `eta` is 0.

    Parameters
    ----------
    eta : float > 0
        :math:`\eta_0`, the step size to begin with.
    rho : float in (0, 1)
        What it is multiplied by.
    c : float in (0, 1)
        The share of the fall that the slope promises which must be reached.
    max_trials : int >= 1

    Raises
    ------
    TypeError, ValueError
        If a number is out of range; in a call also if the direction is not one of descent,
        :math:`g \cdot d \ge 0`, or :math:`g \cdot d` is not finite. Gradients that are all 0 are
        no error: the parameters stay.

    See Also
    --------
    LineSearch.__call__ : what it is called with.

    Notes
    -----
    Differs from

    * SciPy's ``scipy.optimize.line_search``: that one also asks for a slope that has become flat
      (Wolfe), and so for gradients at the trial points.
    * optax's ``scale_by_backtracking_linesearch``: the same condition with ``slope_rtol`` for `c`
      and ``decrease_factor`` for `rho`; there the search begins at the last accepted step size,
      enlarged, and takes the last trial where none was good enough.

    References
    ----------
    L. Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives",
    Pacific Journal of Mathematics 16, 1966.
    J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, 2006, algorithm 3.1.

    Examples
    --------
    Of ``w**2 / 2`` Newton's direction is ``-w``. Twice as far the loss is what it was; half of
    that is the minimum:

    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0, -4.0])
    >>> search = op.line_search.backtracking(eta=2.0)
    >>> search(w, w.copy(), lambda: w @ w / 2, direction=-w)
    LineSearchInfo(eta=1.0, loss=0.0, evaluations=3)
    >>> w
    array([0., 0.])
    """

    def __init__(
        self, eta: float = 1.0, *, rho: float = 0.5, c: float = 1e-4, max_trials: int = 30
    ) -> None:
        self.eta = _STEP_SIZE("eta", eta)
        self.rho = _FRACTION("rho", rho)
        self.c = _FRACTION("c", c)
        self.max_trials = Whole(low=1)("max_trials", max_trials)

    def _choose(self, line: _Line) -> tuple[float, float]:
        slope = line.slope()
        start = line.loss_at_start()
        for trial in range(self.max_trials):
            eta = self.eta * self.rho**trial
            loss = line.loss_at(eta)
            if loss <= start + self.c * eta * slope:
                return eta, loss
        return 0.0, start


class _Line:
    """The parameters along a direction."""

    def __init__(
        self,
        params: Tree,
        grads: Grads,
        loss: Callable[[], float],
        direction: Grads,
        copy_to: OwnArrays,
    ) -> None:
        leaves = Leaves()
        shape = flatten(params, leaves)
        self._labels, self._params = leaves.labels, leaves.arrays
        copies: list[Any] | None = None
        if copy_to is not None:
            mirror(shape, copy_to, copies := [])
        _core.check_params(self._labels, self._params, copies)
        present = [array for array in copies or () if array is not None]
        self._kept = [*self._params, *present]
        self._kept_labels = labels_with_copies(self._labels, copies)
        self._grads = self._along = self._like_params("grads", shape, grads)
        self._up = direction is not None  # a direction is added, gradients are subtracted
        if self._up:
            self._along = self._like_params("direction", shape, direction)
        # With a master, a trial would move it, and leaving the trial would not move it back.
        with self._restoring():  # the copies, which it writes
            self._sgd = SGD(self._params, maximize=self._up, rounding="nearest", copy_to=copies)
        self._loss = loss
        self.evaluations = 0

    def _like_params(self, name: str, shape: Node, tree: Grads) -> list[Any]:
        arrays: list[Any] = []
        mirror(shape, tree, arrays)
        for i, (label, param) in enumerate(zip(self._labels, self._params, strict=True)):
            if arrays[i] is None:
                continue
            arrays[i] = _core.readable(f"{name}{label}", arrays[i], param)
            if arrays[i].shape != param.shape:
                got = arrays[i].shape
                raise ValueError(f"{name}{label}: expected shape {param.shape}, got {got}")
        return arrays

    def move(self, eta: float) -> None:
        """Move the parameters: one native call, so all of them or none."""
        self._sgd.param_groups[0]["lr"] = eta
        self._sgd.step(self._along)

    def loss_at_start(self) -> float:
        """Return the loss where the line begins, which must be finite."""
        loss = self._evaluate(0.0)
        if not math.isfinite(loss):
            raise ValueError(f"loss: expected a finite number at the start, got {loss}")
        return loss

    def loss_at(self, eta: float) -> float:
        """Return the loss at a point of the line, infinite where it is not finite."""
        loss = self._evaluate(eta)
        return loss if math.isfinite(loss) else math.inf

    def _evaluate(self, eta: float) -> float:
        with self._restoring():
            self._sgd._commit(self._sgd._engine)
            if eta:
                self.move(eta)
            self.evaluations += 1
            return to_loss("loss", self._loss())

    def _restoring(self) -> _core.Shown:
        """Return a block that shows parameters and copies themselves, and so puts them back."""
        return _core.Shown(self._kept_labels, self._kept, self._kept)

    @quiet
    def slope(self) -> float:
        """Return the derivative of the loss along the line at its start, which must not rise."""
        products = (
            float(np.multiply(grad, along, dtype=np.float64).sum())
            for grad, along in zip(self._grads, self._along, strict=True)
            if grad is not None and along is not None
        )
        slope = sum(products) if self._up else -sum(products)
        if not math.isfinite(slope):
            raise ValueError(f"grads: expected a finite slope along the direction, got {slope}")
        if self._up and slope >= 0:
            raise ValueError(f"direction: expected one of descent, got a slope of {slope:g}")
        return slope
