"""Running statistics anew, for weights that no batch has been through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from onepass.batchnorm._loading import write
from onepass.batchnorm.layer import BatchNorm

_SET_ASIDE = ("momentum", "training", "_forward")


def update_bn(
    layers: BatchNorm | Iterable[BatchNorm],
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
) -> None:
    r"""Compute running statistics anew, as the plain average over some batches.

    .. math:: \mu = \frac{1}{k} \sum_{i=1}^{k} \mu_i, \qquad
        \sigma^2 = \frac{1}{k} \sum_{i=1}^{k} \sigma_i^2

    with the mean :math:`\mu_i` and the variance :math:`\sigma_i^2` of each of the :math:`k`
    batches. Averaged weights need this, because the running statistics are those of the weights
    that were trained.

    Parameters
    ----------
    layers : BatchNorm, or iterable of BatchNorm
        All of the network. One without running statistics is left as it is.
    batches : iterable
        What `forward` is called with, one after the other. Without `forward` each is a function,
        which is called without arguments.
    forward : callable, optional
        Runs the network on a batch; what it returns is not used. It calls the layers as ``bn(x)``:
        a `training` argument would go before the mode that they are put into here.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``; also if there are no batches, or a layer counted
        none. After that, and after any error of `forward` or of `batches`, all layers are as they
        were.

    Notes
    -----
    While it runs, the layers are in training mode and have ``momentum=None``. Afterwards the
    settings are what they were, and so is what `backward` goes back through.

    Differs from PyTorch's ``torch.optim.swa_utils.update_bn`` in naming the layers, since there is
    no model to ask, in passing each batch on as it is (PyTorch takes the first element of a tuple),
    in putting everything back after an error, and in refusing a run without batches, where
    PyTorch resets the statistics.

    References
    ----------
    P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov and A. G. Wilson, "Averaging weights leads to
    wider optima and better generalization", UAI 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x, bn = np.array([[1.0], [3.0], [5.0], [5.0]]), op.BatchNorm(1, dtype=np.float64)
    >>> w = np.ones((1, 1))
    >>> opt = op.SGD([w], lr=1.0, swa_start=1)
    >>> info = opt.step([np.array([[-1.0]])])
    >>> with opt.averaged():
    ...     op.update_bn([bn], [x[:2], x[2:]], lambda batch: bn(batch @ w))
    ...     mean, var = bn.running_mean, bn.running_var
    >>> mean, var, bn.momentum
    (array([7.]), array([4.]), 0.1)
    """
    found = _checked(layers)
    tracked = [bn for bn in found if bn.running_mean is not None]
    arrays = [
        array
        for bn in tracked
        for array in (bn.running_mean, bn.running_var, bn.num_batches_tracked)
        if array is not None
    ]
    old = [np.array(array) for array in arrays]
    settings = [{name: getattr(bn, name) for name in _SET_ASIDE} for bn in found]
    is_done = False
    try:
        try:
            for bn in found:
                bn.reset_running_stats()
                bn.momentum, bn.training = None, True
            _run(batches, forward)
            _check_counted(tracked)
            is_done = True
        finally:
            _put_back(found, settings)
    finally:  # again: Ctrl-C may have struck the first time
        _put_back(found, settings)
        if not is_done:
            write(arrays, old)


def _checked(layers: Any) -> list[BatchNorm]:
    given = [layers] if isinstance(layers, BatchNorm) else layers
    if not isinstance(given, Iterable):
        raise TypeError(f"layers: expected BatchNorm layers, got {type(layers).__name__}")
    found = list(given)
    for index, bn in enumerate(found):
        if not isinstance(bn, BatchNorm):
            raise TypeError(f"layers[{index}]: expected a BatchNorm, got {type(bn).__name__}")
    return list({id(bn): bn for bn in found}.values())


def _run(batches: Iterable[Any], forward: Callable[[Any], Any] | None) -> None:
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable, got {type(batches).__name__}")
    if forward is not None and not callable(forward):
        raise TypeError(f"forward: expected a function of a batch, got {type(forward).__name__}")
    count = 0
    for count, batch in enumerate(batches, 1):  # noqa: B007
        if forward is not None:
            forward(batch)
        elif callable(batch):
            batch()
        else:
            raise TypeError(
                "batches: expected functions, as there is no forward to give each batch to, "
                f"got {type(batch).__name__}"
            )
    if not count:
        raise ValueError("batches: expected at least one, got none")


def _check_counted(layers: list[BatchNorm]) -> None:
    for bn in layers:
        if not bn.num_batches_tracked:
            raise ValueError(
                "forward: expected it to run every layer in the layer's own mode, as bn(x) does, "
                f"got no batch counted by {bn!r}"
            )


def _put_back(layers: list[BatchNorm], settings: list[dict[str, Any]]) -> None:
    for bn, kept in zip(layers, settings, strict=True):
        vars(bn).update(kept)
