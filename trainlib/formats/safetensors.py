"""safetensors files: written in shards at offsets known beforehand, read without trusting them.

A file is 8 bytes (length of the header, little endian), the header (JSON: name -> dtype, shape and
data_offsets), then the data. All shapes are known before an array is read, so `plan` fixes every
file and offset first, and `Writer` fills them in any order: no tensor waits in memory for another,
and several processes can each write files of their own.

Reading checks the whole header against the file before anything is allocated: the offsets must
cover the data without gap or overlap, each range must be what dtype and shape say, and the sizes of
header, names and lists are bounded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np

from trainlib.errors import CheckpointError, shown
from trainlib.files import create
from trainlib.untrusted_files import MIB, check_kind, open_regular, parse_json, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 16 * MIB
MAX_TENSORS = 100_000  # in one file
MAX_NAMES = 1_000_000  # in one index
MAX_DIMENSIONS = 8
ORIGIN = ("step", "weights", "source")  # keys of the metadata that all files of an export share

DTYPES: dict[str, np.dtype] = {
    **{"F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2")},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype("i8"), "I32": np.dtype("i4")},
    **{"I16": np.dtype("i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("?")},
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/\-]{0,511}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}\.safetensors")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: its file, dtype, shape, and first and last byte in the file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def check_name(name: str, where: object) -> None:
    """Refuses names that are no names of weights: too long, odd characters, or path-like.

    Raises:
      CheckpointError: it is one of these.
    """
    if not _NAME.fullmatch(name) or ".." in name or "//" in name:
        raise CheckpointError(f"{where} holds the name {name[:80]!r}, which no weight has.")


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name -> place of every tensor of one file, and its metadata, checked.

    Raises:
      CheckpointError: the file is not safetensors, or its header does not fit it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        fits = len(start) >= 8 and length <= size - 8
        # By the whole form: a header of 640 bytes begins as a pickle does, with 80 02.
        if not fits or length > MAX_HEADER or start[8:] != b"{":
            check_kind(start, path)
        if not fits:
            raise CheckpointError(
                f"{path} is not safetensors, or was cut off: its header should be {length} bytes "
                f"and the file has {size}."
            )
        if length > MAX_HEADER:
            raise CheckpointError(
                f"The header of {path} is {length:,} bytes; at most {MAX_HEADER:,} are read."
            )
        file.seek(8)
        data = file.read(length)
    try:
        header = parse_json(data, f"The header of {path}")
    except CheckpointError:
        check_kind(start, path)  # what it is tells more than that it is no JSON
        raise
    if not isinstance(header, dict):
        raise CheckpointError(f"The header of {path} must be one JSON object.")
    metadata = _metadata(header.pop("__metadata__", {}), path)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds {len(header):,} tensors; allowed are {MAX_TENSORS:,}.")
    found = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_cover(path, found, 8 + length, size)
    return found, metadata


def _metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"The metadata of {path} must map text to text.")
    return metadata


def _tensor(path: Path, name: str, entry: Any, data: int) -> Tensor:
    """One checked entry of a header whose data begins at byte `data`."""
    check_name(name, path)
    where = f"{path}: the entry of {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets, and no more.")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(f"{where} has dtype {str(code)[:20]!r}. Read: {', '.join(DTYPES)}.")
    for numbers, most in ((shape, MAX_DIMENSIONS), (offsets, 2)):
        whole = isinstance(numbers, list) and len(numbers) <= most
        if not whole or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise CheckpointError(f"{where} has a shape or offsets that are no short number list.")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[code].itemsize:
        raise CheckpointError(
            f"{where}: bytes {offsets} do not hold {str(shape)[:80]} numbers of {code}."
        )
    return Tensor(path, DTYPES[code], tuple(shape), data + offsets[0], data + offsets[1])


def _check_cover(path: Path, found: Mapping[str, Tensor], data: int, size: int) -> None:
    """Refuses gaps, overlaps, and ranges outside the file."""
    end = data
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            what = "overlaps another tensor" if tensor.start < end else "follows a gap"
            raise CheckpointError(f"{path}: {name!r} {what} (byte {tensor.start}, not {end}).")
        end = tensor.stop
    if end != size:
        raise CheckpointError(
            f"{path} should be {end:,} bytes by its header and is {size:,}: it was cut off or "
            "something was added."
        )


class Reader:
    """The tensors of a `.safetensors` file, or of a directory with one or an index of several.

    Args:
      path: of the file or directory.
      strip: what is taken off the beginning of the names that have it.

    Attributes:
      tensors: name -> place.
      origin: what the files say of where their weights are from, of the keys `ORIGIN`.

    Raises:
      CheckpointError: nothing there, a file that is not what it should be, or files of several
        exports; or no name begins with `strip`, or two are the same without it.
    """

    def __init__(self, path: Path, strip: str = ""):
        self.tensors: dict[str, Tensor] = {}
        self.origin: dict[str, str] = {}
        if not path.is_dir():
            self._read_file(path)
        elif (path / INDEX).exists():
            self._read_index(path)
        elif (path / SINGLE).exists() or (path / SINGLE).is_symlink():
            self._read_file(path / SINGLE)
        else:
            raise CheckpointError(
                f"{path} holds neither {INDEX} nor {SINGLE}{_pickles(path)}. Give a directory with "
                "one of them, or a .safetensors file."
            )

        if strip:
            self.tensors = _stripped(self.tensors, strip, path)

    def _read_file(self, path: Path) -> None:
        self.tensors, metadata = read_header(path)
        self.origin = {key: metadata[key] for key in ORIGIN if key in metadata}

    def _read_index(self, path: Path) -> None:
        places = read_json(path / INDEX).get("weight_map")
        if not isinstance(places, dict) or not 0 < len(places) <= MAX_NAMES:
            raise CheckpointError(
                f"{path / INDEX} must have a weight_map of 1 to {MAX_NAMES:,} names."
            )
        for name, file in places.items():
            check_name(name, path / INDEX)
            if not isinstance(file, str) or not _FILE.fullmatch(file) or ".." in file:
                raise CheckpointError(
                    f"{path / INDEX}: {name!r} lies in {str(file)[:80]!r}; allowed are names of "
                    ".safetensors files in the same directory."
                )
        found, first = {}, ""
        for file in sorted(set(places.values())):
            found[file], metadata = read_header(path / file)
            origin = {key: metadata[key] for key in ORIGIN if key in metadata}
            if first and origin != self.origin:
                raise CheckpointError(
                    f"{path} mixes files of several exports: {first} is of {_shown(self.origin)}, "
                    f"{file} of {_shown(origin)}. Export again into a new directory, every part "
                    "with the same --step and --weights."
                )
            first, self.origin = first or file, origin
        for name, file in places.items():
            if name not in found[file]:
                raise CheckpointError(f"{path / file} lacks {name!r}, which {INDEX} says it has.")
            self.tensors[name] = found[file][name]
        extra = [n for file, names in found.items() for n in names if places.get(n) != file]
        if extra:
            raise CheckpointError(f"{path / INDEX} lacks {extra[0]!r}, which a file beside it has.")

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype that it is stored in.

        Raises:
          CheckpointError: the file is no longer what its header said.
        """
        tensor = self.tensors[name]
        with open_regular(tensor.path) as file:
            if os.fstat(file.fileno()).st_size < tensor.stop:
                raise CheckpointError(f"{tensor.path} was cut off while it was read.")
            file.seek(tensor.start)
            count = math.prod(tensor.shape)
            return np.fromfile(file, tensor.dtype, count).reshape(tensor.shape)


def _stripped(tensors: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    short = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if set(short) == set(tensors):
        some = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"--strip_prefix={shown(prefix, 80)}: no name in {shown(path)} begins so. There are "
            f"{some}. Give the whole beginning with its dot, or leave it out."
        )
    if len(short) < len(tensors) or "" in short:
        raise CheckpointError(
            f"--strip_prefix={shown(prefix, 80)}: names in {shown(path)} are the same or empty "
            "without it. Give another, or leave it out."
        )
    return short


def _shown(origin: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value[:40]}" for key, value in origin.items()) or "no known origin"


def _pickles(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not names:
        return ""
    return f"; {names[0]} is not read, since opening a pickle can run code"


@dataclasses.dataclass(frozen=True)
class File:
    """A file to be written: its name, the bytes before the data, and name -> place."""

    name: str
    header: bytes
    tensors: dict[str, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return max((t.stop for t in self.tensors.values()), default=len(self.header))


def plan(
    directory: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    shard_size: int,
    origin: Mapping[str, str],
) -> list[File]:
    """Lays tensors out in files of at most `shard_size` bytes of data, in the order given.

    A tensor larger than that has a file of its own.

    Args:
      directory: where the files will be.
      tensors: name -> (shape, dtype).
      shard_size: bytes.
      origin: where the weights are from, of the keys `ORIGIN`; stands in each file.
    """
    groups: list[dict[str, tuple[tuple[int, ...], np.dtype]]] = [{}]
    used = 0
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and (used + size > shard_size or len(groups[-1]) >= MAX_TENSORS // 2):
            groups.append({})
            used = 0
        groups[-1][name] = shape, dtype
        used += size
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    metadata = {"format": "pt", **origin}  # transformers asks for the format
    return [
        _lay_out(directory / n, group, metadata) for n, group in zip(names, groups, strict=True)
    ]


def is_complete(directory: Path, files: Sequence[File]) -> bool:
    """Whether all files of a plan are there, whoever wrote them: each with exactly its header."""
    for file in files:
        try:
            with open(directory / file.name, "rb") as opened:
                whole = os.fstat(opened.fileno()).st_size == file.size
                if not whole or opened.read(len(file.header)) != file.header:
                    return False
        except FileNotFoundError:
            return False
    return True


def _lay_out(
    path: Path, group: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]
) -> File:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    places, end = {}, 0
    for name, (shape, dtype) in group.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        places[name] = (dtype, shape, start, end)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    tensors = {
        name: Tensor(path, dtype, tuple(shape), len(header) + start, len(header) + stop)
        for name, (dtype, shape, start, stop) in places.items()
    }
    return File(path.name, header, tensors)


def index_text(files: Sequence[File]) -> str:
    """The text of `model.safetensors.index.json`."""
    sizes = [t.stop - t.start for file in files for t in file.tensors.values()]
    places = {name: file.name for file in files for name in file.tensors}
    content = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(content, indent=2) + "\n"


class Writer:
    """Fills the files of a plan, in any order; a file gets its name when it is complete. Until then
    its name is this writer's own: of two who write one file at once the later one does, whole, and
    the other fails.

    As a context manager it raises ValueError when a tensor is missing at the end, and removes what
    is incomplete.
    """

    def __init__(self, directory: Path, files: Sequence[File]):
        self._directory, self._own = directory, secrets.token_hex(4)
        self._missing = {file.name: set(file.tensors) for file in files}
        self._home = {name: file for file in files for name in file.tensors}
        self._open: dict[str, Any] = {}

    @property
    def names(self) -> set[str]:
        """What is to be written."""
        return set(self._home)

    def __enter__(self) -> Writer:
        return self

    def write(self, name: str, value: np.ndarray) -> None:
        """Writes one tensor at its place; the last of a file finishes the file."""
        home = self._home[name]
        planned = home.tensors[name]
        if value.shape != planned.shape or value.dtype != planned.dtype:
            raise ValueError(f"{name}: {value.shape} {value.dtype}, planned {planned}")
        file = self._open.get(home.name) or self._start(home)
        file.seek(planned.start)
        # Bytes, because bfloat16 has no buffer format.
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        self._missing[home.name].remove(name)
        if not self._missing[home.name]:
            self._finish(home.name)

    def _start(self, home: File) -> Any:
        for left in self._directory.glob(f".{home.name}.*.partial"):  # by one that was killed
            left.unlink(missing_ok=True)
        file = self._open[home.name] = os.fdopen(create(self._partial(home.name)), "wb")
        file.write(home.header)
        return file

    def _partial(self, name: str) -> Path:
        return self._directory / f".{name}.{self._own}.partial"

    def _finish(self, name: str) -> None:
        file = self._open.pop(name)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(self._partial(name), self._directory / name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, file in self._open.items():
            file.close()
            self._partial(name).unlink(missing_ok=True)
        left = sum(map(len, self._missing.values()))
        if kind is None and left:
            raise ValueError(f"{left} tensors were not written")
