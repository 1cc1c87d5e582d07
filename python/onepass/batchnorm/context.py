"""What a layer's forward pass gives to its caller, so that there may be several at a time."""

from __future__ import annotations

from typing import Any

from onepass.batchnorm._passes import INTERRUPTED, Forward


class Context:
    """One forward pass of a layer, for the backward pass of it.

    ``y, context = bn.forward(x, context=True)`` makes it, and ``bn.backward(dy, context=context)``
    uses it up. It keeps a reference to `x`, and to `residual` if there is one.
    """

    __slots__ = ("_forward", "_layer")

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._forward: Forward | str = INTERRUPTED

    def __repr__(self) -> str:
        """Say whether there is a backward pass to come."""
        kept = self._forward
        what = kept if isinstance(kept, str) else f"x of shape {kept.shape}, for a backward"
        return f"<context of a forward: {what}>"


def check_context(context: Any, layer: Any) -> None:
    """Raise what is wrong with a context for the backward of this layer."""
    if not isinstance(context, Context):
        raise TypeError(
            f"context: expected what forward(x, context=True) returned, got {context!r}"
        )
    if context._layer is not layer:
        raise ValueError("context: expected one of this layer, got one of another layer")
