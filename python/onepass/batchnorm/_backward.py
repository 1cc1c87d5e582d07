"""The backward pass of a layer."""

from typing import TYPE_CHECKING, Any

from onepass._hyperparameters import FLAG
from onepass._typing import Array
from onepass.batchnorm._loading import add, check_grads
from onepass.batchnorm._masks import masked_backward
from onepass.batchnorm._passes import DONE, INTERRUPTED, Forward, layer_backward, piece_backward
from onepass.batchnorm._ranks import Exchange
from onepass.batchnorm.context import Context, check_context

if TYPE_CHECKING:
    from onepass.batchnorm.layer import BatchNorm


def go_back(
    layer: "BatchNorm",
    dy: Array,
    out: Array | None,
    context: Context | None,
    accumulate: bool,
    exchange: Exchange | None = None,
) -> Any:
    """Return what `backward` does, and fill or add to the layer's gradients."""
    if context is not None:
        check_context(context, layer)
    holder = layer if context is None else context
    kept = holder._forward
    if isinstance(kept, str):
        raise RuntimeError(
            "backward: expected a forward before it whose input is still there and that has "
            f"had no backward yet, got {kept}"
        )
    if kept.x.shape != kept.shape:
        raise ValueError(f"x: expected shape {kept.shape}, as in forward, got {kept.x.shape}")
    grads = _grads_to_add_to(layer, out) if FLAG("accumulate", accumulate) else None
    holder._forward = INTERRUPTED
    try:
        dx, dweight, dbias, *dresidual = _gradients(
            layer, dy, kept, out, exchange, into_grads=grads is None
        )
        if grads is not None:
            new = {"weight_grad": dweight, "bias_grad": dbias}
            add(grads.values(), [new[name] for name in grads])
    except Exception:
        holder._forward = kept
        raise
    holder._forward = DONE
    return (dx, *dresidual) if dresidual else dx


def _gradients(
    layer: "BatchNorm",
    dy: Array,
    kept: Forward,
    out: Array | None,
    exchange: Exchange | None,
    *,
    into_grads: bool,
) -> tuple[Array, ...]:
    """Return those of x, weight, bias and residual."""
    grads = (layer.weight_grad, layer.bias_grad) if into_grads else (None, None)
    if kept.left_out is not None:
        given = layer.weight, layer.bias, out, *grads, layer.num_threads
        return masked_backward(dy, kept, exchange, *given)
    if exchange is None:
        return layer_backward(
            dy,
            kept.x,
            kept.mean,
            kept.scale,
            layer.weight,
            layer.bias,
            kept.eps,
            kept.axis,
            kept.relu,
            kept.residual,
            out,
            *grads,
            layer.num_threads,
        )
    return piece_backward(
        dy,
        kept.x,
        None,
        None,
        None,
        exchange,
        kept.mean,
        kept.scale,
        layer.weight,
        layer.bias,
        kept.axis,
        kept.relu,
        kept.residual,
        out,
        *grads,
        layer.num_threads,
    )


def _grads_to_add_to(layer: "BatchNorm", out: Array | None) -> dict[str, Array]:
    grads = {"weight_grad": layer.weight_grad, "bias_grad": layer.bias_grad}
    found = {name: array for name, array in grads.items() if array is not None}
    others = {"out": out, "weight": layer.weight, "bias": layer.bias}
    check_grads(found, (layer.num_features,), layer.dtype, others)
    return found
