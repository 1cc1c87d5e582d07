"""Exponential moving averages of a series, and what there is to know about them.

The average that momentum, RMSprop and Adam keep of the gradients, on its own: its values, how each
of them is computed, its weights, how far it looks back, and a picture of it beside the simple
moving average.

>>> import onepass as op
>>> print(op.ema.expanded(0.9, 3))
m_3 = 0.1 g_3 + 0.09 g_2 + 0.081 g_1
>>> round(op.ema.window(0.9), 6)
10.0
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import DECAY_RATE, Flag, Whole
from onepass._quiet import quiet
from onepass._typing import Array

__all__ = ["average", "expanded", "picture", "simple", "table", "weights", "window"]


@quiet
def average(
    series: npt.ArrayLike,
    beta: float,
    bias_correction: bool = False,
    initial: npt.ArrayLike = 0.0,
) -> Array:
    r"""Return the exponential moving average of a series.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad t = 1, 2, \ldots

    and with `bias_correction` :math:`\hat m_t = m_t / (1 - \beta^t)`.

    Begun at 0 the average is too small at first: for any series whose values have one mean,

    .. math:: E[m_t] = E[g] (1 - \beta^t)

    because its weights :math:`(1 - \beta) \beta^k`, for :math:`k < t`, sum to
    :math:`1 - \beta^t`. The correction divides by that sum.

    Parameters
    ----------
    series : array_like
        :math:`g_1, g_2, \ldots` along its first axis. Floating arrays keep their dtype, others
        become float64.
    beta : float in [0, 1)
    bias_correction : bool
        Needs to begin at 0.
    initial : float or array_like
        :math:`m_0`, a number or of one element's shape.

    Returns
    -------
    ndarray
        The averages :math:`m_1, m_2, \ldots`, of the series' shape.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from

    * pandas: ``Series.ewm(alpha=1 - beta, adjust=True).mean()`` is the corrected one. With
      ``adjust=False`` it begins as the first value: ``initial=series[0]``.
    * optax: ``ema(decay, debias)`` computes the same, a step at a time.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015,
    arXiv:1412.6980, section 3.

    Examples
    --------
    >>> import onepass as op
    >>> op.ema.average([8.0, 8.0, 8.0], beta=0.5)
    array([4., 6., 7.])
    >>> op.ema.average([8.0, 8.0, 8.0], beta=0.5, bias_correction=True)
    array([8., 8., 8.])
    """
    values = _series(series)
    beta = DECAY_RATE("beta", beta)
    corrects = Flag()("bias_correction", bias_correction)
    current = _initial(initial, values)
    if corrects and current.any():
        raise ValueError(f"initial: expected 0 for bias_correction, got {initial!r}")
    averages = np.empty_like(values)
    for t, value in enumerate(values):
        current = beta * current + (1 - beta) * value
        averages[t] = current / (1 - beta ** (t + 1)) if corrects else current
    return averages


@quiet
def table(
    series: npt.ArrayLike,
    beta: float,
    bias_correction: bool = False,
    initial: float = 0.0,
) -> str:
    r"""Return a table of an average's steps: each formula, the numbers in it, and the value.

    .. math:: m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad t = 1, 2, \ldots

    Parameters
    ----------
    series : array_like, shape (n,)
        :math:`g_1, g_2, \ldots`, at least one value.
    beta : float in [0, 1)
    bias_correction : bool
        Show :math:`m_t / (1 - \beta^t)` too. The average must begin at 0 then.
    initial : float
        :math:`m_0`.

    Returns
    -------
    str
        A line of headings, and one for each step. The values are those of `average`; all numbers
        are written with four digits.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import onepass as op
    >>> print(op.ema.table([8.0, 4.0, 6.0], beta=0.5))
    formula                  numbers            value
    m_1 = 0.5 m_0 + 0.5 g_1  0.5 * 0 + 0.5 * 8  4
    m_2 = 0.5 m_1 + 0.5 g_2  0.5 * 4 + 0.5 * 4  4
    m_3 = 0.5 m_2 + 0.5 g_3  0.5 * 4 + 0.5 * 6  5

    An average that begins at the first value, and one that begins at 0 and is corrected:

    >>> print(op.ema.table([8.0, 4.0], beta=0.75, initial=8.0))
    formula                    numbers              value
    m_1 = 0.75 m_0 + 0.25 g_1  0.75 * 8 + 0.25 * 8  8
    m_2 = 0.75 m_1 + 0.25 g_2  0.75 * 8 + 0.25 * 4  7
    >>> print(op.ema.table([8.0, 2.0], beta=0.5, bias_correction=True))
    formula                  numbers            value  corrected
    m_1 = 0.5 m_0 + 0.5 g_1  0.5 * 0 + 0.5 * 8  4      4 / (1 - 0.5^1) = 8
    m_2 = 0.5 m_1 + 0.5 g_2  0.5 * 4 + 0.5 * 2  3      3 / (1 - 0.5^2) = 4
    """
    values = _series(series)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"series: expected one axis of 1 value or more, got {values.shape}")
    averages = average(values, beta, initial=initial)
    corrected = average(values, beta, bias_correction, initial)
    old, new = f"{beta:.4g}", f"{1 - beta:.4g}"
    rows = [("formula", "numbers", "value", "corrected")]
    before = _initial(initial, values)
    for t, (value, current, right) in enumerate(zip(values, averages, corrected, strict=True), 1):
        rows.append(
            (
                f"m_{t} = {old} m_{t - 1} + {new} g_{t}",
                f"{old} * {before:.4g} + {new} * {value:.4g}",
                f"{current:.4g}",
                f"{current:.4g} / (1 - {old}^{t}) = {right:.4g}",
            )
        )
        before = current
    shown = rows if bias_correction else [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in shown)
    return "\n".join(lines)


@quiet
def weights(beta: float, n: int) -> Array:
    r"""Return the weights of the newest n values in the average, the newest first.

    .. math:: w_k = (1 - \beta) \beta^k, \qquad k = 0, \ldots, n - 1

    They sum to :math:`1 - \beta^n`.

    Parameters
    ----------
    beta : float in [0, 1)
    n : int >= 1

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import onepass as op
    >>> op.ema.weights(0.5, 3)
    array([0.5  , 0.25 , 0.125])
    """
    beta = DECAY_RATE("beta", beta)
    powers: Array = beta ** np.arange(Whole(1)("n", n), dtype=float)
    return (1 - beta) * powers


def window(beta: float) -> float:
    r"""Return how many values the average is said to look back.

    .. math:: n_\text{eff} = \frac{1}{1 - \beta} = \sum_{k \ge 0} \beta^k

    A constant weight as large as the newest one's would be used up after so many. In fact the
    newest :math:`n_\text{eff}` values have :math:`1 - \beta^{n_\text{eff}}` of the weight, about
    :math:`1 - 1/e = 63\,\%`; 95 % takes three times as many.

    Parameters
    ----------
    beta : float in [0, 1)

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        If beta is out of range.

    Examples
    --------
    >>> import onepass as op
    >>> op.ema.window(0.75)
    4.0
    """
    return 1 / (1 - DECAY_RATE("beta", beta))


def expanded(beta: float, n: int) -> str:
    r"""Return the n-th average as a sum of the values, written out.

    .. math:: m_n = (1 - \beta) \sum_{k=0}^{n-1} \beta^k g_{n-k}

    Parameters
    ----------
    beta : float in [0, 1)
    n : int >= 1

    Returns
    -------
    str
        With each weight to four digits; begun at 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import onepass as op
    >>> op.ema.expanded(0.75, 2)
    'm_2 = 0.25 g_2 + 0.1875 g_1'
    """
    terms = [f"{weight:.4g} g_{n - k}" for k, weight in enumerate(weights(beta, n))]
    return f"m_{n} = {' + '.join(terms)}"


@quiet
def simple(series: npt.ArrayLike, window: int) -> Array:
    r"""Return the simple moving average of a series.

    .. math:: s_t = \frac{1}{n} \sum_{k=0}^{n-1} g_{t-k}, \qquad t \ge n

    Parameters
    ----------
    series : array_like
        :math:`g_1, g_2, \ldots` along its first axis; see `average`.
    window : int >= 1
        :math:`n`.

    Returns
    -------
    ndarray
        Of the series' shape. The first :math:`n - 1`, which have too few values before them, are
        NaN, as in pandas' ``rolling``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import onepass as op
    >>> op.ema.simple([1.0, 3.0, 5.0, 7.0], window=2)
    array([nan,  2.,  4.,  6.])
    """
    values = _series(series)
    size = Whole(1)("window", window)
    averages = np.full_like(values, np.nan)
    if len(values) >= size:
        slices = np.lib.stride_tricks.sliding_window_view(values, size, axis=0)
        averages[size - 1 :] = slices.mean(axis=-1)
    return averages


@quiet
def picture(
    series: npt.ArrayLike,
    beta: float,
    path: str | os.PathLike[str],
    initial: float = 0.0,
) -> None:
    r"""Draw what an exponential average makes of a series, in four panels.

    The data with the average, the corrected one and the simple one of the same window; the weights
    of both kinds; how far the data and the others are from the average; and the cumulated weight,
    :math:`1 - \beta^n`, with the number of values that it takes to 95 %.

    Parameters
    ----------
    series : array_like, shape (n,)
        Two values at least.
    beta : float in [0, 1)
    path : str or path
        The picture's, with an ending that matplotlib knows: ``.png``, ``.svg``, ``.pdf``.
    initial : float
        Where the average begins. The corrected average begins at 0 whatever this is.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.
    MissingExtraError
        Without matplotlib: ``pip install 'onepass[plot]'``.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import onepass as op
    >>> noise = np.random.default_rng(0).normal(size=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     op.ema.picture(1 + noise, beta=0.9, path=f"{folder}/ema.png")
    """
    from onepass.lab.ema_picture import draw_averages

    values = _series(series)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"series: expected one axis of 2 values or more, got {values.shape}")
    beta = DECAY_RATE("beta", beta)
    draw_averages(values, beta, float(_initial(initial, values)), path)


def _series(series: npt.ArrayLike) -> Array:
    values = np.asarray(series)
    if values.dtype.kind not in "iufb":
        raise TypeError(f"series: expected real numbers, got dtype {values.dtype}")
    if values.ndim == 0:
        raise ValueError(f"series: expected an axis of steps, got {series!r}")
    return values if values.dtype.kind == "f" else values.astype(float)


def _initial(initial: npt.ArrayLike, values: Array) -> Array:
    shape = values.shape[1:]
    try:
        return np.broadcast_to(np.asarray(initial, values.dtype), shape)
    except (TypeError, ValueError):
        expected = f"a number, or an array of shape {shape}"
        raise ValueError(f"initial: expected {expected}, got {initial!r}") from None
