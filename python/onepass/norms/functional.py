"""Layer, RMS, group and instance normalisation as functions of arrays, forward and backward."""

from __future__ import annotations

from typing import TypeAlias

from onepass._typing import Array
from onepass.batchnorm.reference import Float64
from onepass.norms._passes import check_groups, check_shape, row_norm, row_norm_backward

Forward: TypeAlias = tuple[Array, Float64, Float64]
Gradients: TypeAlias = tuple[Array, Array, Array]


def layer_norm(
    x: Array,
    *,
    normalized_shape: int | tuple[int, ...],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Forward:
    r"""Normalise the last axes with their own mean and variance.

    .. math::

        \mu &= \frac1n \sum x, \qquad \sigma^2 = \frac1n \sum (x - \mu)^2 \\
        y &= \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    over the :math:`n` values of the last axes, `normalized_shape`, for every index on the axes
    before them.

    Parameters
    ----------
    x : ndarray of float32 or float64
        Its shape ends with `normalized_shape`. An array that is not in C order is copied.
    normalized_shape : int or tuple of int
        The last axes.
    weight, bias : ndarray of x's dtype, shape `normalized_shape`, optional
        :math:`\gamma` and :math:`\beta`; 1 and 0 if absent.
    eps : float > 0
        Added to the variance.
    out : ndarray like `x`, in C order, optional
        Takes `y`. It cannot be `x`, because the backward pass needs that.
    num_threads : int, optional
        The default is `onepass.get_num_threads()`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in C order.
    saved_mean, saved_invstd : ndarray of float64
        :math:`\mu` and :math:`1 / \sqrt{\sigma^2 + \epsilon}`, in the shape of the other axes of
        `x`, for `layer_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    The statistics are those of `batch_norm_train`, with a row in the place of a channel: sums in
    float64, which are taken again about the mean where they began more than 7 standard deviations
    from it. So a large mean costs no digits, a constant row gives exactly `bias`, and finite values
    give no NaN. The result is the same bits for any number of threads and on every instruction set.

    Differs from PyTorch in the names of the arguments, which have a position there, and in the
    statistics, which are float32 there for a float32 `x`.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 3.0], [10.0, 10.0]])
    >>> y, mean, invstd = op.layer_norm(x, normalized_shape=2, bias=np.array([0.0, 5.0]))
    >>> y.round(4)
    array([[-1.,  6.],
           [ 0.,  5.]])
    >>> mean
    array([ 2., 10.])
    """
    shape = check_shape(normalized_shape)
    found: Forward = row_norm(x, shape, None, True, weight, bias, eps, out, num_threads)
    return found


def layer_norm_backward(
    dy: Array,
    x: Array,
    *,
    normalized_shape: int | tuple[int, ...],
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Gradients:
    r"""Gradients of `layer_norm`.

    With :math:`r` for `saved_invstd`, :math:`\hat x = (x - \mu) r` and :math:`g = \gamma\,dy`:

    .. math::

        d\beta &= \sum dy, \qquad d\gamma = \sum dy\,\hat x \\
        dx &= r \left(g - \frac1n \sum g - \hat x \frac1n \sum g \hat x\right)

    The sums of the first line go over all rows, those of the second over the values of a row.

    Parameters
    ----------
    dy : ndarray
        Gradient of the loss with respect to `y`, of `x`'s shape and dtype. An array that is not in
        C order is copied.
    x : ndarray
        What the forward pass was given, unchanged.
    saved_mean, saved_invstd : ndarray of float64 or float32
        What the forward pass returned.
    normalized_shape, weight, num_threads
        What the forward pass was given.
    out : ndarray like `x`, in C order, optional
        Takes `dx`; it may be `dy` or `x` itself.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in C order.
    dweight, dbias : ndarray of x's dtype, shape `normalized_shape`
        Also where `weight` and `bias` are absent.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    All sums are taken in float64; :math:`\hat x` is in x's dtype before. Where the product of `dy`
    and `weight` is beyond the range of the dtype, `dx` is infinite or a NaN.

    Differs from PyTorch in the float64 statistics and sums.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 2.0, 6.0]])
    >>> y, mean, invstd = op.layer_norm(x, normalized_shape=3)
    >>> dx, dweight, dbias = op.layer_norm_backward(
    ...     np.array([[1.0, 0.0, 0.0]]),
    ...     x,
    ...     normalized_shape=3,
    ...     saved_mean=mean,
    ...     saved_invstd=invstd,
    ... )
    >>> dx.round(4), dweight.round(4), dbias
    (array([[ 0.1763, -0.2204,  0.0441]]), array([-0.9258,  0.    ,  0.    ]), array([1., 0., 0.]))
    """
    shape = check_shape(normalized_shape)
    found: Gradients = row_norm_backward(
        dy, x, shape, None, True, saved_mean, saved_invstd, weight, out, None, None, num_threads
    )
    return found


def rms_norm(
    x: Array,
    *,
    normalized_shape: int | tuple[int, ...],
    weight: Array | None = None,
    eps: float | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Array, Float64]:
    r"""Divide the last axes by their root mean square.

    .. math:: y = \frac{x}{\sqrt{\frac1n \sum x^2 + \epsilon}} \gamma

    over the :math:`n` values of the last axes, `normalized_shape`, for every index on the axes
    before them.

    Parameters
    ----------
    eps : float > 0, or None
        Added to the mean square; None for the distance from 1 to the next number of `x`'s dtype.
    x, normalized_shape, weight, out, num_threads
        As for `layer_norm`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in C order.
    saved_invrms : ndarray of float64
        :math:`1 / \sqrt{\frac1n \sum x^2 + \epsilon}`, in the shape of the other axes of `x`, for
        `rms_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Differs from PyTorch in the names of the arguments, which have a position there, and in the
    statistic, which is float32 there for a float32 `x` and not returned. `eps` is PyTorch's; Llama
    and its descendants have 1e-6 or 1e-5.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> y, invrms = op.rms_norm(np.array([[3.0, 4.0], [0.0, 1.0]]), normalized_shape=2)
    >>> y.round(4)
    array([[0.8485, 1.1314],
           [0.    , 1.4142]])
    >>> invrms.round(4)
    array([0.2828, 1.4142])
    """
    shape = check_shape(normalized_shape)
    found: tuple[Array, Float64] = row_norm(
        x, shape, None, False, weight, None, eps, out, num_threads
    )
    return found


def rms_norm_backward(
    dy: Array,
    x: Array,
    *,
    normalized_shape: int | tuple[int, ...],
    saved_invrms: Array,
    weight: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    r"""Gradients of `rms_norm`.

    With :math:`r` for `saved_invrms`, :math:`\hat x = x r` and :math:`g = \gamma\,dy`:

    .. math:: d\gamma = \sum dy\,\hat x, \qquad dx = r \left(g - \hat x \frac1n \sum g \hat x\right)

    Parameters
    ----------
    saved_invrms : ndarray of float64 or float32
        What the forward pass returned.
    dy, x, normalized_shape, weight, out, num_threads
        As for `layer_norm_backward`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in C order.
    dweight : ndarray of x's dtype, shape `normalized_shape`
        Also where `weight` is absent.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Differs from PyTorch, where only autograd has it, in the float64 sums.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[3.0, 4.0]])
    >>> y, invrms = op.rms_norm(x, normalized_shape=2)
    >>> dx, dweight = op.rms_norm_backward(
    ...     np.array([[1.0, 0.0]]), x, normalized_shape=2, saved_invrms=invrms
    ... )
    >>> dx.round(4), dweight.round(4)
    (array([[ 0.181 , -0.1358]]), array([0.8485, 0.    ]))
    """
    shape = check_shape(normalized_shape)
    found: tuple[Array, Array] = row_norm_backward(
        dy, x, shape, None, False, None, saved_invrms, weight, out, None, None, num_threads
    )
    return found


def group_norm(
    x: Array,
    *,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Forward:
    r"""Normalise groups of channels, each sample for itself.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean and the biased variance of all values of a sample's group, and :math:`\gamma` and
    :math:`\beta` of the channel.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (samples, channels, ...)
        An array that is not in C order, such as channels last, is copied.
    num_groups : int
        A divisor of the number of channels. A group is that many neighbouring channels that all
        groups are as large.
    weight, bias : ndarray of x's dtype, shape (channels,), optional
        :math:`\gamma` and :math:`\beta`; 1 and 0 if absent.
    eps, out, num_threads
        As for `layer_norm`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in C order.
    saved_mean, saved_invstd : ndarray of float64, shape (samples, num_groups)
        :math:`\mu` and :math:`1 / \sqrt{\sigma^2 + \epsilon}`, for `group_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Accurate as `layer_norm` is.

    Differs from PyTorch in the names of the arguments, which have a position there; in the
    statistics, which are float32 there for a float32 `x`; and in a single group of one value, which
    PyTorch refuses, and which here gives `bias`.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, invstd = op.group_norm(x, num_groups=2)
    >>> y.round(4), mean
    (array([[-1.,  1., -1.,  1.]]), array([[ 2., 20.]]))
    """
    groups = check_groups(num_groups)
    found: Forward = row_norm(x, None, groups, True, weight, bias, eps, out, num_threads)
    return found


def group_norm_backward(
    dy: Array,
    x: Array,
    *,
    num_groups: int,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Gradients:
    r"""Gradients of `group_norm`: those of `layer_norm_backward`, with a group for a row.

    .. math:: dx = r \left(g - \frac1n \sum g - \hat x \frac1n \sum g \hat x\right)

    Parameters
    ----------
    num_groups
        What the forward pass was given.
    dy, x, saved_mean, saved_invstd, weight, out, num_threads
        As for `layer_norm_backward`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in C order.
    dweight, dbias : ndarray of x's dtype, shape (channels,)
        Also where `weight` and `bias` are absent.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Differs from PyTorch in the float64 statistics and sums.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, invstd = op.group_norm(x, num_groups=2)
    >>> dx, dweight, dbias = op.group_norm_backward(
    ...     np.array([[1.0, 0.0, 1.0, 0.0]]), x, num_groups=2, saved_mean=mean, saved_invstd=invstd
    ... )
    >>> dweight.round(4), dbias
    (array([-1.,  0., -1.,  0.]), array([1., 0., 1., 0.]))
    """
    groups = check_groups(num_groups)
    found: Gradients = row_norm_backward(
        dy, x, None, groups, True, saved_mean, saved_invstd, weight, out, None, None, num_threads
    )
    return found


def instance_norm(
    x: Array,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Forward:
    r"""Normalise every channel of every sample for itself.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean and the biased variance of the values of one channel in one sample.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (samples, channels, ...)
        An array that is not in C order, such as channels last, is copied.
    weight, bias : ndarray of x's dtype, shape (channels,), optional
        :math:`\gamma` and :math:`\beta`; 1 and 0 if absent.
    eps, out, num_threads
        As for `layer_norm`.

    Returns
    -------
    y : ndarray
        `out`, or a new array in C order.
    saved_mean, saved_invstd : ndarray of float64, shape (samples, channels)
        :math:`\mu` and :math:`1 / \sqrt{\sigma^2 + \epsilon}`, for `instance_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Accurate as `layer_norm` is.

    Differs from PyTorch in the names of the arguments, which have a position there; in the
    statistics, which are float32 there for a float32 `x`; in running statistics, which are not
    here; and in a channel of one value, which PyTorch refuses, and which here gives `bias`.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization: the missing ingredient for
    fast stylization", arXiv:1607.08022, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, invstd = op.instance_norm(x)
    >>> y.round(4), mean
    (array([[[-1.,  1.],
            [-1.,  1.]]]), array([[ 2., 20.]]))
    """
    found: Forward = row_norm(x, None, None, True, weight, bias, eps, out, num_threads)
    return found


def instance_norm_backward(
    dy: Array,
    x: Array,
    *,
    saved_mean: Array,
    saved_invstd: Array,
    weight: Array | None = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Gradients:
    r"""Gradients of `instance_norm`: those of `layer_norm_backward`, with a channel for a row.

    .. math:: dx = r \left(g - \frac1n \sum g - \hat x \frac1n \sum g \hat x\right)

    Parameters
    ----------
    dy, x, saved_mean, saved_invstd, weight, out, num_threads
        As for `layer_norm_backward`.

    Returns
    -------
    dx : ndarray
        `out`, or a new array in C order.
    dweight, dbias : ndarray of x's dtype, shape (channels,)
        Also where `weight` and `bias` are absent.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``. Nothing has changed then.

    Notes
    -----
    Differs from PyTorch in the float64 statistics and sums.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization: the missing ingredient for
    fast stylization", arXiv:1607.08022, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, invstd = op.instance_norm(x)
    >>> dx, dweight, dbias = op.instance_norm_backward(
    ...     np.array([[[1.0, 0.0], [0.0, 1.0]]]), x, saved_mean=mean, saved_invstd=invstd
    ... )
    >>> dweight.round(4), dbias
    (array([-1.,  1.]), array([1., 1.]))
    """
    found: Gradients = row_norm_backward(
        dy, x, None, None, True, saved_mean, saved_invstd, weight, out, None, None, num_threads
    )
    return found
