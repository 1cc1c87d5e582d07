"""Arrays as NumPy's npz: a zip archive, not compressed, no pickle in it.

`numpy.savez` would not do: zipfile, when interrupted, raises ValueError in place of
KeyboardInterrupt, and writes on when its objects are destroyed.
"""

import math
from collections.abc import Iterator, Mapping
from io import BytesIO
from struct import Struct
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from numpy.lib import format as npy

from onepass._typing import Array

_CHUNK = 1 << 24
"""How many bytes are written at once, and so the most that an interrupt waits for."""

# The zip format, all of it in its 64-bit form (PKWARE's APPNOTE.TXT, 4.3 and 4.5.3).
_COMMON = Struct("<5HL2L2H")
"""version, flags, method, time, date, checksum, two lengths, those of the name and what follows."""
_LOCAL_SIZES = Struct("<2H2Q")
_CENTRAL_REST = Struct("<3H2L")
_CENTRAL_SIZES = Struct("<2H3Q")
_END_64 = Struct("<4sQ2H2L4Q")
_LOCATOR = Struct("<4sLQL")
_END = Struct("<4s4H2LH")
_VERSION, _UTF8, _STORED, _ZIP64 = 45, 0x800, 0, 1
_DATE = 0x21
"""1980-01-01, the format's first date: with a fixed date, equal arrays make equal files."""
_FAR, _MANY = 0xFFFFFFFF, 0xFFFF
"""The values of fields whose numbers stand elsewhere, in 64 bits."""


def write_npz(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Write arrays so that `numpy.load` knows them by these names; `file` need not seek."""
    entries, offset = [], 0
    for name, given in arrays.items():
        array = np.asarray(given)
        head = _head(array)
        checksum, size = crc32(head), len(head) + array.nbytes
        for chunk in _chunks(array):
            checksum = crc32(chunk, checksum)
        path = f"{name}.npy".encode()
        fixed = _VERSION, _UTF8, _STORED, 0, _DATE, checksum, _FAR, _FAR, len(path)
        sizes = _LOCAL_SIZES.pack(_ZIP64, 16, size, size)
        local = b"PK\3\4" + _COMMON.pack(*fixed, len(sizes)) + path + sizes
        file.write(local)
        file.write(head)
        for chunk in _chunks(array):
            file.write(chunk)
        sizes = _CENTRAL_SIZES.pack(_ZIP64, 24, size, size, offset)
        common = _VERSION.to_bytes(2, "little") + _COMMON.pack(*fixed, len(sizes))
        entries.append(b"PK\1\2" + common + _CENTRAL_REST.pack(0, 0, 0, 0, _FAR) + path + sizes)
        offset += len(local) + size
    directory = b"".join(entries)
    n, end = len(entries), offset + len(directory)
    file.write(directory)
    versions = _VERSION, _VERSION
    file.write(_END_64.pack(b"PK\6\6", 44, *versions, 0, 0, n, n, len(directory), offset))
    file.write(_LOCATOR.pack(b"PK\6\7", 0, end, 1))
    file.write(_END.pack(b"PK\5\6", 0, 0, _MANY, _MANY, _FAR, _FAR, 0))


def read_npz(file: BinaryIO) -> dict[str, Array]:
    """Return the arrays of such a file, which must be able to seek.

    Raises ValueError where the file is damaged, and only there: a lack of memory, a disk that
    fails, and a zipfile that cannot be imported (`numpy.load` does so) come out as they are.
    """
    watched = _Watched(file)
    try:
        with np.load(watched, allow_pickle=False) as archive:
            _check_lengths(archive.zip)
            return {name: archive[name] for name in archive.files}
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # zipfile raises a dozen kinds for damage
        if watched.error is not None:
            raise watched.error from None
        raise ValueError(f"{error}") from error


class _Watched:
    """A file that remembers why it could not be read, as zipfile takes that for damage."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _check_lengths(archive: Any) -> None:
    """Raise ValueError where an array is said to be longer than it can be in this archive.

    A lack of memory is no sign of damage then.
    """
    archive.fp.seek(0, 2)
    left = archive.fp.tell()
    for entry in archive.infolist():
        left -= entry.compress_size
        with archive.open(entry) as file:
            is_first_version = npy.read_magic(file) == (1, 0)
            read = npy.read_array_header_1_0 if is_first_version else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            size = file.tell() + dtype.itemsize * math.prod(shape)
        if left < 0 or size != entry.file_size:
            raise ValueError(f"{entry.filename}: expected an array of shape {shape}, got another")


def _head(array: Array) -> bytes:
    """Return what stands before an array's data in an npy file."""
    head = BytesIO()
    npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(array))
    return head.getvalue()


def _chunks(array: Array) -> Iterator[bytes]:
    """Yield an array's data in the order that the header of its npy file states."""
    in_order = array.T if array.flags.f_contiguous else array  # as the header decides
    octets = np.ascontiguousarray(in_order).reshape(-1).view(np.uint8)
    for begin in range(0, octets.size, _CHUNK):
        yield octets[begin : begin + _CHUNK].tobytes()
