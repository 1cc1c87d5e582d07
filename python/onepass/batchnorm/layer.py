"""Batch normalisation as a layer: parameters, running statistics, forward and backward."""

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._hyperparameters import Flag, check_dtype
from onepass._typing import Array
from onepass.batchnorm.functional import CHECKS, batch_norm_infer
from onepass.batchnorm.reference import Float64

NEVER_NEGATIVE = ("running_var", "num_batches_tracked")
MOST_BATCHES = 2**53
"""That are counted: up to here the float64 1 / count is exact in the count."""

# Why there is no forward to go back through.
NONE_YET = "none"
OVERWROTE = "one that wrote over what it was given"
DONE = "one that has had its backward"
INTERRUPTED = "one that was interrupted, or its backward was"


@_core.native
def layer_train(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    num_batches_tracked: npt.NDArray[np.int64] | None,
    momentum: float | None,
    eps: float,
    axis: int,
    unbiased_running_var: bool,
    nonfinite: str,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    num_threads: int | None,
) -> tuple[Array, Float64, Float64]:
    """Do as `batch_norm_train`, and count the batch; without `momentum` all batches weigh alike."""


@_core.native
def layer_backward(
    dy: Array,
    x: Array,
    mean: Array,
    scale: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float | None,
    axis: int,
    relu: bool,
    residual: Array | None,
    out: Array | None,
    weight_grad: Array | None,
    bias_grad: Array | None,
    num_threads: int | None,
) -> tuple[Array, ...]:
    """Do as `batch_norm_backward`, or with `eps` as `batch_norm_infer_backward`: `scale` is `var`.

    `weight_grad` and `bias_grad` take the gradients.
    """


@dataclass(frozen=True)
class _Forward:
    """What a forward pass leaves for the backward pass."""

    x: Array
    residual: Array | None
    mean: Array
    scale: Array
    eps: float | None
    """With it `scale` is a variance that was given, else the batch's 1 / standard deviation."""
    axis: int
    relu: bool


class BatchNorm:
    r"""Batch normalisation of any channel axis.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the statistics of the batch while training, and with running ones otherwise.

    Parameters
    ----------
    num_features : int
        Channels.
    axis : int
        Their axis: 1 for (N, C), (N, C, L), NCHW and NCDHW, -1 for channels last.
    eps : float > 0
        Added to the variance.
    momentum : float in [0, 1], or None
        The weight of the new value in the running statistics; None for the plain average of all
        batches.
    affine : bool
        Whether there are :math:`\gamma` (`weight`, from 1) and :math:`\beta` (`bias`, from 0).
    track_running_stats : bool
        Without, the statistics of the batch are used always.
    unbiased_running_var : bool
        Whether `running_var` takes the variance times :math:`n / (n - 1)`, as in PyTorch, or the
        biased one, as in Keras and ONNX.
    relu : bool
        Put 0 in the place of what is negative, in the same pass.
    nonfinite : {"propagate", "skip"}
        Whether a batch whose statistics are not finite, in any channel and in `dtype`, goes into
        the running ones, and stays there, or is skipped and not counted. See `batch_norm_train`.
    num_threads : int, optional
        The default is `onepass.get_num_threads()`, at each call.
    dtype : float32 or float64
        Of the parameters, the running statistics, and `x`.

    Attributes
    ----------
    weight, bias : ndarray of shape (num_features,), or None
        Parameters, for an optimizer to update in place. Another array may take their place, such as
        a view of a vector that holds all parameters of a network.
    weight_grad, bias_grad : ndarray of shape (num_features,), or None
        Their gradients; `backward` overwrites them in place.
    running_mean, running_var : ndarray of shape (num_features,), or None
        From 0 and 1.
    num_batches_tracked : ndarray of int64, without axes, or None
        Forward passes that updated the running statistics.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    Differs from

    * PyTorch: nothing in the names and defaults that it has (not `axis`, `relu`, `residual`,
      `unbiased_running_var`, `nonfinite`). A gradient is overwritten, not added to; a forward has
      one backward; the batch's statistics are float64; and a batch that is refused is not counted.
    * Keras: `axis` is -1, `momentum` is the weight of the *old* value (0.99, here 0.01), `eps` is
      1e-3, and the running variance is the biased one (``unbiased_running_var=False``).
    * ONNX: `momentum` is the weight of the old value (0.9, here 0.1), and the running variance is
      the biased one.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> bn = op.BatchNorm(2, dtype=np.float64)
    >>> bn.forward(np.array([[1.0, 10.0], [3.0, 10.0]])).round(4)
    array([[-1.,  0.],
           [ 1.,  0.]])
    >>> bn.backward(np.array([[1.0, 1.0], [0.0, 0.0]])).round(4)
    array([[   0.    ,  158.1139],
           [  -0.    , -158.1139]])
    >>> opt = op.SGD([bn.weight, bn.bias], lr=0.1)
    >>> info = opt.step([bn.weight_grad, bn.bias_grad])
    >>> bn.weight.round(4), bn.bias
    (array([1.1, 1. ]), array([-0.1, -0.1]))
    >>> bn.running_mean, bn.running_var
    (array([0.2, 1. ]), array([1.1, 0.9]))
    """

    weight: Array | None = None
    bias: Array | None = None
    weight_grad: Array | None = None
    bias_grad: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    num_batches_tracked: npt.NDArray[np.int64] | None = None

    def __init__(
        self,
        num_features: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        unbiased_running_var: bool = True,
        relu: bool = False,
        nonfinite: str = "propagate",
        num_threads: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.num_features = _check_num_features(num_features)
        self.axis = CHECKS["axis"]("axis", axis)
        self.eps: float = CHECKS["eps"]("eps", eps)
        self.momentum: float | None = (
            None if momentum is None else CHECKS["momentum"]("momentum", momentum)
        )
        self.affine = Flag()("affine", affine)
        self.track_running_stats = Flag()("track_running_stats", track_running_stats)
        self.unbiased_running_var: bool = Flag()("unbiased_running_var", unbiased_running_var)
        self.relu: bool = Flag()("relu", relu)
        self.nonfinite: str = CHECKS["nonfinite"]("nonfinite", nonfinite)
        self.num_threads = None if num_threads is None else _core.check_num_threads(num_threads)
        self.dtype = check_dtype(dtype)
        self._forward: _Forward | str = NONE_YET
        if self.affine:
            self.weight, self.bias = self._vector(1), self._vector(0)
            self.weight_grad, self.bias_grad = self._vector(0), self._vector(0)
        if self.track_running_stats:
            self.running_mean, self.running_var = self._vector(0), self._vector(1)
            self.num_batches_tracked = np.zeros((), np.int64)

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return (
            f"BatchNorm({self.num_features}, axis={self.axis}, eps={self.eps!r}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, "
            f"unbiased_running_var={self.unbiased_running_var}, relu={self.relu}, "
            f"nonfinite={self.nonfinite!r}, num_threads={self.num_threads}, dtype='{self.dtype}')"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file keeps: not the last input, which may be large."""
        return {**self.__dict__, "_forward": NONE_YET}

    def forward(
        self,
        x: Array,
        training: bool = True,
        out: Array | None = None,
        *,
        residual: Array | None = None,
    ) -> Array:
        """Normalise; while training, also update the running statistics.

        Parameters
        ----------
        x : ndarray of the layer's dtype
            With `num_features` channels on `axis`. The layer keeps a reference to it for
            `backward`: until then, leave it and the parameters as they are.
        training : bool
            Whether to use the statistics of the batch, and not the running ones.
        out : ndarray like `x`, in the same memory layout, optional
            Takes the result. It may be `x` or `residual` itself if ``training=False``; there is no
            `backward` then.
        residual : ndarray of x's shape and dtype, optional
            Added before ReLU, for ``relu(batch_norm(x) + residual)``. Kept like `x`; `backward`
            returns its gradient too.

        Returns
        -------
        ndarray
            `out`, or a new array in `x`'s memory layout.

        Raises
        ------
        TypeError, ValueError
            ``<argument>: expected ..., got ...``. Nothing has changed then.
        """
        kept, self._forward = self._forward, INTERRUPTED
        try:
            y, self._forward = self._normalize(x, training, out, residual)
        except Exception:
            self._forward = kept
            raise
        return y

    def _normalize(
        self, x: Array, training: bool, out: Array | None, residual: Array | None
    ) -> tuple[Array, "_Forward | str"]:
        """Return y, and what `backward` will need or why there is none."""
        axis = CHECKS["axis"]("axis", self.axis)
        self._check_input(x, axis)
        if not Flag()("training", training) and self.track_running_stats:
            mean, var = np.array(self.running_mean), np.array(self.running_var)
            y = batch_norm_infer(
                x,
                mean=mean,
                var=var,
                weight=self.weight,
                bias=self.bias,
                eps=self.eps,
                axis=axis,
                relu=self.relu,
                residual=residual,
                out=out,
                num_threads=self.num_threads,
            )
            if any(np.may_share_memory(y, read) for read in (x, residual) if read is not None):
                return y, OVERWROTE
            return y, _Forward(x, residual, mean, var, self.eps, axis, self.relu)
        y, mean, invstd = layer_train(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            self.momentum,
            self.eps,
            axis,
            self.unbiased_running_var,
            self.nonfinite,
            self.relu,
            residual,
            out,
            self.num_threads,
        )
        return y, _Forward(x, residual, mean, invstd, None, axis, self.relu)

    def backward(self, dy: Array, out: Array | None = None) -> Any:
        """Return the gradient with respect to `x`, and fill `weight_grad` and `bias_grad`.

        It is the gradient of the last `forward`: through the statistics of the batch where that
        used them, and with constant statistics where it used the running ones.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss with respect to the result of `forward`.
        out : ndarray like `x`, in the same memory layout, optional
            Takes the result; it may be `dy`, `x` or `residual` itself.

        Returns
        -------
        dx : ndarray
            `out`, or a new array in `x`'s memory layout.
        dresidual : ndarray
            Only after a `forward` with `residual`; then a tuple of both.

        Raises
        ------
        RuntimeError
            Before any `forward`, after one that overwrote its own input, and where the last one has
            had its backward.
        TypeError, ValueError
            ``<argument>: expected ..., got ...``. Nothing has changed then.

        Notes
        -----
        A forward has one backward, because a second one is nearly always meant for another forward,
        which the layer no longer knows. If a network applies one layer twice, a `copy.copy` of the
        layer for each further place shares parameters and running statistics. Give it gradients of
        its own, and add them:

        >>> import copy
        >>> import numpy as np
        >>> import onepass as op
        >>> bn = op.BatchNorm(2, dtype=np.float64)
        >>> twin = copy.copy(bn)
        >>> twin.weight_grad, twin.bias_grad = np.zeros(2), np.zeros(2)
        >>> z = twin.forward(bn.forward(np.array([[1.0, 2.0], [3.0, 5.0]])))
        >>> dx = bn.backward(twin.backward(np.array([[1.0, 0.0], [0.0, 0.0]])))
        >>> bn.bias_grad += twin.bias_grad
        >>> bn.weight_grad += twin.weight_grad
        >>> int(bn.num_batches_tracked)
        2

        For several gradients of one forward (a Jacobian), or to check a gradient by finite
        differences, `batch_norm_train` and `batch_norm_backward` keep nothing and count nothing;
        with the layer, call `forward` again before each `backward`.
        """
        kept = self._forward
        if isinstance(kept, str):
            raise RuntimeError(
                "backward: expected a forward before it whose input is still there and that has "
                f"had no backward yet, got {kept}"
            )
        self._forward = INTERRUPTED
        try:
            dx, _, _, *dresidual = layer_backward(
                dy,
                kept.x,
                kept.mean,
                kept.scale,
                self.weight,
                self.bias,
                kept.eps,
                kept.axis,
                kept.relu,
                kept.residual,
                out,
                self.weight_grad,
                self.bias_grad,
                self.num_threads,
            )
        except Exception:
            self._forward = kept
            raise
        self._forward = DONE
        return (dx, *dresidual) if dresidual else dx

    def reset_running_stats(self) -> None:
        """Set the running statistics to what they were at first: 0, 1, and no batches."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        _write((self.running_mean, self.running_var, self.num_batches_tracked), (0, 1, 0))

    def fold_into(
        self, weight: Array, bias: Array | None = None, *, axis: int = 0
    ) -> tuple[Array, Array]:
        r"""Fold this BatchNorm into the layer before it: return that layer's new weight and bias.

        For inference. A linear or convolutional layer with weight :math:`W` and bias :math:`b`,
        followed by this one with its running statistics, is the same as one layer with

        .. math:: W' = s W, \qquad b' = s (b - \mu) + \beta, \qquad
            s = \gamma / \sqrt{\sigma^2 + \epsilon}

        for each output channel. ReLU, if there is one, stays to be done.

        Parameters
        ----------
        weight : ndarray
            Not changed.
        bias : ndarray of shape (num_features,), optional
            0 if absent. Not changed.
        axis : int
            The axis of `weight` with the output channels: 0 for PyTorch's (out, in, ...), -1 for
            Keras' and NumPy's (..., in, out).

        Returns
        -------
        weight, bias : ndarray
            New arrays, of the given weight's dtype.

        Raises
        ------
        TypeError, ValueError
            If there are no running statistics, or the arrays do not match.

        Notes
        -----
        Differs from PyTorch's ``fuse_conv_bn_weights`` in `axis`, which that does not have, and in
        computing in float64.

        Examples
        --------
        >>> import numpy as np
        >>> import onepass as op
        >>> bn = op.BatchNorm(2, dtype=np.float64)
        >>> bn.running_mean[:], bn.running_var[:] = [1.0, 2.0], [4.0, 0.25]
        >>> weight, bias = bn.fold_into(np.ones((2, 3)))
        >>> weight.round(3), bias.round(3)
        (array([[0.5, 0.5, 0.5],
               [2. , 2. , 2. ]]), array([-0.5, -4. ]))
        """
        if self.running_mean is None or self.running_var is None:
            raise ValueError(
                "fold_into: expected running statistics, got a layer with track_running_stats=False"
            )
        channels, axis = self.num_features, CHECKS["axis"]("axis", axis)
        for name, array in (("weight", weight), ("bias", bias)):
            if array is not None and not _is_floating(array):
                raise TypeError(
                    f"{name}: expected an array of floating-point numbers, got {array!r}"
                )
        if not -weight.ndim <= axis < weight.ndim or weight.shape[axis] != channels:
            raise ValueError(
                f"weight: expected {channels} output channels on axis {axis}, "
                f"got shape {weight.shape}"
            )
        if bias is not None and np.shape(bias) != (channels,):
            raise ValueError(f"bias: expected shape ({channels},), got shape {np.shape(bias)}")
        along = [1] * weight.ndim
        along[axis] = channels
        with np.errstate(all="ignore"):
            scale = 1 / np.sqrt(self.running_var.astype(np.float64) + self.eps)
            if self.weight is not None:
                scale = scale * self.weight
            shift = (np.zeros(channels) if bias is None else bias) - self.running_mean.astype(
                np.float64
            )
            shift = shift * scale + (0 if self.bias is None else self.bias)
            folded = weight * scale.reshape(along)
            return folded.astype(weight.dtype), shift.astype(weight.dtype)

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of all arrays that a run continues from, under PyTorch's names.

        Returns
        -------
        dict of str to ndarray
            Those of ``weight``, ``bias``, ``running_mean``, ``running_var`` and
            ``num_batches_tracked`` that the layer has.
        """
        return {name: np.array(array) for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the arrays of a `state_dict`, in place: this layer's, or PyTorch's.

        Parameters
        ----------
        state : mapping of str to array
            With the keys of `state_dict`; ``num_batches_tracked`` may be missing, as it is in old
            files, and counts as 0.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a key is missing or unknown, or an array does not fit. Nothing has changed then.

        Warns
        -----
        RuntimeWarning
            Where a finite float64 value is infinite in float32, as in NumPy, but whatever
            `np.errstate` says. Where warnings are errors, nothing has changed.
        """
        own = self._state()
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        given = dict(state)
        if "num_batches_tracked" in own:
            given.setdefault("num_batches_tracked", np.zeros((), np.int64))
        if given.keys() != own.keys():
            raise KeyError(f"state: expected the keys {sorted(own)}, got {sorted(state)}")
        values = []
        with np.errstate(all="ignore"):
            for name, array in own.items():
                value = np.asarray(given[name])
                _check_fits(name, value, array)
                values.append(np.array(value, array.dtype))
                if (np.isfinite(value) & ~np.isfinite(values[-1])).any():
                    lost = f"values beyond the range of {array.dtype} become infinite"
                    warnings.warn(f"state['{name}']: {lost}", RuntimeWarning, stacklevel=2)
        _write(own.values(), values)

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}

    def _vector(self, value: float) -> Array:
        return np.full(self.num_features, value, self.dtype)

    def _check_input(self, x: Array, axis: int) -> None:
        if not isinstance(x, np.ndarray):
            return  # the native call says it
        if x.dtype != self.dtype:
            raise TypeError(f"x: expected the layer's dtype {self.dtype}, got {x.dtype}")
        if -x.ndim <= axis < x.ndim and x.shape[axis] != self.num_features:
            raise ValueError(
                f"x: expected {self.num_features} channels on axis {axis}, got shape {x.shape}"
            )


def _is_floating(array: Any) -> bool:
    return isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)


def _check_fits(name: str, value: npt.NDArray[Any], array: npt.NDArray[Any]) -> None:
    """Raise what copying the value into the array would raise, or worse."""
    label = f"state['{name}']"
    if not np.can_cast(value.dtype, array.dtype, "same_kind"):
        raise TypeError(f"{label}: expected dtype {array.dtype}, got {value.dtype}")
    if value.shape != array.shape:
        raise ValueError(f"{label}: expected shape {array.shape}, got {value.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{label}: expected a writable array to load into, got a read-only one")
    if name in NEVER_NEGATIVE and (value < 0).any():
        raise ValueError(f"{label}: expected values >= 0, got {value}")
    if name == "num_batches_tracked" and value >= MOST_BATCHES:
        raise ValueError(f"{label}: expected a number of batches below 2**53, got {value}")


def _write(arrays: Iterable[npt.NDArray[Any]], values: Iterable[Any]) -> None:
    """Write what fits into each array, in one call: Ctrl-C comes before all or after all."""
    plain = [np.asarray(array) for array in arrays]  # or a subclass would run code of its own
    deque(map(np.copyto, plain, values), maxlen=0)


def _check_num_features(num_features: int) -> int:
    if isinstance(num_features, bool) or not isinstance(num_features, int | np.integer):
        raise TypeError(f"num_features: expected an integer >= 1, got {num_features!r}")
    if num_features < 1:
        raise ValueError(f"num_features: expected an integer >= 1, got {num_features}")
    return int(num_features)
