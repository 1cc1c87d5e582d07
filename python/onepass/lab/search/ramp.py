"""Smith's learning-rate range test: the rate grows from step to step."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onepass import _core
from onepass._hyperparameters import DECAY_RATE, Number, Whole
from onepass._loss import to_loss
from onepass._quiet import quiet
from onepass._shard.sharded import ShardedOptimizer
from onepass._typing import Array, Grads
from onepass.ema import average
from onepass.lab.search.picture import draw_ramp
from onepass.optim import Optimizer, _storage


@dataclass(frozen=True, eq=False)
class RangeTest:
    """What a learning-rate range test saw.

    Attributes
    ----------
    lrs : ndarray
        The learning rate of each step, the largest of all groups, on a log scale.
    losses : ndarray
        The loss before that step.
    smoothed : ndarray
        The exponential average of the losses, with bias correction.
    diverged : bool
        Whether the loss ended the test: it rose too far, or was not finite.
    """

    lrs: Array
    losses: Array
    smoothed: Array
    diverged: bool

    @property
    @quiet
    def steep(self) -> float:
        """The rate at which the smoothed loss falls most steeply against the rate's logarithm.

        On the way to its smallest value, after the first tenth of the curve, where the average is
        over a few batches only. Where it never falls this is the lowest rate.
        """
        end = max(int(self.smoothed.argmin()), 1)
        begin = min(len(self.smoothed) // 10, end - 1)
        falls = np.diff(self.smoothed[begin : end + 1])
        return float(self.lrs[begin + falls.argmin()])

    @property
    @quiet
    def minimum(self) -> float:
        """A tenth of the rate at which the smoothed loss is smallest."""
        return float(self.lrs[self.smoothed.argmin()] / 10)

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Draw loss and suggestions into a file, which needs ``onepass[plot]``."""
        draw_ramp(self, path)


def range_test(
    optimizer: Optimizer,
    loss_and_grads: Callable[[], tuple[float, Grads]],
    *,
    steps: int = 100,
    low: float = 1e-7,
    high: float = 10.0,
    diverge: float = 4.0,
    beta: float = 0.9,
) -> RangeTest:
    r"""Raise the learning rate from step to step and record the loss.

    In step :math:`t = 0, \ldots, n - 1` of :math:`n` the rate is

    .. math:: \eta_t = \mathrm{low} \, (\mathrm{high} / \mathrm{low})^{t / (n - 1)}

    in the group whose own rate is largest. Each other group keeps its fraction of that, as
    `layer_decay` gives it, say.

    The test ends early where the loss is not finite, which is not recorded, or where the smoothed
    loss :math:`\bar L` has risen to `diverge` times its smallest value,
    :math:`\bar L_t > \bar L_{\min} + (\mathrm{diverge} - 1) |\bar L_{\min}|`.

    Afterwards, also where something is raised or Ctrl-C is pressed, parameters and optimizer are
    as before, to the bit; it takes a copy of the parameters and of the state. What else the
    function changes, as bound gradients or the running averages of a BatchNorm, stays changed.

    Parameters
    ----------
    optimizer : Optimizer
        With the settings to test, and without `onepass.shard`. Of its learning rates only the
        fractions matter, those of the coming step.
    loss_and_grads : callable
        Is called before each step. Takes nothing, draws its own batch, and returns the loss and
        the gradients, as for `Optimizer.step`: None for those that are bound or accumulated.
    steps : int >= 2
    low, high : float > 0
        The first and the last learning rate.
    diverge : float > 1
    beta : float in [0, 1)
        Of the average that smooths the losses, see `onepass.ema`.

    Returns
    -------
    RangeTest
        The curve, and two suggestions.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as it must be, or the loss is not finite in the first two steps.

    Notes
    -----
    The two suggestions are rules of thumb, and may differ several times over: look at the curve.

    Differs from

    * Smith: his rate grows linearly and the accuracy is recorded; the exponential ramp, the
      smoothing and the two suggestions are fastai's.
    * fastai's ``lr_find``: `beta` is 0.98 there; both suggestions leave out the first tenth and the
      last five points, `steep` looks also behind the minimum, and `valley` is the default. A
      negative loss ends the test there.

    References
    ----------
    L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017,
    arXiv:1506.01186, section 3.3.

    Examples
    --------
    The loss ``w**2 / 2`` diverges beyond the rate 2:

    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([1.0])
    >>> opt = op.SGD(w)
    >>> curve = op.search.range_test(opt, lambda: (w.item() ** 2 / 2, w.copy()), beta=0)
    >>> curve.diverged, bool(2 < curve.lrs[-1] < 10)
    (True, True)
    >>> w
    array([1.])
    """
    steps = Whole(low=2)("steps", steps)
    low = Number(above=0.0)("low", low)
    high = Number(above=low)("high", high)
    diverge = Number(above=1.0)("diverge", diverge)
    beta = DECAY_RATE("beta", beta)
    lrs = _rates(low, high, steps)
    if isinstance(optimizer, ShardedOptimizer):
        expected = "one without op.shard, as each process has a loss of its own"
        raise ValueError(f"optimizer: expected {expected}, got one with it")
    # The test runs on a copy of the optimizer's state and groups. The end of the block puts the
    # originals back, and what the parameters and the arrays of `copy_to` hold now.
    engine = optimizer._engine
    engine.check_outside("range_test")
    now = engine.contents()
    copies = [array for array in now["copies"] if array is not None]
    arrays = [*now["params"], *copies]
    kept = {id(array): array for array in [*arrays, *(now["bound"] or ())]}
    trial = copy.deepcopy(optimizer, kept)
    labels = _storage.labels_with_copies(now["labels"], now["copies"])
    with _core.Shown(labels, arrays, arrays, restored=[(optimizer, engine)]):
        optimizer._engine = trial._engine
        return _ramp(optimizer, loss_and_grads, lrs, diverge, beta)


@quiet
def _rates(low: float, high: float, steps: int) -> Array:
    return np.geomspace(low, high, steps)


def _ramp(
    optimizer: Optimizer,
    loss_and_grads: Callable[[], tuple[float, Grads]],
    lrs: Array,
    diverge: float,
    beta: float,
) -> RangeTest:
    if optimizer.nonfinite == "raise":
        optimizer.nonfinite = "propagate"  # into the loss, which ends the test
    optimizer.skip_grad_norm = None  # what too large a rate does is what the test looks for
    own = [values["lr"] for values in optimizer._engine.values_of_coming_step()]
    largest = max(own)
    fractions = [rate / largest if largest else 1.0 for rate in own]
    losses: list[float] = []
    smoothed: Array = np.empty(0)
    diverged = True
    for lr in lrs.tolist():
        for group, fraction in zip(optimizer.param_groups, fractions, strict=True):
            group["lr"] = lr * fraction
        given, grads = loss_and_grads()
        loss = to_loss("loss_and_grads", given)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        smoothed = average(losses, beta, bias_correction=True)
        best, now = smoothed.min().item(), smoothed[-1].item()
        if now > best + (diverge - 1) * abs(best):
            break
        optimizer.step(grads)
    else:
        diverged = False
    if len(losses) < 2:
        expected = "a finite loss before the first two steps"
        raise ValueError(f"loss_and_grads: expected {expected}, got {loss}")
    return RangeTest(lrs[: len(losses)], np.array(losses), smoothed, diverged)
