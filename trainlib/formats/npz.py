"""Reads NumPy's .npz files of anybody: plain arrays, whose sizes are known before memory is taken.

`numpy.load` believes what such a file says: a header of a hundred bytes can ask for more memory
than there is, and a few kilobytes can unpack to gigabytes.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from trainlib.errors import DataError, shown
from trainlib.untrusted_files import open_regular

MOST_ARRAYS = 1000
_KINDS = "biufU"  # numbers and text: no objects, which are pickles, and no records of fields
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),
)


def read_arrays(path: Path, most: int) -> dict[str, np.ndarray]:
    """All arrays of a file, by their names.

    Args:
      path: of the file.
      most: bytes that all arrays together may take.

    Raises:
      DataError: it is no regular file, no such archive, damaged, or holds more, or others than
        arrays of numbers and text.
    """
    try:
        with open_regular(path, follow=True, error=DataError) as file:
            if os.fstat(file.fileno()).st_size > most:
                raise _too_large(path, most)
            with zipfile.ZipFile(file) as archive:
                return _arrays(path, archive, most)
    except _DAMAGED as error:
        raise DataError(f"{shown(path)} is damaged or no .npz ({shown(error, 80)}).") from None


def _arrays(path: Path, archive: zipfile.ZipFile, most: int) -> dict[str, np.ndarray]:
    members = archive.infolist()
    # What is read of a member is never more than it says here.
    if len(members) > MOST_ARRAYS or sum(member.file_size for member in members) > most:
        raise _too_large(path, most)
    found: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"{name} stands there twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is packed in another way than deflate")
        with archive.open(member) as content:
            found[name] = _array(name, content, member.file_size)
    return found


def _array(name: str, content: IO[bytes], size: int) -> np.ndarray:
    """The array of an .npy of so many bytes."""
    version = npy.read_magic(content)
    if version not in _HEADERS:
        raise ValueError(f"{name} has the version {version}")
    shape, by_columns, dtype = _HEADERS[version](content)
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ValueError(f"{name} holds {dtype}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"{name} asks for the shape {shape}")
    data = content.read()  # to its end, so that its checksum is compared
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{name} breaks off, or goes on")
    flat = np.frombuffer(data, dtype, count).copy()
    return flat.reshape(shape, order="F" if by_columns else "C")


def _too_large(path: Path, most: int) -> DataError:
    return DataError(
        f"{shown(path)} asks for more than {most / 2**30:,.1f} GiB or {MOST_ARRAYS:,} arrays, the "
        "most that is read here."
    )
