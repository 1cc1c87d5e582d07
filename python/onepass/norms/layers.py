"""Layer, RMS, group and instance normalisation as layers: parameters, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._hyperparameters import Flag, Whole, check_dtype
from onepass._typing import Array
from onepass.batchnorm._loading import load
from onepass.batchnorm._passes import DONE, INTERRUPTED, NONE_YET, wrong_dtype
from onepass.norms._passes import (
    Shape,
    check_eps,
    check_groups,
    check_shape,
    row_norm,
    row_norm_backward,
)


@dataclass(slots=True)
class _Forward:
    """What a forward pass leaves for the backward pass."""

    x: Array
    mean: Array | None
    invstd: Array


class RowNorm:
    """What the layers share: parameters of one shape, forward, backward, and their state."""

    weight: Array | None = None
    bias: Array | None = None
    weight_grad: Array | None = None
    bias_grad: Array | None = None
    eps: float | None

    _centered = True
    _normalized_shape: Shape | None = None
    _num_groups: int | None = None

    def _start(
        self, shape: Shape, *, weight: bool, bias: bool, num_threads: int | None, dtype: Any
    ) -> None:
        self.num_threads = None if num_threads is None else _core.check_num_threads(num_threads)
        self.dtype = check_dtype(dtype)
        self._forward: _Forward | str = NONE_YET
        self._shape = shape
        if weight:
            self.weight, self.weight_grad = np.ones(shape, self.dtype), np.zeros(shape, self.dtype)
        if bias:
            self.bias, self.bias_grad = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file keeps: not the last input, which may be large."""
        return {**self.__dict__, "_forward": NONE_YET}

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """Do as `forward`."""
        return self.forward(x, out)

    def forward(self, x: Array, out: Array | None = None) -> Array:
        """Normalise.

        Parameters
        ----------
        x : ndarray of the layer's dtype
            The layer keeps a reference to it for `backward`: until then, leave it and the
            parameters as they are.
        out : ndarray like `x`, in C order, optional
            Takes the result. It cannot be `x`.

        Returns
        -------
        ndarray
            `out`, or a new array in C order.

        Raises
        ------
        TypeError, ValueError
            ``<argument>: expected ..., got ...``. Nothing has changed then.
        """
        self._check(x)
        kept, self._forward = self._forward, INTERRUPTED
        try:
            y, *mean, invstd = row_norm(
                x,
                self._normalized_shape,
                self._num_groups,
                self._centered,
                self.weight,
                self.bias,
                self.eps,
                out,
                self.num_threads,
            )
            self._forward = _Forward(x, mean[0] if mean else None, invstd)
        except Exception:
            self._forward = kept
            raise
        return y  # type: ignore[no-any-return]

    def backward(self, dy: Array, out: Array | None = None) -> Array:
        """Return the gradient with respect to `x`, and fill `weight_grad` and `bias_grad`.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss with respect to what `forward` returned.
        out : ndarray like `x`, in C order, optional
            Takes the result; it may be `dy` or `x` itself.

        Returns
        -------
        ndarray
            `out`, or a new array in C order.

        Raises
        ------
        RuntimeError
            Before any `forward`, and where the last one has had its backward.
        TypeError, ValueError
            ``<argument>: expected ..., got ...``. Nothing has changed then.

        Notes
        -----
        A forward has one backward, as in `BatchNorm`.
        """
        kept = self._forward
        if isinstance(kept, str):
            raise RuntimeError(
                "backward: expected a forward before it whose input is still there and that has "
                f"had no backward yet, got {kept}"
            )
        self._forward = INTERRUPTED
        try:
            dx, *_ = row_norm_backward(
                dy,
                kept.x,
                self._normalized_shape,
                self._num_groups,
                self._centered,
                kept.mean,
                kept.invstd,
                self.weight,
                out,
                self.weight_grad,
                self.bias_grad,
                self.num_threads,
            )
        except Exception:
            self._forward = kept
            raise
        self._forward = DONE
        return dx  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the parameters that the layer has, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            ``weight`` and ``bias``.
        """
        return {name: np.array(array) for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the arrays of a `state_dict`, in place: this layer's, or PyTorch's.

        Parameters
        ----------
        state : mapping of str to array
            With the keys of `state_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a key is missing or unknown, or an array does not fit. Nothing has changed then.

        Warns
        -----
        RuntimeWarning
            Where a finite float64 value is infinite in float32.
        """
        load(self._state(), state)

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        arrays = {"weight": self.weight, "bias": self.bias}
        return {name: array for name, array in arrays.items() if array is not None}

    def _check(self, x: Any) -> None:
        """Raise what is wrong with `x` for this layer; what is wrong for any, the call says."""
        if not isinstance(x, np.ndarray):
            return
        if x.dtype != self.dtype:
            raise TypeError(wrong_dtype(type(self).__name__, x, self.dtype))
        if self._normalized_shape is None and x.ndim > 1 and x.shape[1:2] != self._shape:
            raise ValueError(
                f"x: expected {self._shape[0]} channels on axis 1, got shape {x.shape}"
            )

    def _repr(self, *positional: Any, **keywords: Any) -> str:
        keywords |= {"num_threads": self.num_threads, "dtype": str(self.dtype)}
        given = [repr(value) for value in positional]
        given += [f"{name}={value!r}" for name, value in keywords.items()]
        return f"{type(self).__name__}({', '.join(given)})"


class LayerNorm(RowNorm):
    r"""Layer normalisation: the last axes, with their own mean and variance.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    See `layer_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The last axes of `x`.
    eps : float > 0
        Added to the variance.
    elementwise_affine : bool
        Whether there is :math:`\gamma` (`weight`, from 1).
    bias : bool
        Whether there is :math:`\beta` too (`bias`, from 0).
    num_threads : int, optional
        The default is `onepass.get_num_threads()`, at each call.
    dtype : float32 or float64
        Of the parameters and of `x`.

    Attributes
    ----------
    weight, bias : ndarray of shape `normalized_shape`, or None
        Parameters, for an optimizer to update in place. Another array in C order may take their
        place, such as a view of a vector that holds all parameters of a network.
    weight_grad, bias_grad : ndarray of shape `normalized_shape`, or None
        Their gradients; `backward` overwrites them in place.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from PyTorch in what is a keyword, and as `BatchNorm` does: a gradient is overwritten,
    not added to, and a forward has one backward.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> norm = op.LayerNorm(2, dtype=np.float64)
    >>> norm.forward(np.array([[1.0, 3.0], [10.0, 30.0]])).round(4)
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> norm.backward(np.array([[1.0, 1.0], [0.0, 0.0]])).round(4)
    array([[0., 0.],
           [0., 0.]])
    >>> norm.weight_grad.round(4), norm.bias_grad
    (array([-1.,  1.]), array([1., 1.]))
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        *,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        num_threads: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = self._normalized_shape = check_shape(normalized_shape)
        self.eps = check_eps(eps)
        self.elementwise_affine = Flag()("elementwise_affine", elementwise_affine)
        has_bias = Flag()("bias", bias) and self.elementwise_affine
        self._start(
            self.normalized_shape,
            weight=self.elementwise_affine,
            bias=has_bias,
            num_threads=num_threads,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return self._repr(
            self.normalized_shape,
            eps=self.eps,
            elementwise_affine=self.elementwise_affine,
            bias=self.bias is not None,
        )


class RMSNorm(RowNorm):
    r"""RMS normalisation: the last axes, divided by their root mean square.

    .. math:: y = \frac{x}{\sqrt{\frac1n \sum x^2 + \epsilon}} \gamma

    See `rms_norm`.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The last axes of `x`.
    eps : float > 0, or None
        Added to the mean square; None for the distance from 1 to the next number of the dtype.
    elementwise_affine : bool
        Whether there is :math:`\gamma` (`weight`, from 1).
    num_threads : int, optional
        The default is `onepass.get_num_threads()`, at each call.
    dtype : float32 or float64
        Of the parameters and of `x`.

    Attributes
    ----------
    weight, weight_grad : ndarray of shape `normalized_shape`, or None
        The parameter and its gradient, as those of `LayerNorm`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from PyTorch as `LayerNorm` does.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> norm = op.RMSNorm(2, dtype=np.float64)
    >>> norm.forward(np.array([[3.0, 4.0]])).round(4)
    array([[0.8485, 1.1314]])
    """

    _centered = False

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        *,
        eps: float | None = None,
        elementwise_affine: bool = True,
        num_threads: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = self._normalized_shape = check_shape(normalized_shape)
        self.eps = None if eps is None else check_eps(eps)
        self.elementwise_affine = Flag()("elementwise_affine", elementwise_affine)
        self._start(
            self.normalized_shape,
            weight=self.elementwise_affine,
            bias=False,
            num_threads=num_threads,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return self._repr(
            self.normalized_shape, eps=self.eps, elementwise_affine=self.elementwise_affine
        )


class GroupNorm(RowNorm):
    r"""Group normalisation: groups of channels, each sample for itself.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    See `group_norm`.

    Parameters
    ----------
    num_groups : int
        A divisor of `num_channels`.
    num_channels : int
        Channels, on axis 1 of `x`.
    eps : float > 0
        Added to the variance.
    affine : bool
        Whether there are :math:`\gamma` (`weight`, from 1) and :math:`\beta` (`bias`, from 0).
    num_threads : int, optional
        The default is `onepass.get_num_threads()`, at each call.
    dtype : float32 or float64
        Of the parameters and of `x`.

    Attributes
    ----------
    weight, bias, weight_grad, bias_grad : ndarray of shape (num_channels,), or None
        The parameters and their gradients, as those of `LayerNorm`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from PyTorch as `LayerNorm` does.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> norm = op.GroupNorm(2, 4, dtype=np.float64)
    >>> norm.forward(np.array([[1.0, 3.0, 10.0, 30.0]])).round(4)
    array([[-1.,  1., -1.,  1.]])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        num_threads: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_groups = self._num_groups = check_groups(num_groups)
        self.num_channels = Whole(low=1)("num_channels", num_channels)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of the {self.num_channels} channels, "
                f"got {num_groups}"
            )
        self.eps = check_eps(eps)
        self.affine = Flag()("affine", affine)
        self._start(
            (self.num_channels,),
            weight=self.affine,
            bias=self.affine,
            num_threads=num_threads,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return self._repr(self.num_groups, self.num_channels, eps=self.eps, affine=self.affine)


class InstanceNorm(RowNorm):
    r"""Instance normalisation: every channel of every sample for itself.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    See `instance_norm`.

    Parameters
    ----------
    num_features : int
        Channels, on axis 1 of `x`.
    eps : float > 0
        Added to the variance.
    affine : bool
        Whether there are :math:`\gamma` (`weight`, from 1) and :math:`\beta` (`bias`, from 0).
    num_threads : int, optional
        The default is `onepass.get_num_threads()`, at each call.
    dtype : float32 or float64
        Of the parameters and of `x`.

    Attributes
    ----------
    weight, bias, weight_grad, bias_grad : ndarray of shape (num_features,), or None
        The parameters and their gradients, as those of `LayerNorm`.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from PyTorch as `LayerNorm` does; and in `track_running_stats`, which is not here, and
    which PyTorch leaves off unless asked for.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization: the missing ingredient for
    fast stylization", arXiv:1607.08022, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> norm = op.InstanceNorm(2, dtype=np.float64)
    >>> norm.forward(np.array([[[1.0, 3.0], [10.0, 30.0]]])).round(4)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = False,
        num_threads: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_features = Whole(low=1)("num_features", num_features)
        self.eps = check_eps(eps)
        self.affine = Flag()("affine", affine)
        self._start(
            (self.num_features,),
            weight=self.affine,
            bias=self.affine,
            num_threads=num_threads,
            dtype=dtype,
        )

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return self._repr(self.num_features, eps=self.eps, affine=self.affine)
