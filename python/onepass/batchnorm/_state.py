"""The arrays of a layer: what they are at first, how they are saved, loaded and folded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.batchnorm._folding import fold
from onepass.batchnorm._loading import check_prefix, load, write
from onepass.batchnorm.functional import CHECKS


class State:
    """Parameters, their gradients, and running statistics."""

    num_features: int
    eps: float
    dtype: np.dtype[Any]

    weight: Array | None = None
    bias: Array | None = None
    weight_grad: Array | None = None
    bias_grad: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    num_batches_tracked: npt.NDArray[np.int64] | None = None

    def _start(self, *, affine: bool, track_running_stats: bool) -> None:
        if affine:
            self.weight, self.bias = self._vector(1), self._vector(0)
            self.weight_grad, self.bias_grad = self._vector(0), self._vector(0)
        if track_running_stats:
            self.running_mean, self.running_var = self._vector(0), self._vector(1)
            self.num_batches_tracked = np.zeros((), np.int64)

    def reset_running_stats(self) -> None:
        """Set the running statistics to what they were at first: 0, 1, and no batches."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        write((self.running_mean, self.running_var, self.num_batches_tracked), (0, 1, 0))

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
        return fold(
            weight,
            bias,
            CHECKS["axis"]("axis", axis),
            mean=self.running_mean,
            var=self.running_var,
            eps=self.eps,
            gamma=self.weight,
            beta=self.bias,
        )

    def state_dict(self, *, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """Return copies of all arrays that a run continues from, under PyTorch's names.

        Parameters
        ----------
        prefix : str
            What each name begins with, such as ``"bn1."`` for the layer of that name in a model of
            PyTorch's.

        Returns
        -------
        dict of str to ndarray
            Those of ``weight``, ``bias``, ``running_mean``, ``running_var`` and
            ``num_batches_tracked`` that the layer has.
        """
        check_prefix(prefix)
        return {prefix + name: np.array(array) for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], *, prefix: str = "") -> None:
        """Take the arrays of a `state_dict`, in place: this layer's, or PyTorch's.

        Parameters
        ----------
        state : mapping of str to array, or to PyTorch's tensors on the CPU
            With the keys of `state_dict`; ``num_batches_tracked`` may be missing, as it is in old
            files, and counts as 0.
        prefix : str
            Only names that begin with it are read: with ``"bn1."``, `state` may be that of a whole
            model.

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
        load(self._state(), state, prefix)

    def _state(self) -> dict[str, npt.NDArray[Any]]:
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        arrays = {name: getattr(self, name) for name in names}
        return {name: array for name, array in arrays.items() if array is not None}

    def _vector(self, value: float) -> Array:
        return np.full(self.num_features, value, self.dtype)
