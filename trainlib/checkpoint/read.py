"""The arrays of a step, read straight from its files: an answer for each leaf, not one for all.

Orbax writes a leaf of a flat dictionary as one zarr array in a key-value store (OCDBT). Each is
opened here by the name that the manifest gives it, so nothing else in the directory decides what is
read, and what goes wrong is told apart: damage is what the files hold; a disk that refuses, or
memory that is short, says nothing about them.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from trainlib.checkpoint.damage import file_of
from trainlib.checkpoint.manifest import ABOUT_CONTENT
from trainlib.errors import StorageError
from trainlib.untrusted_files import physical_memory

IN_FLIGHT = 1 << 30  # bytes of leaves that are read ahead of the one that is placed
PAUSE = 0.5  # seconds before a disk that refused is asked once more
DAMAGED, NO_MEMORY, REFUSED = 1, 2, 3  # kinds of trouble; the largest is the one to tell

_ALIGNED = 64  # bytes; XLA's arrays on a CPU begin at multiples of it
_TREE_CACHE = 100_000_000  # bytes of nodes of the store, which all leaves share
_SYSTEM_ERROR = re.compile(r"os_error_code(?:\[\d+\])?='(\d+)'")
_DETAILS = re.compile(r" \[\w+(?:\[\d+\])?='")  # what tensorstore adds to a message
_LAST_FILE = re.compile(r'.*local file "([^"]*)":? ?', re.DOTALL)

T = TypeVar("T")


class Trouble(NamedTuple):
    """Why a leaf was not read.

    Attributes:
      kind: DAMAGED, NO_MEMORY or REFUSED.
      text: names the file.
    """

    kind: int
    text: str


def patiently(look: Callable[[], T]) -> T:
    """What `look` returns; a disk that refuses is asked once more.

    Raises:
      OSError: it refused twice, or what is there is not what was looked for.
    """
    try:
        return look()
    except OSError as error:
        if error.errno in ABOUT_CONTENT:
            raise
    time.sleep(PAUSE)
    return look()


def refused(reason: str, where: Path) -> StorageError:
    """One paragraph for a disk, or a memory, that does not let a checkpoint be read."""
    return StorageError(
        f"Reading {where} failed: {reason}. That is no damage to the checkpoint, and nothing was "
        "renamed or removed. See to it that it can be read, then start the same command again."
    )


def too_large(leaf: str, where: Path) -> StorageError:
    """One paragraph for a checkpoint that does not fit."""
    return StorageError(
        f"There is not enough memory to read {where}: {leaf} does not fit. That is no damage to "
        "the checkpoint. Use more devices or a machine with more memory, or end what else runs "
        "here, then start the same command again."
    )


def read(step: Path, wanted: Mapping[str, Any]) -> tuple[dict[str, jax.Array], dict[str, Trouble]]:
    """Reads leaves into the shapes, dtypes and shardings of `wanted`: each piece once a process.

    Args:
      step: the directory of a step.
      wanted: name -> array or ShapeDtypeStruct.

    Returns:
      Name -> array of the leaves that were read; name -> trouble of all others.
    """
    arrays, troubles = _read(step, wanted)
    again = {name: wanted[name] for name, t in troubles.items() if t.kind == REFUSED}
    if again:
        time.sleep(PAUSE)
        more, still = _read(step, again)
        arrays |= more
        troubles = {n: t for n, t in troubles.items() if n not in again} | still
    return arrays, troubles


def _read(step: Path, wanted: Mapping[str, Any]) -> tuple[dict[str, jax.Array], dict[str, Trouble]]:
    import tensorstore

    caches = {"cache_pool": {}, "cache_pool#tree": {"total_bytes_limit": _TREE_CACHE}}
    context = tensorstore.Context(caches)
    opened = {n: tensorstore.open(_spec(step, n), open=True, context=context) for n in wanted}
    matched: dict[str, jax.Array] = {}
    troubles: dict[str, Trouble] = {}
    started: deque[tuple[str, list[tuple[Any, Any]], int]] = deque()

    def place(most: int) -> None:
        """Places the oldest leaves until at most `most` bytes are under way."""
        while started and sum(size for *_, size in started) > most:
            name, pieces, _ = started.popleft()
            try:
                matched[name] = _placed(pieces, wanted[name])
            except Exception as error:
                troubles[name] = trouble(error, step, name)

    for name, like in wanted.items():
        try:
            pieces, size = _started(opened.pop(name).result(), like)
            started.append((name, pieces, size))
        except Exception as error:
            troubles[name] = trouble(error, step, name)
        place(IN_FLIGHT)
    place(-1)
    return matched, troubles


def _spec(step: Path, name: str) -> dict[str, Any]:
    """Where Orbax keeps a leaf of a flat dictionary."""
    base = {"driver": "file", "path": f"{step}/"}
    store = {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#tree", "path": f"{name}/"}
    return {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}


def _started(store: Any, like: Any) -> tuple[list[tuple[Any, Any]], int]:
    """Begins to read the pieces that this process needs: ([(devices, what `_into_memory` says)],
    their bytes).
    """
    shape, dtype = tuple(store.shape), store.dtype.numpy_dtype
    if (shape, dtype) != (tuple(like.shape), like.dtype):
        raise ValueError(f"it is {shape} {dtype} there")
    chunk = store.chunk_layout.read_chunk.shape or ()  # None for a scalar
    if any(size > max(1, whole) for size, whole in zip(chunk, shape, strict=True)):
        raise ValueError(f"its chunks of {tuple(chunk)} are larger than itself")
    pieces: dict[str, tuple[Any, list[Any]]] = {}
    for device, index in _place(like).addressable_devices_indices_map(shape).items():
        pieces.setdefault(str(index), (index, []))[1].append(device)
    parts = [(store[index], devices) for index, devices in pieces.values()]
    size = sum(p.size for p, _ in parts) * dtype.itemsize
    if size > physical_memory():  # tensorstore ends the process when it is refused memory
        raise MemoryError
    return [(d, _into_memory(part, dtype)) for part, d in parts], size


def _into_memory(part: Any, dtype: np.dtype) -> tuple[np.ndarray, Any]:
    """Begins to read a piece: (where it will lie, the future that tells when it does).

    The memory is aligned as XLA's own is, so that a CPU device takes it over as it is; what
    tensorstore would allocate is copied there, every byte once more.
    """
    import tensorstore

    room = np.empty(part.size * dtype.itemsize + _ALIGNED, np.uint8)
    first = -room.ctypes.data % _ALIGNED
    piece = room[first : first + part.size * dtype.itemsize].view(dtype).reshape(part.shape)
    return piece, tensorstore.array(piece).write(part)


def _placed(pieces: list[tuple[Any, Any]], like: Any) -> jax.Array:
    place, arrays = _place(like), []
    for devices, (piece, future) in pieces:
        future.result()
        for device in devices:
            on = SingleDeviceSharding(device, memory_kind=place.memory_kind)
            arrays.append(jax.device_put(piece, on))
    return jax.make_array_from_single_device_arrays(tuple(like.shape), place, arrays)


def _place(like: Any) -> Any:
    return getattr(like, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])


def trouble(error: BaseException, step: Path, name: str) -> Trouble:
    """What kept leaf `name` from being read."""
    words = _DETAILS.split(str(error))[0]
    code = getattr(error, "errno", None)
    if code is None and (matched := _SYSTEM_ERROR.search(str(error))):
        code = int(matched[1])
    if code not in (None, errno.ENOMEM, *ABOUT_CONTENT):
        return Trouble(REFUSED, f"{_file(words, step, name)}: {os.strerror(code)}")
    short = code == errno.ENOMEM or "RESOURCE_EXHAUSTED" in words
    if short or isinstance(error, MemoryError):
        return Trouble(NO_MEMORY, f"leaf {name}")
    reason = " ".join(_LAST_FILE.sub("", words).split())[:200] or type(error).__name__
    return Trouble(DAMAGED, f"in {_file(words, step, name)} cannot be read: {reason}")


def _file(words: str, step: Path, name: str) -> str:
    """The file that a message ends with, or else those that hold the leaf."""
    matched = _LAST_FILE.match(words)
    return matched[1] if matched and not matched[1].endswith("/") else file_of(step, name)
