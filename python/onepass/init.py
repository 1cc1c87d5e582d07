r"""Initialisers: random weights whose scale suits the layer.

Each takes the shape of a weight and a `numpy.random.Generator`, and returns a new array. How many
inputs and outputs a unit has, its fans, depends on which axes of the weight are which, and that is
what `layout` says:

============= ================== ====================== =====================================
``layout=``    linear layer       convolution            as in
============= ================== ====================== =====================================
"in_out"      (inputs, outputs)  (\*kernel, in, out)    ``x @ weight``; Keras, JAX
"out_in"      (outputs, inputs)  (out, in, \*kernel)    ``x @ weight.T``; PyTorch
============= ================== ====================== =====================================

>>> import numpy as np
>>> import onepass as op
>>> rng = np.random.default_rng(0)
>>> weight = op.init.he_normal((784, 128), rng)  # for x @ weight
>>> weight.shape, weight.dtype
((784, 128), dtype('float32'))
>>> bool(abs(weight.std() - np.sqrt(2 / 784)) < 1e-3)
True
"""

from __future__ import annotations  # so that only a call loads numpy.random

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import Choice, Number, Whole, check_dtype
from onepass._quiet import quiet
from onepass._typing import Array

__all__ = ["Fans", "fans", "he_normal", "he_uniform", "xavier_normal", "xavier_uniform"]

Layout: TypeAlias = Literal["in_out", "out_in"]
Mode: TypeAlias = Literal["fan_in", "fan_out"]

_GAIN = Number(above=0.0)
_LAYOUT = Choice(("in_out", "out_in"))
_MODE = Choice(("fan_in", "fan_out"))


class Fans(NamedTuple):
    """The connections of a unit.

    Attributes
    ----------
    fan_in : int
        How many inputs each output sums over.
    fan_out : int
        How many outputs each input goes into.
    """

    fan_in: int
    fan_out: int


def fans(shape: Sequence[int], layout: Layout = "in_out") -> Fans:
    r"""Return how many inputs and outputs the units of a layer have.

    .. math:: \text{fan}_\text{in} = k\, n_\text{in}, \quad \text{fan}_\text{out} = k\, n_\text{out}

    with :math:`k` the elements of a convolution's kernel, 1 for a linear layer.

    Parameters
    ----------
    shape : sequence of int >= 1
        Of the weight, two axes or more.
    layout : {"in_out", "out_in"}
        Whether the last two axes are inputs and outputs, or the first two outputs and inputs.

    Returns
    -------
    Fans
        ``(fan_in, fan_out)``.

    Raises
    ------
    TypeError, ValueError
        If the shape has fewer than two axes or an empty one, or the layout is unknown.

    Notes
    -----
    Differs from

    * PyTorch: its layout is "out_in".
    * Keras and JAX: "in_out".

    Examples
    --------
    >>> import onepass as op
    >>> op.init.fans((784, 128))
    Fans(fan_in=784, fan_out=128)
    >>> op.init.fans((64, 3, 5, 5), layout="out_in")
    Fans(fan_in=75, fan_out=1600)
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape: expected a sequence of integers, got {shape!r}")
    lengths = [Whole(1)(f"shape[{i}]", length) for i, length in enumerate(shape)]
    if len(lengths) < 2:
        raise ValueError(f"shape: expected at least 2 axes, inputs and outputs, got {shape!r}")
    if _LAYOUT("layout", layout) == "in_out":
        *kernel, inputs, outputs = lengths
    else:
        outputs, inputs, *kernel = lengths
    size = math.prod(kernel)
    return Fans(size * inputs, size * outputs)


def xavier_uniform(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    gain: float = 1.0,
    layout: Layout = "in_out",
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    r"""Glorot's uniform weights, for tanh, sigmoid or no activation.

    .. math::

        w \sim U(-a, a), \qquad a = g \sqrt{\frac{6}{\text{fan}_\text{in} + \text{fan}_\text{out}}}

    of standard deviation :math:`g \sqrt{2 / (\text{fan}_\text{in} + \text{fan}_\text{out})}`, which
    keeps the variance of activations and of gradients alike, as well as one can both.

    Parameters
    ----------
    shape : sequence of int >= 1
        Of the weight, two axes or more.
    rng : numpy.random.Generator
        Draws in double, whatever the dtype.
    gain : float > 0
        :math:`g`; PyTorch takes 5/3 for tanh.
    layout : {"in_out", "out_in"}
        Which axes are inputs and outputs; see `fans`.
    dtype : float32 or float64

    Returns
    -------
    ndarray
        A new array.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Then nothing has been drawn.

    Notes
    -----
    Differs from

    * PyTorch: ``torch.nn.init.xavier_uniform_`` fills a tensor, in "out_in".
    * Keras: ``GlorotUniform`` has no gain.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> weight = op.init.xavier_uniform((2, 4), np.random.default_rng(0))  # a = 1
    >>> bool((abs(weight) <= 1).all())
    True
    """
    return _uniform(shape, rng, _xavier_std(shape, gain, layout), dtype)


def xavier_normal(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    gain: float = 1.0,
    layout: Layout = "in_out",
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    r"""Glorot's weights drawn from a normal distribution; see `xavier_uniform`.

    .. math::

        w \sim N(0, \sigma^2), \qquad
        \sigma = g \sqrt{\frac{2}{\text{fan}_\text{in} + \text{fan}_\text{out}}}

    Parameters
    ----------
    shape : sequence of int >= 1
        Of the weight, two axes or more.
    rng : numpy.random.Generator
        Draws in double, whatever the dtype.
    gain : float > 0
        :math:`g`; PyTorch takes 5/3 for tanh.
    layout : {"in_out", "out_in"}
        Which axes are inputs and outputs; see `fans`.
    dtype : float32 or float64

    Returns
    -------
    ndarray
        A new array.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Then nothing has been drawn.

    Notes
    -----
    Differs from

    * PyTorch: ``torch.nn.init.xavier_normal_`` fills a tensor, in "out_in".
    * Keras and JAX: their ``GlorotNormal`` and ``glorot_normal`` cut the distribution off at two
      standard deviations.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> weight = op.init.xavier_normal((300, 500), np.random.default_rng(0))  # sigma = 0.05
    >>> bool(abs(weight.std() - 0.05) < 0.001)
    True
    """
    return _normal(shape, rng, _xavier_std(shape, gain, layout), dtype)


def he_uniform(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    gain: float = math.sqrt(2.0),
    mode: Mode = "fan_in",
    layout: Layout = "in_out",
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    r"""He's weights, for ReLU, drawn from a uniform distribution; see `he_normal`.

    .. math:: w \sim U(-a, a), \qquad a = g \sqrt{3 / \text{fan}}

    of standard deviation :math:`g / \sqrt{\text{fan}}`.

    Parameters
    ----------
    shape : sequence of int >= 1
        Of the weight, two axes or more.
    rng : numpy.random.Generator
        Draws in double, whatever the dtype.
    gain : float > 0
        :math:`g`: :math:`\sqrt 2` for ReLU, :math:`\sqrt{2 / (1 + s^2)}` for a leaky one with slope
        :math:`s`, 1 for none (LeCun's).
    mode : {"fan_in", "fan_out"}
        Whose variance is kept: that of the activations, or of the gradients.
    layout : {"in_out", "out_in"}
        Which axes are inputs and outputs; see `fans`.
    dtype : float32 or float64

    Returns
    -------
    ndarray
        A new array.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Then nothing has been drawn.

    Notes
    -----
    Differs from

    * PyTorch: ``torch.nn.init.kaiming_uniform_`` fills a tensor, in "out_in", and computes its gain
      from a slope and the activation's name.
    * Keras: ``HeUniform`` has neither gain nor mode.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers: surpassing human-level
    performance on ImageNet classification", ICCV 2015, arXiv:1502.01852.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> weight = op.init.he_uniform((6, 4), np.random.default_rng(0))  # a = 1
    >>> bool((abs(weight) <= 1).all())
    True
    """
    return _uniform(shape, rng, _he_std(shape, gain, mode, layout), dtype)


def he_normal(
    shape: Sequence[int],
    rng: np.random.Generator,
    *,
    gain: float = math.sqrt(2.0),
    mode: Mode = "fan_in",
    layout: Layout = "in_out",
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    r"""He's normal weights, for ReLU.

    .. math:: w \sim N(0, \sigma^2), \qquad \sigma = \frac{g}{\sqrt{\text{fan}}}

    ReLU takes away half of what a layer passes on; :math:`g = \sqrt 2` makes up for it, so that the
    variance stays from layer to layer.

    Parameters
    ----------
    shape : sequence of int >= 1
        Of the weight, two axes or more.
    rng : numpy.random.Generator
        Draws in double, whatever the dtype.
    gain : float > 0
        :math:`g`: :math:`\sqrt 2` for ReLU, :math:`\sqrt{2 / (1 + s^2)}` for a leaky one with slope
        :math:`s`, 1 for none (LeCun's).
    mode : {"fan_in", "fan_out"}
        Whose variance is kept: that of the activations, or of the gradients.
    layout : {"in_out", "out_in"}
        Which axes are inputs and outputs; see `fans`.
    dtype : float32 or float64

    Returns
    -------
    ndarray
        A new array.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range. Then nothing has been drawn.

    Notes
    -----
    Differs from

    * PyTorch: ``torch.nn.init.kaiming_normal_`` fills a tensor, in "out_in", and computes its gain
      from a slope and the activation's name.
    * Keras and JAX: their ``HeNormal`` and ``he_normal`` cut the distribution off at two standard
      deviations.

    References
    ----------
    K. He, X. Zhang, S. Ren and J. Sun, "Delving deep into rectifiers: surpassing human-level
    performance on ImageNet classification", ICCV 2015, arXiv:1502.01852.

    Examples
    --------
    A convolution of 3 x 3 from 16 channels to 32, as PyTorch stores it:

    >>> import numpy as np
    >>> import onepass as op
    >>> rng = np.random.default_rng(0)
    >>> weight = op.init.he_normal((32, 16, 3, 3), rng, layout="out_in", dtype=np.float64)
    >>> bool(abs(weight.std() - np.sqrt(2 / (16 * 3 * 3))) < 0.005)
    True
    """
    return _normal(shape, rng, _he_std(shape, gain, mode, layout), dtype)


def _xavier_std(shape: Sequence[int], gain: float, layout: Layout) -> float:
    return _GAIN("gain", gain) * math.sqrt(2 / sum(fans(shape, layout)))


def _he_std(shape: Sequence[int], gain: float, mode: Mode, layout: Layout) -> float:
    fan: int = getattr(fans(shape, layout), _MODE("mode", mode))
    return _GAIN("gain", gain) / math.sqrt(fan)


@quiet
def _uniform(
    shape: Sequence[int], rng: np.random.Generator, std: float, dtype: npt.DTypeLike
) -> Array:
    found = _check(rng, dtype)
    bound = math.sqrt(3) * std  # the deviation of U(-a, a) is a / sqrt(3)
    return rng.uniform(-bound, bound, tuple(shape)).astype(found)


@quiet
def _normal(
    shape: Sequence[int], rng: np.random.Generator, std: float, dtype: npt.DTypeLike
) -> Array:
    found = _check(rng, dtype)
    return rng.normal(0, std, tuple(shape)).astype(found)


def _check(rng: np.random.Generator, dtype: npt.DTypeLike) -> np.dtype[Any]:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {rng!r}")
    return check_dtype(dtype)
