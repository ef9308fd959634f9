"""Reads files that may come from anyone: bounded, regular files only, strict JSON.

What people hand around is data, never code, and nothing in it is believed: sizes are checked before
memory is taken, names never become paths, pipes and devices are not opened, and each refusal is a
`UserError` that names the file. Links are not followed where a directory came from elsewhere
(weights, checkpoints, exports); `follow=True` is for what a person named or laid out on this
machine, such as a folder of images that are links to a disk.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from trainlib.errors import CheckpointError, UserError, shown

MIB = 2**20
MAX_JSON = 64 * MIB

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

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


def open_regular(
    path: str | Path, *, follow: bool = False, error: type[UserError] = CheckpointError
) -> io.BufferedReader:
    """Opens a regular file to read; refuses devices, pipes, folders and, unless `follow`, links.

    Raises:
      error: it is not there, is not a regular file, or may not be read.
    """
    shown_path = shown(path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer. The look before keeps
        # devices from being opened at all: some act on that.
        if not stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode) and not (
            os.path.islink(path) and not follow
        ):
            raise error(f"{shown_path} is {what_is(path)}, not a regular file.")
        number = os.open(path, flags)
    except OSError as refused:
        if not follow and os.path.islink(path):
            raise error(
                f"{shown_path} is a symbolic link, and links in a directory from elsewhere are not "
                "followed: they can point anywhere. Copy the directory with its files (cp -rL) and "
                "give the copy."
            ) from None
        raise error(f"{shown_path} cannot be read: {refused.strerror}.") from None
    except ValueError as refused:  # a NUL in the name
        raise error(f"{shown_path} is no file name: {refused}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise error(f"{shown_path} is not a regular file.")
    return os.fdopen(number, "rb")


def what_is(path: str | Path) -> str:
    """What lies at a path, in words: "a folder", "a named pipe", "a link to a device"."""
    try:
        link_mode, mode = os.lstat(path).st_mode, os.stat(path).st_mode
    except OSError:
        return "a link to nothing" if os.path.islink(path) else "nothing that can be looked at"
    kinds = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    kind = kinds.get(stat.S_IFMT(mode), "no file")
    return f"a link to {kind}" if stat.S_ISLNK(link_mode) else kind


def read_small(
    path: str | Path,
    limit: int = MAX_JSON,
    *,
    follow: bool = False,
    error: type[UserError] = CheckpointError,
) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Raises:
      error: see `open_regular`; or it is larger, which is found before anything is read.
    """
    with open_regular(path, follow=follow, error=error) as file:
        size = os.fstat(file.fileno()).st_size  # a sparse file costs nothing until it is read
        data = file.read(limit + 1) if size <= limit else b""
    if max(size, len(data)) > limit:
        most = f"{limit // MIB} MiB" if limit >= MIB else f"{limit:,} bytes"
        raise error(f"{shown(path)} is larger than {most}, the most that is read.")
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


def parse_json(data: bytes, what: str, *, error: type[UserError] = CheckpointError) -> Any:
    """JSON without duplicate keys and without halves of surrogate pairs; a byte-order mark at its
    start is no content.

    Args:
      data: UTF-8.
      what: names the source in errors.
      error: the class of the refusal.

    Raises:
      error: it is not JSON, nests too deeply, has a key twice, or holds text that is no Unicode.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise error(f"{what} names {shown(twice, 80)!r} twice.")
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=once)
    except UnicodeDecodeError:
        raise error(f"{what} is not UTF-8 text.") from None
    except (ValueError, RecursionError) as refused:
        raise error(f"{what} is not JSON that can be read: {shown(str(refused), 200)}.") from None
    if _SURROGATE.search(data):  # rare; a valid pair passes the second look
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise error(
                f"{what} holds half of a surrogate pair, such as \\ud83d alone, which is no "
                "Unicode text."
            ) from None
    return value


def read_json(
    path: str | Path,
    limit: int = MAX_JSON,
    *,
    follow: bool = False,
    error: type[UserError] = CheckpointError,
) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      error: see `read_small` and `parse_json`; or it is no object.
    """
    data = read_small(path, limit, follow=follow, error=error)
    content = parse_json(data, shown(path), error=error)
    if not isinstance(content, dict):
        raise error(f"{shown(path)} must hold one JSON object.")
    return content


def integer(value: Any, what: str, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high].

    Raises:
      CheckpointError: otherwise.
    """
    if type(value) is not int or not low <= value <= high:
        given = shown(repr(value), 60)
        raise CheckpointError(f"{what} is {given}; allowed are integers from {low} to {high}.")
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
