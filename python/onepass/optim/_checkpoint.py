"""A state dictionary as a file: NumPy's npz, no pickle, replaced atomically."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from onepass._extras import MissingExtraError
from onepass._files import write_atomically
from onepass.optim._storage import bfloat16

_FORMAT = 1
_BFLOAT16 = "bfloat16"


def write(path: str | os.PathLike[str], kind: str, state_dict: dict[str, Any]) -> None:
    """Write `state_dict` so that `path` is at any time the old file or the whole new one."""
    arrays: dict[str, Any] = {}
    entries = []
    for number, (key, entry) in enumerate(state_dict["state"].items()):
        names = [name for name, value in entry.items() if isinstance(value, np.ndarray)]
        small = [name for name in names if entry[name].dtype.name == _BFLOAT16]
        for name in names:  # npz knows no bfloat16
            array = entry[name]
            arrays[f"{number}.{name}"] = array.view(np.uint16) if name in small else array
        counts = {name: value for name, value in entry.items() if name not in names}
        entries.append({"key": key, **counts, "arrays": names, _BFLOAT16: small})
    header = {
        "format": _FORMAT,
        "optimizer": kind,
        "state": entries,
        "param_groups": state_dict["param_groups"],
        "step_options": state_dict["step_options"],
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)

    write_atomically(path, lambda file: np.savez(file, **arrays))


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Return the state dictionary in the file of an optimizer of this kind."""
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                if header["format"] != _FORMAT:
                    raise ValueError(f"format {header['format']}")
                state = {
                    entry.pop("key"): _entry(archive, number, entry)
                    for number, entry in enumerate(header["state"])
                }
                saved_kind = header["optimizer"]
                rest = {k: header[k] for k in ("param_groups", "step_options") if k in header}
        except MissingExtraError:
            raise
        except Exception as error:  # damage makes zipfile raise a dozen kinds
            raise ValueError(
                f"path: expected a checkpoint that save wrote, got {os.fspath(path)!r} ({error})"
            ) from error
    if saved_kind != kind:
        raise ValueError(f"path: expected a checkpoint of {kind}, got one of {saved_kind}")
    return {"state": state, **rest}


def _entry(archive: Any, number: int, entry: dict[str, Any]) -> dict[str, Any]:
    arrays = {name: archive[f"{number}.{name}"] for name in entry.pop("arrays")}
    for name in entry.pop(_BFLOAT16, ()):
        arrays[name] = arrays[name].view(bfloat16())
    return {**arrays, **entry}  # what is left are counts
