"""Batch normalisation as functions of arrays, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import index
from typing import Any

import numpy as np

from onepass import _core
from onepass._hyperparameters import Choice, Flag, Number
from onepass._typing import Array
from onepass.batchnorm.reference import Float64

MOST_AXES = 64
"""NumPy's limit."""


def _check_axis(name: str, value: Any) -> int:
    # Whether there is one, the array says.
    if isinstance(value, bool | np.bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        axis = index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if abs(axis) > MOST_AXES:
        raise ValueError(f"{name}: expected an axis of x, got {value!r}")
    return axis


CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "eps": Number(above=0.0),
    "momentum": Number(high=1.0),
    "axis": _check_axis,
    "unbiased_running_var": Flag(),
    "nonfinite": Choice(("propagate", "skip")),
    "relu": Flag(),
}


_core.check_batch_norm(CHECKS)


@_core.native
def batch_norm_train(
    x: Array,
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
    r"""Normalise every channel with the mean and the variance of the batch.

    .. math::

        \mu &= \frac1n \sum x, \qquad \sigma^2 = \frac1n \sum (x - \mu)^2 \\
        y &= \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    over the :math:`n` values of a channel: all that share an index on `axis`. Then, if asked,
    ``y += residual`` and ``y = max(y, 0)``.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16 (of ml_dtypes)
        Any rank from 2, any memory layout: NCHW with ``axis=1``, NHWC with ``axis=-1``, (N, C),
        (N, C, L), 3-D images. One whose elements do not fill their memory in some order of the axes
        (a slice, a reversed or repeated array) is copied.
    weight, bias : ndarray of x's dtype, or float32 beside 16 bits, shape (channels,), optional
        :math:`\gamma` and :math:`\beta`; 1 and 0 if absent.
    running_mean, running_var : ndarray of float32 or float64, shape (channels,), optional
        Updated in place, both or none: ``running = (1 - momentum) * running + momentum * batch``.
        In float32 they keep a large mean to seven digits.
    momentum : float in [0, 1]
        The weight of the new value.
    eps : float > 0
        Added to the variance.
    axis : int
        The channels' axis.
    unbiased_running_var : bool
        Whether `running_var` takes the variance times :math:`n / (n - 1)`. `y` never does.
    nonfinite : {"propagate", "skip"}
        What becomes of `running_mean` and `running_var` where the mean or the variance of a channel
        is infinite or a NaN, or would be in their dtype: they take it, as in PyTorch, and keep it
        for good; or they stay as they are, those of all channels, because a batch counts as a
        whole. The results are the same. It goes with the ``nonfinite="skip"`` of an optimizer.
    relu : bool
        Put 0 in the place of what is negative.
    residual : ndarray of x's shape and dtype, optional
        Added before ReLU. One in another memory layout than `x` is copied.
    out : ndarray like `x`, in the same memory layout, optional
        Takes `y`. It cannot be `x` or `residual`, because the backward pass needs them.
    num_threads : int, optional
        The default is `onepass.get_num_threads()`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in `x`'s memory layout.
    saved_mean, saved_invstd : ndarray of float64, shape (channels,)
        :math:`\mu` and :math:`1 / \sqrt{\sigma^2 + \epsilon}`, for `batch_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``; also for a batch with one value per channel, which
        has no variance. Nothing has changed then.

    Notes
    -----
    The statistics take one read of `x`: sums of :math:`x - K` and of its square in float64, where
    :math:`K` is the mean of the first (up to 16) values of the channel; where that turns out to be
    more than seven standard deviations from the mean, they are taken once more, about the mean. So
    the variance is right to 1e-11, relative to itself, for up to ten million values a channel,
    whatever they are (but for a float64 variance below 1e-300). A constant channel gives exactly
    `bias`, and finite values never give a NaN. The result is the same bits for any number of
    threads and on every instruction set.

    With `x` in 16 bits, everything is computed as for the same values in float32, and `y` is
    rounded to the nearest number of `x`'s dtype, ties to even; so are the gradients that are as
    large as `x` in the backward passes. What is beyond float16's range becomes infinite.

    Differs from

    * PyTorch: there the arguments have a position, and in each of its functions another one; here
      all but `x` have a name. For float32 it saves its statistics in float32, and a mean of 1e5
      makes `y` wrong in the second or third digit; here they are float64. It has no `nonfinite`.
      The rest is PyTorch's, the biased variance for `y` and the unbiased one for `running_var`
      included.
    * Keras: there `momentum` is the weight of the *old* value (0.99, here 0.01), `eps` is 1e-3, and
      the running variance is the biased one (``unbiased_running_var=False``).
    * ONNX: `momentum` is the weight of the old value (0.9, here 0.1), and the running variance is
      the biased one.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance:
    analysis and recommendations", The American Statistician 37(3), 1983 (the shifted sums).

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> y, mean, invstd = op.batch_norm_train(x, bias=np.array([0.0, 5.0]))
    >>> y.round(4)
    array([[-1.,  5.],
           [ 1.,  5.]])
    >>> mean
    array([ 2., 10.])
    """


@_core.native
def batch_norm_infer(
    x: Array,
    *,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    r"""Normalise every channel with statistics that are given, such as the running ones.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Parameters
    ----------
    mean, var : ndarray of float32 or float64, shape (channels,)
        :math:`\mu` and :math:`\sigma^2`, which must not be negative.
    out : ndarray like `x`, in the same memory layout, optional
        Takes `y`; it may be `x` or `residual` itself.
    x, weight, bias, eps, axis, relu, residual, num_threads
        As for `batch_norm_train`. A batch may be of any size, also empty.

    Returns
    -------
    ndarray
        `out`, or a new array in `x`'s memory layout.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Differs from

    * PyTorch: there `y` is ``x * alpha + beta`` with the mean in `beta`, which loses what a large
      mean has in common with `x`; here the mean is taken off first.
    * Keras: `eps` is 1e-3.
    * ONNX: nothing.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 10.0], [3.0, 10.0]])
    >>> op.batch_norm_infer(
    ...     x, mean=np.array([1.0, 9.0]), var=np.array([4.0, 1.0]), out=x
    ... ).round(4)
    array([[0., 1.],
           [1., 1.]])
    """


@_core.native
def batch_norm_backward(
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
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Array, ...]:
    r"""Gradients of `batch_norm_train`.

    With :math:`r` for `saved_invstd`, :math:`\hat x = (x - \mu) r`, and :math:`g` for `dy` where
    ReLU let `y` pass and 0 elsewhere:

    .. math::

        d\beta &= \sum g, \qquad d\gamma = \sum g \hat x \\
        dx &= \gamma r \left(g - \frac{d\beta}{n} - \hat x \frac{d\gamma}{n}\right)

    Parameters
    ----------
    dy : ndarray
        Gradient of the loss with respect to `y`, of `x`'s shape and dtype. One in another memory
        layout than `x` is copied.
    x : ndarray
        What the forward pass was given, unchanged.
    saved_mean, saved_invstd : ndarray of float64 or float32, shape (channels,)
        What the forward pass returned.
    weight, bias, axis, relu, residual, num_threads
        What the forward pass was given. `bias` and `residual` are needed for ReLU alone: where it
        was at work is computed again, with the forward's own arithmetic.
    out : ndarray like `x`, in the same memory layout, optional
        Takes `dx`; it may be `dy`, `x` or `residual` itself.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in `x`'s memory layout.
    dweight, dbias : ndarray of x's dtype, or float32 beside 16 bits, shape (channels,)
        Also where `weight` and `bias` are absent.
    dresidual : ndarray
        Only with `residual`: `dy` where ReLU let `y` pass, and 0 elsewhere.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    The sums are taken in float64, and where finite values take one out of its range, once more in
    larger units: finite arguments give no NaN. What is larger than the dtype's largest number, here
    or on the way to `dx`, is infinite, or that number.

    Differs from PyTorch's function of this name in the gradient of the residual, which that knows
    nothing of, and in the float64 statistics.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, mean, invstd = op.batch_norm_train(x)
    >>> dy = np.array([[1.0], [0.0], [0.0]])
    >>> dx, dweight, dbias = op.batch_norm_backward(
    ...     dy, x, saved_mean=mean, saved_invstd=invstd
    ... )
    >>> dx.round(4).ravel(), dweight.round(4), dbias
    (array([ 0.1763, -0.2204,  0.0441]), array([-0.9258]), array([1.]))
    """


@_core.native
def batch_norm_infer_backward(
    dy: Array,
    x: Array,
    *,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axis: int = 1,
    relu: bool = False,
    residual: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Array, ...]:
    r"""Gradients of `batch_norm_infer`: the statistics are constants.

    .. math:: dx = \gamma r g, \qquad d\beta = \sum g, \qquad d\gamma = \sum g (x - \mu) r

    with :math:`r = 1 / \sqrt{\sigma^2 + \epsilon}`, and :math:`g` for `dy` where ReLU let `y` pass
    and 0 elsewhere.

    Parameters
    ----------
    mean, var, eps
        What the forward pass was given.
    dy, x, weight, bias, axis, relu, residual, out, num_threads
        As for `batch_norm_backward`.

    Returns
    -------
    dx, dweight, dbias : ndarray
        And `dresidual` with `residual`, as `batch_norm_backward` returns them.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Finite arguments give no NaN, as in `batch_norm_backward`. For that, float64 in place reads `dy`
    twice.

    Differs from PyTorch's ``native_batch_norm_backward(train=False)`` in the gradient of the
    residual, which that knows nothing of.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x, one = np.array([[1.0], [2.0], [6.0]]), np.ones(1)
    >>> dx, dweight, dbias = op.batch_norm_infer_backward(
    ...     np.ones((3, 1)), x, mean=one, var=4 * one
    ... )
    >>> dx.round(4).ravel(), dweight.round(4), dbias
    (array([0.5, 0.5, 0.5]), array([3.]), array([3.]))
    """
