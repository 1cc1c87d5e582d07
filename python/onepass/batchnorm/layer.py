"""Batch normalisation as a layer: parameters, running statistics, forward and backward."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

from onepass import _core
from onepass._communicator import Gathers, check_comm
from onepass._hyperparameters import FLAG, Whole, check_dtype
from onepass._typing import Array
from onepass.batchnorm._backward import go_back
from onepass.batchnorm._forward import normalize
from onepass.batchnorm._passes import INTERRUPTED, NONE_YET, Forward
from onepass.batchnorm._ranks import Exchange
from onepass.batchnorm._state import State
from onepass.batchnorm.context import Context
from onepass.batchnorm.functional import CHECKS
from onepass.batchnorm.pieces import GradientSums, Moments


class BatchNorm(State):
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
        Of the parameters, the running statistics, and `x`. A layer of float32 also takes `x` in
        float16 and bfloat16, with all that is as large as `x` in the same dtype.
    comm : communicator, optional
        With it the batch is that of all ranks together, and each rank's `x` is a piece of it: the
        statistics are those of the whole batch, and `backward` goes through them. It is mpi4py's,
        or has its `rank`, `size` and `Allgather`. See the notes.

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
    training : bool
        The mode, True at first: whether `forward` uses the statistics of the batch. `train` and
        `eval` set it.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``.

    Notes
    -----
    With `comm`, a forward with the statistics of the batch and its backward are collectives: every
    rank calls them, also one whose `x` has no values, in the same order of layers. Each takes one
    `Allgather` of two or three float64 numbers a channel. All ranks merge the same numbers in the
    order of the ranks, and so have the same statistics, to the bit, and the same running ones.
    They are those of the whole batch on one rank: to the bit where the sums are exact, and else up
    to the order of float64 sums, which `batch_norm_moments` explains. `weight_grad` and `bias_grad`
    are those of this rank's `x`; the sum over the ranks, which the exchange of all gradients takes,
    is that of the whole batch. A wrong argument on one rank raises an error on every rank, and
    nothing has changed on any. The state is the same on all ranks, and is saved and loaded as
    without `comm`; a deep copy has the same communicator.

    Differs from

    * PyTorch: nothing in the names and defaults that it has (not `axis`, `relu`, `residual`,
      `unbiased_running_var`, `nonfinite`, `mask`; its ``SyncBatchNorm`` is `comm`). A gradient is
      overwritten, unless ``backward(dy, accumulate=True)`` adds to it; a forward has one backward;
      the batch's statistics are float64; and a batch that is refused is not counted.
    * Keras: `axis` is -1, `momentum` is the weight of the *old* value (0.99, here 0.01), `eps` is
      1e-3, and the running variance is the biased one (``unbiased_running_var=False``). With a
      `mask` Keras adds 1e-7 to the number of positions.
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

    training: bool = True

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
        comm: Gathers | None = None,
    ) -> None:
        self.num_features = Whole(low=1)("num_features", num_features)
        self.axis = CHECKS["axis"]("axis", axis)
        self.eps: float = CHECKS["eps"]("eps", eps)
        self.momentum: float | None = (
            None if momentum is None else CHECKS["momentum"]("momentum", momentum)
        )
        self.affine = FLAG("affine", affine)
        self.track_running_stats = FLAG("track_running_stats", track_running_stats)
        self.unbiased_running_var: bool = FLAG("unbiased_running_var", unbiased_running_var)
        self.relu: bool = FLAG("relu", relu)
        self.nonfinite: str = CHECKS["nonfinite"]("nonfinite", nonfinite)
        self.num_threads = None if num_threads is None else _core.check_num_threads(num_threads)
        self.dtype = check_dtype(dtype)
        if comm is not None:
            check_comm(comm, "Allgather")
        self.comm = comm
        self._forward: Forward | str = NONE_YET
        self._start(affine=self.affine, track_running_stats=self.track_running_stats)

    def __repr__(self) -> str:
        """Return the call that makes a layer like this one."""
        return (
            f"BatchNorm({self.num_features}, axis={self.axis}, eps={self.eps!r}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, "
            f"unbiased_running_var={self.unbiased_running_var}, relu={self.relu}, "
            f"nonfinite={self.nonfinite!r}, num_threads={self.num_threads}, dtype='{self.dtype}'"
            f"{'' if self.comm is None else f', comm={self.comm!r}'})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file keeps: not the last input, which may be large."""
        return {**self.__dict__, "_forward": NONE_YET}

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNorm:
        """Return a copy on the same communicator: that is a handle, and not the layer's own."""
        made = copy(self)
        kept = {"comm": self.comm, "_forward": NONE_YET}
        own = {name: value for name, value in vars(self).items() if name not in kept}
        vars(made).update(deepcopy(own, memo), **kept)
        return made

    def train(self, mode: bool = True) -> Self:
        """Use the statistics of the batch from now on, or with ``mode=False`` the running ones.

        Returns
        -------
        BatchNorm
            The layer itself.
        """
        self.training = FLAG("mode", mode)
        return self

    def eval(self) -> Self:
        """Use the running statistics from now on: ``train(False)``."""
        return self.train(False)

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        """Do as `forward`."""
        return self.forward(x, *args, **kwargs)

    @overload
    def forward(
        self,
        x: Array,
        training: bool | None = None,
        out: Array | None = None,
        *,
        residual: Array | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        context: Literal[False] = False,
    ) -> Array: ...
    @overload
    def forward(
        self,
        x: Array,
        training: bool | None = None,
        out: Array | None = None,
        *,
        residual: Array | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        context: Literal[True],
    ) -> tuple[Array, Context]: ...
    def forward(
        self,
        x: Array,
        training: bool | None = None,
        out: Array | None = None,
        *,
        residual: Array | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        context: bool = False,
    ) -> Array | tuple[Array, Context]:
        """Normalise; while training, also update the running statistics.

        Parameters
        ----------
        x : ndarray of the layer's dtype, or of 16 bits in a layer of float32
            With `num_features` channels on `axis`. The layer keeps a reference to it for
            `backward`: until then, leave it and the parameters as they are.
        training : bool, optional
            Whether to use the statistics of the batch, and not the running ones. The default is the
            layer's mode: its attribute `training`, True at first.
        out : ndarray like `x`, in the same memory layout, optional
            Takes the result. It may be `x` or `residual` itself if ``training=False``; there is no
            `backward` then.
        residual : ndarray of x's shape and dtype, optional
            Added before ReLU, for ``relu(batch_norm(x) + residual)``. Kept like `x`; `backward`
            returns its gradient too.
        mask : ndarray of bool, of x's shape without the axis of the channels, optional
            False where a position does not count for the statistics of the batch, such as padding.
            Those positions are normalised with the statistics of the others. At least two
            positions are True. With the running statistics it makes no difference, and all may be
            False.
        context : bool
            Whether to return a context too, which ``backward(dy, context=...)`` takes. The forward
            before then keeps its own `backward`, so that several may wait for theirs.

        Returns
        -------
        y : ndarray
            `out`, or a new array in `x`'s memory layout.
        context : Context
            Only with ``context=True``; then a tuple of both.

        Raises
        ------
        TypeError, ValueError
            ``<argument>: expected ..., got ...``. Nothing has changed then.

        Notes
        -----
        A mask costs a copy of the positions that count, and in `backward` a copy of the others. The
        statistics may then differ in the last float64 digit from those without a mask, also where
        all positions count: the sums are taken in another order. What `x` has at a position that
        does not count, even a NaN, changes nothing at the others.
        """
        holder = self if context is False or _is_off(context) else Context(self)
        kept, holder._forward = holder._forward, INTERRUPTED
        training = self.training if training is None else training
        given = x, training, out, residual, mask, context
        try:
            if self.comm is None or (_is_off(training) and self.track_running_stats):
                y, holder._forward = normalize(self, *given)
            else:
                with Exchange(self.comm, Moments, self.num_features) as exchange:
                    y, holder._forward = normalize(self, *given, exchange=exchange)
        except Exception:
            holder._forward = kept
            raise
        return (y, holder) if isinstance(holder, Context) else y

    def backward(
        self,
        dy: Array,
        out: Array | None = None,
        *,
        context: Context | None = None,
        accumulate: bool = False,
    ) -> Any:
        """Return the gradient with respect to `x`, and fill `weight_grad` and `bias_grad`.

        It is the gradient of the last `forward`, or of the one that returned `context`: through the
        statistics of the batch where that used them, and with constant statistics where it used the
        running ones.

        Parameters
        ----------
        dy : ndarray
            Gradient of the loss with respect to the result of `forward`.
        out : ndarray like `x`, in the same memory layout, optional
            Takes the result; it may be `dy`, `x` or `residual` itself.
        context : Context, optional
            What ``forward(x, context=True)`` of this layer returned. The default is the last
            forward without a context.
        accumulate : bool
            Whether the gradients are added to what `weight_grad` and `bias_grad` have, as PyTorch
            does, and do not overwrite it.

        Returns
        -------
        dx : ndarray
            `out`, or a new array in `x`'s memory layout.
        dresidual : ndarray
            Only after a `forward` with `residual`; then a tuple of both.

        Raises
        ------
        RuntimeError
            Before any `forward`, after one that overwrote its own input, and where the last one, or
            that of `context`, has had its backward.
        TypeError, ValueError
            ``<argument>: expected ..., got ...``; also for a context of another layer, and for an
            `x` that has been given another shape. Nothing has changed then.

        Notes
        -----
        A forward has one backward, because a second one is nearly always meant for another forward,
        which the layer no longer knows. A network that applies one layer several times takes a
        context of each time. The first backward overwrites the gradients, as ever, and the others
        add theirs:

        >>> import numpy as np
        >>> import onepass as op
        >>> bn = op.BatchNorm(2, dtype=np.float64)
        >>> y, first = bn.forward(np.array([[1.0, 2.0], [3.0, 5.0]]), context=True)
        >>> z, second = bn.forward(y, context=True)
        >>> dy = bn.backward(np.array([[1.0, 0.0], [0.0, 0.0]]), context=second)
        >>> dx = bn.backward(dy, context=first, accumulate=True)
        >>> bn.bias_grad
        array([1., 0.])
        >>> int(bn.num_batches_tracked)
        2

        With `mask`, the gradient is that of what `forward` computed: `dy` counts at every position,
        as in Keras. A loss that leaves the same positions out has a `dy` of 0 there. Then they add
        nothing to any sum, and their gradient is 0.

        For several gradients of one forward (a Jacobian), or to check a gradient by finite
        differences, `batch_norm_train` and `batch_norm_backward` keep nothing and count nothing;
        with the layer, call `forward` again before each `backward`.
        """
        if self.comm is None:
            return go_back(self, dy, out, context, accumulate)
        kept = getattr(self if context is None else context, "_forward", None)
        if isinstance(kept, Forward) and kept.eps:
            return go_back(self, dy, out, context, accumulate)
        with Exchange(self.comm, GradientSums, self.num_features) as exchange:
            return go_back(self, dy, out, context, accumulate, exchange)


def _is_off(flag: Any) -> bool:
    """Return whether it is False, before a pass in which all ranks take part has checked it."""
    return isinstance(flag, bool | np.bool) and not flag
