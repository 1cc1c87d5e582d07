"""What the kernels take of PyTorch's tensors, and the state that goes with one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onepass import _capi, formats
from onepass.optim import Optimizer, _storage
from onepass.optim._settings import averages

FORMATS = {
    torch.float32: _capi.F32,
    torch.float64: _capi.F64,
    torch.bfloat16: _capi.BF16,
    torch.float16: _capi.F16,
}
STATE_FORMATS = {torch.bfloat16: _capi.BF16, torch.uint8: _capi.Q8}
SMALL = (torch.bfloat16, torch.float16)

AVERAGE, AVERAGE_FROM, MASTER, SLOW = "average", "average_from", "master", "slow"
STRIDES = "strides"
"""State beside the rule's own: the average of the weights, the steps before it began, the weights
of a parameter of 16 bits in float32, Lookahead's slow weights; and the parameter's strides, where
codes of 8 bits stand in its order."""


def unfit(tensor: Tensor) -> str | None:
    """Return what is wrong with a parameter or gradient, or None where the kernels take it."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return type(tensor).__name__
    if tensor.layout is not torch.strided:
        return f"{str(tensor.layout).removeprefix('torch.')} tensor"
    if not tensor.is_cpu:
        return f"{tensor.device.type.upper()} tensor"
    if tensor.dtype not in FORMATS:
        return f"{str(tensor.dtype).removeprefix('torch.')} tensor"
    return "lazily negated tensor" if tensor.is_neg() else None


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory, in whatever order of axes."""
    # A new tensor takes over the strides of just such a one.
    return bool(torch.empty_like(tensor, device="meta").stride() == tensor.stride())


def flat(tensor: Tensor) -> Any:
    """Return the memory of a dense tensor, which is not of 16 bits, as a vector of NumPy's."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()


def full(param: Tensor) -> torch.dtype:
    """Return the dtype in which the rule computes."""
    return torch.float32 if param.dtype in SMALL else param.dtype


def dtype_of_state(param: Tensor, state_format: str | None) -> torch.dtype:
    """Return the dtype in which a parameter keeps state that may be kept in fewer bits."""
    if state_format is None or param.numel() < _storage.SMALL:
        return full(param)
    return torch.bfloat16 if state_format == "bf16" else torch.uint8


def settle(
    cls: type[Optimizer], values: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state that the settings ask for, of what is there, by PyTorch's names.

    What is there may be in another format or order of axes, in a file of PyTorch's, say. A
    ValueError where it is another parameter's.
    """
    row, new = cls.row, dict[str, Any]()
    shape = tuple(param.shape)
    for k, own_shape in enumerate(row.state_shapes(values, shape)):
        if own_shape is None:
            continue
        name = row.states[k]
        kept = state.get(name)
        in_full = row.in_full[k] or own_shape != shape
        dtype = full(param) if in_full else dtype_of_state(param, values["state_format"])
        if kept is None:
            kept = torch.zeros_like(param, dtype=full(param))
            if own_shape != shape:
                kept = torch.zeros(own_shape, dtype=full(param))
            if start := row.start_values(values)[k]:
                kept.fill_(start)
        is_codes = kept.dtype == torch.uint8
        _check_shape(name, kept, (formats.q8_size(param.numel()),) if is_codes else own_shape)
        if is_codes:
            kept = _in_order(kept, param, state.get(STRIDES), row.has_sign[k])
        new[name] = stored(kept, param, dtype, row.has_sign[k])
    if any(kept.dtype == torch.uint8 for kept in new.values()):
        new[STRIDES] = tuple(param.stride())
    return new | _beside(values, param, state)


def _beside(values: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = {}

    def keep(name: str, begins: Tensor, dtype: torch.dtype) -> None:
        kept = state.get(name)
        if kept is None:
            kept = begins.detach().clone()
        _check_shape(name, kept, tuple(param.shape))
        new[name] = stored(kept, param, dtype, has_sign=True)

    if averages(values):
        in_full = values["average_dtype"] == "float32"
        keep(AVERAGE, param, full(param) if in_full else torch.float64)  # the first step writes it
        new[AVERAGE_FROM] = state[AVERAGE_FROM] if AVERAGE in state else steps_of(state)
    if values["rounding"] == "master" and param.dtype in SMALL:
        keep(MASTER, param, torch.float32)
    if values["lookahead_every"] is not None:
        # In the middle of a round it is as if the round began here.
        keep(SLOW, new.get(MASTER, param), full(param))
    return new


def _check_shape(name: str, kept: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(kept.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(kept.shape)}")


def _in_order(codes: Tensor, param: Tensor, strides: Any, has_sign: bool) -> Tensor:
    """Return codes of 8 bits in the parameter's order of axes, which may have been another one."""
    if strides is None or tuple(strides) == param.stride():
        return codes
    before = torch.empty_strided(param.shape, tuple(strides), dtype=torch.float32)
    return stored(stored(codes, before, torch.float32, has_sign), param, torch.uint8, has_sign)


def stored(kept: Tensor, param: Tensor, dtype: torch.dtype, has_sign: bool) -> Tensor:
    """Return state in a format, rounded to nearest; the same tensor where it is in that already."""
    if kept.dtype == torch.uint8 != dtype:
        values = formats.q8_decode(kept.numpy(), param.numel(), signed=has_sign)
        kept = torch.empty_like(param, dtype=torch.float32)
        flat(kept)[...] = values
    if dtype == torch.uint8 != kept.dtype:
        values = flat(torch.empty_like(param, dtype=torch.float32).copy_(kept))
        return torch.from_numpy(formats.q8_encode(values, signed=has_sign))
    if kept.shape == param.shape and kept.dtype != torch.uint8:
        like = torch.empty_like(param, dtype=dtype)
        return kept if _same(kept, like) else like.copy_(kept)
    return kept.to(dtype).contiguous()


def _same(kept: Tensor, like: Tensor) -> bool:
    return bool(kept.dtype == like.dtype and kept.stride() == like.stride() and kept.is_cpu)


def steps_of(state: Mapping[str, Any], if_missing: int | None = None) -> int:
    """Return how many steps a parameter has completed."""
    if "step" in state:
        return int(state["step"])
    has_arrays = any(isinstance(kept, Tensor) for kept in state.values())
    return (if_missing or 0) if has_arrays else 0
