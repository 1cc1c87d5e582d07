"""A state dictionary of all ranks' parts, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onepass import formats
from onepass._files import Place, write_atomically
from onepass._memory import order_of, raveled, unraveled
from onepass._npz import write_npz
from onepass._shard.cut import Cut, Kind
from onepass._shard.wire import Flat, Wire
from onepass._typing import Array
from onepass.optim import _checkpoint
from onepass.optim._state import ORDER, SHAPE, UNSETTLED, places_of

_WITH_ARRAYS = ("state", UNSETTLED)
"""The parts of a dictionary that have arrays."""
_GO_ON, _DONE, _FAILED = 0, 1, 2
"""What the rank that writes a file tells the others before each array, and at the end."""


@dataclass(frozen=True)
class Part:
    """An array in a state dictionary, and the parameter that it belongs to."""

    array: Array
    param: int


def parts_of(own: Mapping[str, Any], keys: Sequence[str | int]) -> list[Part]:
    """Return the arrays of a rank's dictionary, in order."""
    places = {key: index for index, key in enumerate(keys)}
    return [
        Part(value, places[key])
        for name in _WITH_ARRAYS
        for key, entry in own.get(name, {}).items()
        for value in entry.values()
        if isinstance(value, np.ndarray)
    ]


def whole(
    own: Mapping[str, Any],
    parts: Sequence[Part],
    found: Sequence[npt.NDArray[Any]],
    wholes: Sequence[Array],
) -> dict[str, Any]:
    """Return a state dictionary with whole arrays: `found`, those of these parts."""
    arrays = iter(found)
    result = _as_of_whole(own, wholes, parts)
    for name in _WITH_ARRAYS:
        for entry in result.get(name, {}).values():
            for key, value in entry.items():
                if isinstance(value, np.ndarray):
                    entry[key] = next(arrays)
    return result


def _as_of_whole(
    own: Mapping[str, Any], wholes: Sequence[Array], parts: Sequence[Part]
) -> dict[str, Any]:
    """Return a copy of a dictionary, in which what is said of the arrays is of the whole ones."""
    param_of = {id(part.array): part.param for part in parts}
    result = dict(own)
    for name in _WITH_ARRAYS:
        if name not in own:
            continue
        result[name] = {key: dict(entry) for key, entry in own[name].items()}
        for entry in result[name].values():
            if SHAPE not in entry:
                continue
            array = next(v for v in entry.values() if isinstance(v, np.ndarray))
            param = wholes[param_of[id(array)]]
            entry |= {SHAPE: list(param.shape), ORDER: order_of(param)}
    return result


def to_gather(
    parts: Sequence[Part], wire: Wire, cut: Cut, wholes: Sequence[Array]
) -> tuple[list[npt.NDArray[Any]], list[tuple[int, Kind, Flat]]]:
    """Return whole arrays, each in its parameter's shape and order, and what to share of them.

    They have this rank's parts. They take memory, so they are made before the ranks share.
    """
    shared: list[tuple[int, Kind, Flat]] = []
    found: list[npt.NDArray[Any]] = []
    for part in parts:
        param, own = wholes[part.param], part.array
        kinds: tuple[Kind, ...] = ("codes", "scales") if own.dtype == np.uint8 else ("elements",)
        size = formats.q8_size(param.size) if own.dtype == np.uint8 else param.size
        flat = np.empty(size, own.dtype)
        found.append(
            flat if own.dtype == np.uint8 else unraveled(flat, param.shape, order_of(param))
        )
        for kind in kinds:
            there = _stretch(flat, param.size, kind)
            place = cut.part(wire.rank, part.param, kind)
            if place.start < place.stop:
                n = cut.part(wire.rank, part.param)
                there[place] = _stretch(own, n.stop - n.start, kind)
            shared.append((part.param, kind, there))
    return found, shared


def _stretch(flat: Flat, size: int, kind: Kind) -> Flat:
    """Return the codes or the scales of an array of so many elements in 8 bits; else all of it."""
    if kind == "elements":
        return flat
    n_codes = -(-size // formats.BLOCK) * formats.BLOCK
    return flat[:n_codes] if kind == "codes" else flat[n_codes:]


def save(
    path: Place,
    rule: str,
    own: Mapping[str, Any],
    parts: Sequence[Part],
    wire: Wire,
    cut: Cut,
    wholes: Sequence[Array],
) -> None:
    """Write the file of a single process, on rank 0, one array after the other. Collective."""
    arrays = _checkpoint.contents(rule, _as_of_whole(own, wholes, parts))
    named = dict(zip([name for name in arrays if name != _checkpoint.HEADER], parts, strict=True))

    is_sharing = False  # then the others wait for parts of an array, and not for a word

    def tell(word: int) -> None:
        wire.tell(np.array([word], np.int64), [1] * wire.size)

    def hear() -> int:
        return int(wire.tell(np.array([0], np.int64), [1] * wire.size)[0])

    class Gathered:
        """An array of all ranks, which is gathered when it is written."""

        def __init__(self, part: Part) -> None:
            self.part = part

        def __array__(self, dtype: object = None, copy: object = None) -> npt.NDArray[Any]:
            nonlocal is_sharing
            (array,), shared = to_gather([self.part], wire, cut, wholes)
            is_sharing = True
            tell(_GO_ON)
            wire.share(cut, shared)
            is_sharing = False
            return _checkpoint.as_npz_knows(array)

    if wire.rank == 0:
        lazy = {**arrays, **{name: Gathered(part) for name, part in named.items()}}
        try:
            write_atomically(path, lambda file: write_npz(file, lazy))
        except BaseException:
            if not is_sharing:
                tell(_FAILED)
                wire.settle()
            raise
        tell(_DONE)
        return
    left = iter(named.values())
    while (word := hear()) == _GO_ON:
        wire.share(cut, to_gather([next(left)], wire, cut, wholes)[1])
    if word == _FAILED:
        wire.settle()
        raise ValueError("save: expected a path that rank 0 can write, got an error there")


def cut(saved: Any, now: Mapping[str, Any], shares: Cut, rank: int, wholes: Sequence[Array]) -> Any:
    """Return a saved dictionary with this rank's parts of its arrays.

    What is not as it must be is left for those who load it.
    """
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    if not isinstance(groups, list | tuple):
        return saved
    place_of: dict[Any, int] = {}
    for group, places in zip(groups, places_of(now), strict=False):
        keys = group.get("params", ()) if isinstance(group, Mapping) else ()
        place_of |= dict(zip(keys, places, strict=False))
    result = dict(saved)
    for name in _WITH_ARRAYS:
        if isinstance(saved.get(name), Mapping):
            result[name] = {
                key: _cut_entry(entry, place_of[key], f"{name}[{key!r}]", shares, rank, wholes)
                if key in place_of and isinstance(entry, Mapping)
                else entry
                for key, entry in saved[name].items()
            }
    return result


def _cut_entry(
    entry: Mapping[str, Any],
    index: int,
    label: str,
    shares: Cut,
    rank: int,
    wholes: Sequence[Array],
) -> dict[str, Any]:
    param, place = wholes[index], shares.part(rank, index)
    order = entry.get(ORDER, "C")
    result = {}
    for name, value in entry.items():
        array = value if value is None or np.isscalar(value) else np.asarray(value)
        if (
            name in ("step", SHAPE, ORDER)  # PyTorch's step is an array of no axes
            or not isinstance(array, np.ndarray)
            or array.ndim == 0 < param.ndim
        ):
            result[name] = value
        elif array.dtype == np.uint8:
            result[name] = _cut_codes(
                array, param, order, f"{label}[{name!r}]", shares, index, rank
            )
        elif array.shape != param.shape:
            expected = f"shape {param.shape}"
            raise ValueError(f"{label}[{name!r}]: expected {expected}, got {array.shape}")
        else:
            result[name] = raveled(array, order_of(param))[place]
    if SHAPE in entry:
        if entry[SHAPE] != list(param.shape):
            expected = f"{list(param.shape)}"
            raise ValueError(f"{label}[{SHAPE!r}]: expected {expected}, got {entry[SHAPE]!r}")
        result |= {SHAPE: [place.stop - place.start], ORDER: "C"}
    return result


def _cut_codes(
    codes: npt.NDArray[np.uint8],
    param: Array,
    order: Any,
    label: str,
    shares: Cut,
    index: int,
    rank: int,
) -> npt.NDArray[np.uint8]:
    if codes.shape != (formats.q8_size(param.size),):
        expected = f"shape {(formats.q8_size(param.size),)}"
        raise ValueError(f"{label}: expected {expected}, got {codes.shape}")
    if order != order_of(param):
        expected = f"8-bit codes in the parameter's order {order_of(param)!r}"
        raise ValueError(f"{label}: expected {expected}, got {order!r}")
    if not (place := shares.part(rank, index)).stop > place.start:
        return codes[:0]
    pieces = [
        _stretch(codes, param.size, kind)[shares.part(rank, index, kind)]
        for kind in ("codes", "scales")
    ]
    return np.concatenate(pieces)


def described(saved: Any) -> object:
    """Return what must be the same on all ranks that load this: all but the arrays."""
    if isinstance(saved, Mapping):
        return [(key, described(value)) for key, value in saved.items()]
    if isinstance(saved, list | tuple):
        return [described(value) for value in saved]
    return type(saved).__name__ if hasattr(saved, "shape") else saved
