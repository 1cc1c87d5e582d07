"""A state dictionary as a file: NumPy's npz, no pickle, replaced atomically."""

import json
import os
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onepass._files import Place, read_from, write_atomically
from onepass._npz import read_npz, write_npz
from onepass.optim._state import UNSETTLED
from onepass.optim._storage import bfloat16

_FORMAT = 1
_BFLOAT16 = "bfloat16"
_PREFIXES = {"state": "", UNSETTLED: f"{UNSETTLED}."}
"""What arrays' names in the file begin with, for each part of a dictionary that has arrays."""


HEADER = "header"
"""The name of what says what the other arrays in a file are."""


def write(path: Place, kind: str, state_dict: dict[str, Any]) -> None:
    """Write `state_dict` so that `path` is at any time the old file or the whole new one."""
    arrays = contents(kind, state_dict)
    write_atomically(path, lambda file: write_npz(file, arrays))


def contents(kind: str, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of a file by name: those of the dictionary in order, and the header."""
    arrays: dict[str, Any] = {}
    header = {"format": _FORMAT, "optimizer": kind}
    for name, part in state_dict.items():
        header[name] = _entries(part, _PREFIXES[name], arrays) if name in _PREFIXES else part
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return arrays


def as_npz_knows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array, of bfloat16, which npz does not know, the bits."""
    return array.view(np.uint16) if array.dtype.name == _BFLOAT16 else array


def _entries(
    state: dict[Any, dict[str, Any]], prefix: str, arrays: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what the header says of each parameter, and add its arrays to `arrays`."""
    entries = []
    for number, (key, entry) in enumerate(state.items()):
        names = [name for name, value in entry.items() if isinstance(value, np.ndarray)]
        small = [name for name in names if entry[name].dtype.name == _BFLOAT16]
        for name in names:
            arrays[f"{prefix}{number}.{name}"] = as_npz_knows(entry[name])
        counts = {name: value for name, value in entry.items() if name not in names}
        entries.append({"key": key, **counts, "arrays": names, _BFLOAT16: small})
    return entries


def read(path: Place, kind: str) -> dict[str, Any]:
    """Return the state dictionary in the file of an optimizer of this kind."""
    return read_from(path, partial(_read, path, kind))


def _read(path: Place, kind: str, file: BinaryIO) -> dict[str, Any]:
    try:
        saved_kind, state_dict = _parsed(read_npz(file))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # not what write makes
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else path
        raise ValueError(
            f"path: expected a checkpoint that save wrote, got {name!r} ({error})"
        ) from error
    if saved_kind != kind:
        raise ValueError(f"path: expected a checkpoint of {kind}, got one of {saved_kind}")
    return state_dict


def _parsed(arrays: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return whose state it is, and the state."""
    header = json.loads(arrays[HEADER].tobytes())
    if header["format"] != _FORMAT:
        raise ValueError(f"format {header['format']}")
    saved = {
        name: {
            entry.pop("key"): _entry(arrays, f"{prefix}{number}.", entry)
            for number, entry in enumerate(header[name])
        }
        for name, prefix in _PREFIXES.items()
        if name in header
    }
    rest = {k: header[k] for k in ("param_groups", "step_options") if k in header}
    return header["optimizer"], {**saved, **rest}


def _entry(saved: dict[str, Any], prefix: str, entry: dict[str, Any]) -> dict[str, Any]:
    arrays = {name: saved[f"{prefix}{name}"] for name in entry.pop("arrays")}
    for name in entry.pop(_BFLOAT16, ()):
        arrays[name] = arrays[name].view(bfloat16())
    return {**arrays, **entry}  # what is left are counts
