"""Batch normalisation of a batch that comes in pieces: from several devices, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from onepass._typing import Array
from onepass.batchnorm import _passes
from onepass.batchnorm.functional import CHECKS
from onepass.batchnorm.reference import MAX_OFF_CENTER, Float64


class Moments(NamedTuple):
    """Sums over the values of each channel, about a center near their mean.

    Attributes
    ----------
    count : int
        Values of a channel.
    center : ndarray of float64, shape (channels,)
        What is taken off each value first.
    sum : ndarray of float64, shape (channels,)
        Of what is left.
    square : ndarray of float64, shape (channels,)
        The sum of the squares of what is left.

    Notes
    -----
    The mean is ``center + sum / count``, and the biased variance is
    ``square / count - (sum / count) ** 2``. These sums are kept, and not the mean and the variance,
    because dividing by the count would round: sums that are exact stay so when pieces are merged.
    """

    count: int  # type: ignore[assignment]
    center: Float64
    sum: Float64
    square: Float64


class GradientSums(NamedTuple):
    r"""Sums over the values of each channel that a backward pass needs.

    Attributes
    ----------
    count : int
        Values of a channel.
    product : ndarray of float64, shape (channels,)
        Sum of :math:`g (x - \mu)`: times `saved_invstd`, it is the gradient of `weight`.
    sum : ndarray of float64, shape (channels,)
        Sum of :math:`g`: the gradient of `bias`.
    """

    count: int  # type: ignore[assignment]
    product: Float64
    sum: Float64


def batch_norm_moments(x: Array, *, axis: int = 1, num_threads: int | None = None) -> Moments:
    r"""Sum up a piece of a batch: all that `batch_norm_normalize` has to know of it.

    .. math:: n, \quad K, \quad \sum (x - K), \quad \sum (x - K)^2

    for every channel, with :math:`K` as in `batch_norm_train`.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        As for `batch_norm_train`. It may have one value per channel, and none.
    axis : int
        The channels' axis.
    num_threads : int, optional
        The default is `onepass.get_num_threads()`.

    Returns
    -------
    Moments
        A named tuple of `count`, `center`, `sum` and `square`, the last three of float64.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    With `batch_norm_merge` and `batch_norm_normalize` the statistics are those of
    `batch_norm_train` for the whole batch. Where float64 holds every sum exactly, which is so for
    values that are small multiples of one power of two, they are the same bits, however the batch
    is cut. For other values the pieces decide in which order the sums are rounded: the mean and
    the variance then depend on the cut in their last digits (1e-13 of the variance for less than a
    thousand pieces), far below what a float32 `y` shows. For one cut they are the same bits on any
    number of threads and on every instruction set.

    The squares of float64 values above 1e150 are infinite here; `batch_norm_train` takes them in
    other units.

    Differs from PyTorch's ``SyncBatchNorm``, whose pieces are summed up in float32, as a mean and
    an inverse deviation, which rounds both before they are merged.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance:
    analysis and recommendations", The American Statistician 37(3), 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> op.batch_norm_moments(np.array([[1.0, 5.0], [3.0, 5.0]]))
    Moments(count=2, center=array([2., 5.]), sum=array([0., 0.]), square=array([2., 0.]))
    """
    return Moments(*_passes.piece_moments(x, axis, num_threads))


@overload
def batch_norm_merge(pieces: Sequence[Moments]) -> Moments: ...
@overload
def batch_norm_merge(pieces: Sequence[GradientSums]) -> GradientSums: ...
def batch_norm_merge(pieces: Sequence[Any]) -> Any:
    r"""Merge what is known of the pieces of a batch, in their order.

    Sums about another center :math:`K'` are, with :math:`d = K - K'`,

    .. math::

        \sum (x - K') &= \sum (x - K) + n d \\
        \sum (x - K')^2 &= \sum (x - K)^2 + d \left(2 \sum (x - K) + n d\right)

    Parameters
    ----------
    pieces : sequence of Moments, or of GradientSums
        What `batch_norm_moments` or `batch_norm_gradient_sums` returned for each piece, at least
        one. A piece without values changes nothing.

    Returns
    -------
    Moments or GradientSums
        Of all pieces together; new arrays.

    Raises
    ------
    TypeError, ValueError
        ``pieces: expected ..., got ...``.

    Notes
    -----
    The center is that of the first piece with values, unless it is more than seven standard
    deviations from the mean of all, which then takes its place. The order of the pieces decides
    the order of the sums: whoever merges the same pieces in the same order has the same bits.

    Differs from PyTorch's ``batch_norm_gather_stats_with_counts``, which weighs the pieces'
    variances by their counts.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance:
    analysis and recommendations", The American Statistician 37(3), 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> pieces = [np.array([[1.0], [2.0]]), np.array([[6.0]])]
    >>> op.batch_norm_merge([op.batch_norm_moments(piece) for piece in pieces])
    Moments(count=3, center=array([1.5]), sum=array([4.5]), square=array([20.75]))
    """
    pieces = list(pieces)
    kind = type(pieces[0]) if pieces else None
    if kind not in (Moments, GradientSums) or any(type(piece) is not kind for piece in pieces):
        found = ", ".join(sorted({type(piece).__name__ for piece in pieces})) or "none"
        raise TypeError(f"pieces: expected Moments, or GradientSums, at least one, got {found}")
    shapes = {np.shape(array) for piece in pieces for array in piece[1:]}
    if len(shapes) > 1:
        raise ValueError(f"pieces: expected as many channels in each, got shapes {sorted(shapes)}")
    with np.errstate(all="ignore"):
        return _add(pieces) if kind is GradientSums else _merge(pieces)


def _add(pieces: list[GradientSums]) -> GradientSums:
    count, product, total = 0, np.zeros_like(pieces[0].product), np.zeros_like(pieces[0].sum)
    for piece in pieces:
        count += piece.count
        product, total = product + piece.product, total + piece.sum
    return GradientSums(count, product, total)


def _merge(pieces: list[Moments]) -> Moments:
    pieces = [piece for piece in pieces if piece.count] or pieces[:1]
    merged = _about(pieces, pieces[0].center)
    if not merged.count:
        return merged
    delta = merged.sum / merged.count
    var = merged.square / merged.count - delta * delta
    far = delta * delta > MAX_OFF_CENTER * var
    if not far.any():
        return merged
    return _about(pieces, np.where(far, merged.center + delta, merged.center))


def _about(pieces: list[Moments], center: Float64) -> Moments:
    count, total, square = 0, np.zeros_like(center), np.zeros_like(center)
    for piece in pieces:
        moved = piece.center - center
        of_move = piece.count * moved
        count += piece.count
        total = total + (piece.sum + of_move)
        square = square + (piece.square + moved * (2 * piece.sum + of_move))
    return Moments(count, center.copy(), total, square)


def batch_norm_normalize(
    x: Array,
    moments: Moments,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    unbiased_running_var: bool = True,
    nonfinite: str = "propagate",
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Array, Float64, Float64]:
    r"""Normalise a piece of a batch with the statistics of all of it.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean :math:`\mu` and the biased variance :math:`\sigma^2` that `moments` give.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        As for `batch_norm_train`. It may have one value per channel, and none.
    moments : Moments
        Of the whole batch: what `batch_norm_merge` returned for the moments of its pieces.
    running_mean, running_var : ndarray of float32 or float64, shape (channels,), optional
        Updated in place with the statistics of the whole batch, for which one of its pieces has to
        be enough: `unbiased_running_var` takes :math:`n / (n - 1)` of all its values. Leave them
        out with the other pieces.
    weight, bias, momentum, eps, axis, unbiased_running_var, nonfinite
        As for `batch_norm_train`.
    relu, residual, out, num_threads
        As for `batch_norm_train`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in `x`'s memory layout.
    saved_mean, saved_invstd : ndarray of float64, shape (channels,)
        Of the whole batch, for `batch_norm_gradient_sums` and `batch_norm_input_gradient`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``; also for a batch with one value per channel in all
        pieces together. Nothing has changed then.

    Notes
    -----
    Differs from PyTorch's ``batch_norm_elemt`` as `batch_norm_train` differs from PyTorch.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> pieces = [np.array([[1.0], [2.0]]), np.array([[6.0]])]
    >>> whole = op.batch_norm_merge([op.batch_norm_moments(piece) for piece in pieces])
    >>> [op.batch_norm_normalize(piece, whole)[0].round(4).ravel() for piece in pieces]
    [array([-0.9258, -0.4629]), array([1.3887])]
    """
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: expected Moments, got {type(moments).__name__}")
    return _passes.piece_train(
        x,
        *moments,
        None,
        weight,
        bias,
        running_mean,
        running_var,
        None,
        CHECKS["momentum"]("momentum", momentum),
        eps,
        axis,
        unbiased_running_var,
        nonfinite,
        relu,
        residual,
        out,
        num_threads,
    )


def batch_norm_gradient_sums(
    dy: Array,
    x: Array,
    *,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    axis: int = 1,
    relu: bool = False,
    residual: Array | None = None,
    num_threads: int | None = None,
) -> GradientSums:
    r"""Sum up the gradients over a piece of a batch.

    .. math:: n, \quad \sum g (x - \mu), \quad \sum g

    for every channel, with :math:`g` for `dy` where ReLU let `y` pass and 0 elsewhere.

    Parameters
    ----------
    dy, x
        As for `batch_norm_backward`; there may be one value per channel, and none.
    saved_mean, saved_invstd : ndarray of float64 or float32, shape (channels,)
        What `batch_norm_normalize` returned.
    weight, bias, axis, relu, residual, num_threads
        As for `batch_norm_backward`.

    Returns
    -------
    GradientSums
        A named tuple of `count`, `product` and `sum`, the last two of float64. The gradients of
        `weight` and `bias` are ``product * saved_invstd`` and ``sum``. `batch_norm_merge` adds up
        those of all pieces.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    How far the sums depend on the cut, `batch_norm_moments` says.

    Differs from PyTorch's ``batch_norm_backward_reduce`` in returning the sums once, in float64.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x, one = np.array([[1.0], [2.0], [6.0]]), np.ones(1)
    >>> op.batch_norm_gradient_sums(np.ones((3, 1)), x, saved_mean=2 * one, saved_invstd=one / 2)
    GradientSums(count=3, product=array([3.]), sum=array([3.]))
    """
    return GradientSums(
        *_passes.piece_gradient_sums(
            dy, x, saved_mean, saved_invstd, weight, bias, axis, relu, residual, num_threads
        )
    )


def batch_norm_input_gradient(
    dy: Array,
    x: Array,
    sums: GradientSums,
    *,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    axis: int = 1,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Gradient of a piece of a batch, through the statistics of all of it.

    .. math:: dx = \gamma r \left(g - \frac1n \sum g - \frac{(x - \mu) r^2}n
        \sum g (x - \mu)\right)

    with :math:`r` for `saved_invstd`, and :math:`n` and the sums of the whole batch.

    Parameters
    ----------
    sums : GradientSums
        Of the whole batch: what `batch_norm_merge` returned for the sums of its pieces.
    dy, x, saved_mean, saved_invstd, weight, bias, axis, relu, residual, num_threads
        As for `batch_norm_gradient_sums`.
    out : ndarray like `x`, in the same memory layout, optional
        Takes `dx`; it may be `dy`, `x` or `residual` itself.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in `x`'s memory layout.
    dresidual : ndarray
        Only with `residual`; then a tuple of both.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    The gradients of `weight` and `bias` are ``sums.product * saved_invstd`` and ``sums.sum``.

    Differs from PyTorch's ``batch_norm_backward_elemt`` in the gradient of the residual.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x, dy = np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [0.0], [0.0]])
    >>> y, mean, invstd = op.batch_norm_train(x)
    >>> saved = {"saved_mean": mean, "saved_invstd": invstd}
    >>> sums = op.batch_norm_gradient_sums(dy, x, **saved)
    >>> op.batch_norm_input_gradient(dy[:2], x[:2], sums, **saved).round(4).ravel()
    array([ 0.1763, -0.2204])
    """
    if not isinstance(sums, GradientSums):
        raise TypeError(f"sums: expected GradientSums, got {type(sums).__name__}")
    dx, _, _, *dresidual = _passes.piece_backward(
        dy,
        x,
        *sums,
        None,
        saved_mean,
        saved_invstd,
        weight,
        bias,
        axis,
        relu,
        residual,
        out,
        None,
        None,
        num_threads,
    )
    return (dx, *dresidual) if dresidual else dx
