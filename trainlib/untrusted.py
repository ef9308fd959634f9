"""Reads small files that may come from anyone: bounded, regular files only, strict JSON.

Weights that people hand around are data, never code, and nothing in them is believed: sizes are
checked before memory is taken, names never become paths, links are not followed, and each refusal
is a `CheckpointError` that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from trainlib.errors import CheckpointError

MIB = 2**20
MAX_JSON = 64 * MIB

# The beginnings of files that people take for weights and that this package does not open.
_KINDS = (
    (b"PK\x03\x04", "a zip archive (PyTorch's .pt and .pth are zips of pickles)"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF", "an HDF5 file"),
)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file; refuses links, devices, pipes and directories.

    Raises:
      CheckpointError: it is not there, is not a regular file, or may not be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if os.path.islink(path):
            raise CheckpointError(
                f"{path} is a symbolic link, and links in a directory of weights are not followed: "
                "they can point anywhere. Copy the directory with its files (cp -rL) and give the "
                "copy."
            ) from None
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # a NUL in the name
        raise CheckpointError(f"{str(path)!r} is no file name: {error}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise CheckpointError(f"{path} is not a regular file.")
    return os.fdopen(number, "rb")


def read_small(path: Path, limit: int = MAX_JSON) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Raises:
      CheckpointError: see `open_regular`; or it is larger.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path} is larger than {limit // MIB} MiB, the most that is read.")
    return data


def check_kind(start: bytes, path: Path) -> None:
    """Refuses archives and pickles by their first bytes.

    Raises:
      CheckpointError: it is one; says how to convert it.
    """
    for magic, kind in _KINDS:
        if start.startswith(magic):
            raise CheckpointError(
                f"{path} is {kind}, not safetensors. Such files can run code when they are opened, "
                "so nothing here opens them. Convert it where you trust it: "
                "safetensors.torch.save_file(torch.load(PATH, weights_only=True), "
                "'model.safetensors')."
            )


def parse_json(data: bytes, what: str) -> Any:
    """JSON without duplicate keys.

    Args:
      data: UTF-8.
      what: names the source in errors.

    Raises:
      CheckpointError: it is not JSON, nests too deeply, or has a key twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise CheckpointError(f"{what} names {twice[:80]!r} twice.")
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError:
        raise CheckpointError(f"{what} is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON that can be read: {str(error)[:200]}.") from None


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      CheckpointError: see `read_small` and `parse_json`; or it is no object.
    """
    content = parse_json(read_small(path, limit), str(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold one JSON object.")
    return content


def integer(value: Any, what: str, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high].

    Raises:
      CheckpointError: otherwise.
    """
    if type(value) is not int or not low <= value <= high:
        shown = repr(value)[:60]
        raise CheckpointError(f"{what} is {shown}; allowed are integers from {low} to {high}.")
    return value


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(size: int, what: str) -> None:
    """Refuses what this machine cannot hold.

    Raises:
      CheckpointError: `size` bytes are more than its memory.
    """
    memory = physical_memory()
    if size > memory:
        raise CheckpointError(
            f"{what} asks for {size / 2**30:,.1f} GiB and this machine has {memory / 2**30:,.1f} "
            "GiB of memory."
        )
