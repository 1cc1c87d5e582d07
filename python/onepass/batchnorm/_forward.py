"""The forward pass of a layer."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onepass._hyperparameters import FLAG
from onepass._typing import Array
from onepass.batchnorm._masks import left_out_by, masked_train
from onepass.batchnorm._passes import OVERWROTE, Forward, check_input, layer_train, piece_train
from onepass.batchnorm._ranks import Exchange
from onepass.batchnorm.functional import CHECKS, batch_norm_infer

if TYPE_CHECKING:
    from onepass.batchnorm.layer import BatchNorm


def normalize(
    layer: "BatchNorm",
    x: Array,
    training: bool,
    out: Array | None,
    residual: Array | None,
    mask: npt.NDArray[np.bool_] | None,
    context: bool,
    *,
    exchange: Exchange | None = None,
) -> tuple[Array, Forward | str]:
    """Return y, and what `backward` will need or why there is none."""
    axis = CHECKS["axis"]("axis", layer.axis)
    check_input(x, axis, layer.num_features, layer.dtype)
    FLAG("context", context)
    is_frozen = not FLAG("training", training) and layer.track_running_stats
    left_out = None
    if mask is not None:
        is_all = exchange is None and not is_frozen  # of the statistics, on this rank
        left_out = left_out_by(mask, x, axis, least=2 if is_all else 0)
    if is_frozen:
        mean, var = np.array(layer.running_mean), np.array(layer.running_var)
        y = batch_norm_infer(
            x,
            mean=mean,
            var=var,
            weight=layer.weight,
            bias=layer.bias,
            eps=layer.eps,
            axis=axis,
            relu=layer.relu,
            residual=residual,
            out=out,
            num_threads=layer.num_threads,
        )
        if any(np.may_share_memory(y, read) for read in (x, residual) if read is not None):
            return y, OVERWROTE
        return y, Forward(x, residual, mean, var, layer.eps, axis, layer.relu, x.shape)
    given = (
        layer.weight,
        layer.bias,
        layer.running_mean,
        layer.running_var,
        layer.num_batches_tracked,
        layer.momentum,
        layer.eps,
        axis,
        layer.unbiased_running_var,
        layer.nonfinite,
        layer.relu,
        residual,
        out,
        layer.num_threads,
    )
    if left_out is not None:
        y, mean, invstd = masked_train(x, left_out, axis, exchange, *given)
    elif exchange is None:
        y, mean, invstd = layer_train(x, *given)
    else:
        y, mean, invstd = piece_train(x, None, None, None, None, exchange, *given)
    return y, Forward(x, residual, mean, invstd, None, axis, layer.relu, x.shape, left_out)
