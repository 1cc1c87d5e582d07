"""A layer's passes over a batch of which some positions do not count, such as padding.

The passes in native code run over all positions. Only the sums are those of some: they take the
place where a batch in pieces takes the sums of all pieces.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._typing import Array
from onepass.batchnorm._passes import Forward, piece_backward, piece_moments, piece_train

Mask = npt.NDArray[np.bool_]


def left_out_by(mask: Any, x: Array, axis: int, least: int) -> Mask:
    """Return where `mask` is False, in an array of its own, or raise what is wrong with it."""
    if not isinstance(x, np.ndarray) or not -x.ndim <= axis < x.ndim:
        piece_moments(x, axis, None)  # raises what is wrong
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"mask: expected a NumPy array, got {type(mask).__name__}")
    if mask.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
    shape = x.shape[: axis % x.ndim] + x.shape[axis % x.ndim + 1 :]
    if mask.shape != shape:
        raise ValueError(
            f"mask: expected shape {shape}, x's without the channels, got {mask.shape}"
        )
    left_out: Mask = ~np.asarray(mask)
    if (count := _count(left_out)) < least:
        raise ValueError(f"mask: expected at least {least} positions that are True, got {count}")
    return left_out


def masked_train(
    x: Array, left_out: Mask, axis: int, exchange: Callable[..., Any] | None, *given: Any
) -> tuple[Array, Array, Array]:
    """Do as `layer_train` with the statistics of the positions that are not left out."""
    num_threads = given[-1]
    moments = piece_moments(_rows(x, axis, ~left_out), 1, num_threads)
    if exchange is None:
        return piece_train(x, *moments, None, *given)
    return piece_train(x, None, None, None, None, lambda *_: exchange(*moments), *given)


def masked_backward(
    dy: Array, kept: Forward, exchange: Callable[..., Any] | None, *given: Any
) -> tuple[Array, ...]:
    """Do as `layer_backward`, where positions that are left out moved no statistics."""
    left_out, count = kept.left_out, _count(kept.left_out)
    weight, bias, out, weight_grad, bias_grad, num_threads = given
    statistics = kept.mean, kept.scale, weight, bias
    beside = _beside_statistics(dy, kept, statistics, num_threads)  # `out` may be one of these

    def whole(_: int, *sums: Any) -> Any:
        return (count, *sums) if exchange is None else exchange(count, *sums)

    dx, *others = piece_backward(
        dy,
        kept.x,
        None,
        None,
        None,
        whole,
        *statistics,
        kept.axis,
        kept.relu,
        kept.residual,
        out,
        weight_grad,
        bias_grad,
        num_threads,
    )
    if beside is not None:
        np.moveaxis(np.asarray(dx), kept.axis, -1)[left_out] = beside
    return dx, *others


def _beside_statistics(
    dy: Array, kept: Forward, statistics: tuple[Any, Any, Any, Any], num_threads: int | None
) -> Array | None:
    """Return dx where positions are left out: no statistic depends on x there."""
    if not isinstance(dy, np.ndarray) or dy.shape != kept.x.shape:
        return None  # the pass over all positions raises what is wrong
    x, axis, where = kept.x, kept.axis, kept.left_out
    residual = None if kept.residual is None else _rows(kept.residual, axis, where)
    none = np.zeros(kept.mean.shape)
    dx, *_ = piece_backward(
        _rows(dy, axis, where),
        _rows(x, axis, where),
        1,
        none,
        none,
        None,
        *statistics,
        1,
        kept.relu,
        residual,
        None,
        None,
        None,
        num_threads,
    )
    return dx


def _rows(array: Array, axis: int, where: Mask | None) -> Array:
    """Return a copy of these positions: a row of all channels for each."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), axis, -1)[where])


def _count(left_out: Mask | None) -> int:
    assert left_out is not None
    return left_out.size - int(np.count_nonzero(left_out))
