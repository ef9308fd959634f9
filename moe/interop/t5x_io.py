"""T5X checkpoints on disk, written and read without T5X or TensorFlow: its own format, version 3,
and for reading Orbax's (see `moe.interop.orbax_tree`).

    checkpoint_<step>/checkpoint              msgpack: version, and {target, state} of the optimiser
    checkpoint_<step>/target.<path>/.zarray   one zarr (version 2) array for each parameter,
    checkpoint_<step>/target.<path>/0.0       its chunks, gzip or plain

A leaf of the msgpack tree is an array or a description of where the array lies. Reading believes
neither: of a description only the path is used, which must be a plain name inside the directory;
every chunk must be there, a regular file, and is unpacked up to the size that it should have.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from moe.interop import orbax_tree, zstd
from trainlib.errors import CheckpointError, shown
from trainlib.files import create, make_directory, write_atomically
from trainlib.formats import layout as interchange
from trainlib.formats.export import Share, Written, prepare, refused
from trainlib.formats.layout import Layout
from trainlib.formats.weight_source import Weights, nbytes, part_of
from trainlib.untrusted_files import MAX_JSON, MIB, integer, open_regular, read_json, read_small

TREE = "checkpoint"
_ATTRIBUTES = ".zattrs"
_MAX_LEAVES = 100_000
_MAX_DEPTH = 32
_MAX_CHUNKS = 1_000_000
_CHUNK = 512 * MIB  # written; a reader holds one chunk beside the array
_DTYPES = {
    "<f4": np.dtype("f4"),
    "<f2": np.dtype("f2"),
    "<f8": np.dtype("f8"),
    "<i4": np.dtype("i4"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_INLINE = {d.name: d for d in (*_DTYPES.values(), *map(np.dtype, ("i8", "u4", "?")))}
_CODECS = {None: "", "gzip": "deflate", "zlib": "deflate", "zstd": "zstd"}
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,250}/?")
_NDARRAY, _SCALAR = 1, 3  # flax's msgpack extension types


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """A checked description of one array."""

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    codec: str  # of the chunks: "", "deflate" or "zstd"

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))


def write_array(folder: Path, value: np.ndarray, origin: Mapping[str, str]) -> None:
    """Writes an array as zarr version 2, split along its first dimension where it is large.

    Last comes where it is from, as attributes of zarr, which T5X does not read: an array without
    them was cut off.
    """
    make_directory(folder)
    (folder / _ATTRIBUTES).unlink(missing_ok=True)
    rows = max(1, _CHUNK // max(1, value[:1].nbytes)) if value.ndim else 1
    chunks = [min(rows, value.shape[0]), *value.shape[1:]] if value.ndim else []
    for number, start in enumerate(range(0, value.shape[0] if value.ndim else 1, rows)):
        piece = value[start : start + rows] if value.ndim else value
        if value.ndim and len(piece) < chunks[0]:  # a zarr chunk is always whole
            padding = np.zeros((chunks[0] - len(piece), *value.shape[1:]), value.dtype)
            piece = np.concatenate([piece, padding])
        name = ".".join([str(number), *["0"] * (value.ndim - 1)]) if value.ndim else "0"
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: with the gzip frame
        plain = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        with os.fdopen(create(folder / name), "wb") as file:
            for at in range(0, len(plain), MIB):
                file.write(packer.compress(plain[at : at + MIB]))
            file.write(packer.flush())
    content = {
        "zarr_format": 2,
        "shape": list(value.shape),
        "chunks": chunks,
        "dtype": _NAMES[value.dtype],
        "order": "C",
        "compressor": {"id": "gzip", "level": 1},
        "fill_value": None,
        "filters": None,
        "dimension_separator": ".",
    }
    write_atomically(folder / ".zarray", json.dumps(content))
    write_atomically(folder / _ATTRIBUTES, json.dumps(dict(origin)))


def array_folder(name: str) -> str:
    """Parameter path -> name of its directory."""
    return "target." + name.replace("/", ".")


def write_tree(
    directory: Path, step: int, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> None:
    """Writes the msgpack file that names all parameters, which makes the checkpoint complete.

    Args:
      directory: `checkpoint_<step>`.
      step: as the optimiser counts it.
      arrays: parameter path -> (shape, dtype).
    """
    from flax import serialization

    target: dict[str, Any] = {}
    for name, (shape, dtype) in arrays.items():
        *outer, leaf = name.split("/")
        node = target
        for part in outer:
            node = node.setdefault(part, {})
        rows = max(1, _CHUNK // max(1, math.prod(shape[1:]) * dtype.itemsize))
        node[leaf] = {
            "driver": "zarr",
            "dtype": dtype.name,
            "kvstore": {"driver": "file", "path": array_folder(name) + "/"},
            "metadata": {
                "chunks": [min(rows, shape[0]), *shape[1:]],
                "compressor": {"id": "gzip", "level": 1},
                "shape": list(shape),
            },
        }
    state = {"step": np.int32(step), "param_states": {}}
    tree = {"version": 3, "optimizer": {"target": target, "state": state}}
    write_atomically(directory / TREE, serialization.msgpack_serialize(tree))


def write(
    source: Weights,
    layout: Layout,
    out: Path,
    *,
    dtypes: Mapping[str, np.dtype],
    share: Share,
    extra: Mapping[str, bytes],
) -> Written:
    """Writes `checkpoint_<step>` below `out`: weights and step, no optimiser slots.

    Args:
      source: the weights.
      layout: of `moe.interop.t5x`.
      out: the directory around it.
      dtypes: our name -> dtype.
      share: the leaves that this process writes; the file that names all comes last, from the
        process that finds all there.
      extra: name -> content of files beside it, which the first process writes.

    Raises:
      ConfigError: `out` holds other files.
      StorageError: the disk refuses.
    """
    directory = out / f"checkpoint_{source.step}"
    beside = [out / name for name in extra]
    prepare(out, [directory.name, *extra], [directory / TREE, *beside], share)
    leaves = layout.by_leaf(written=True)
    arrays = {
        entry.theirs: (interchange.their_shape(entry, source.specs[name]), dtypes[name])
        for name, entries in leaves.items()
        for entry in entries
    }
    sizes = {name: nbytes(source.specs[name]) for name in leaves}
    mine = part_of(sizes, share.part, share.parts)
    count = size = 0
    try:
        make_directory(directory)
        for name, leaf in source.leaves(mine):
            for theirs, value in interchange.give(leaves[name], leaf, dtypes[name]):
                write_array(directory / array_folder(theirs), value, source.origin)
                count, size = count + 1, size + value.nbytes
            del leaf  # before the next one is read
        for path in beside if share.first else ():
            write_atomically(path, extra[path.name])
        complete = all(path.is_file() for path in beside)
        complete = complete and _is_complete(directory, arrays, source.origin)
        if complete:
            write_tree(directory, source.step, arrays)
    except OSError as error:
        raise refused(error, out) from None
    return Written(count, count, size, complete)


def _is_complete(
    directory: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    origin: Mapping[str, str],
) -> bool:
    """Whether all arrays are there, whoever wrote them, and of one origin."""
    for name, (shape, dtype) in arrays.items():
        folder = directory / array_folder(name)
        try:
            written = read_json(folder / _ATTRIBUTES, MIB)
            array = _describe(folder)
        except CheckpointError:
            return False
        if (written, array.shape, array.dtype) != (dict(origin), shape, dtype):
            return False
    return True


def find(path: Path) -> Path:
    """The directory of the tree of `checkpoint_<step>` at or below `path`; of several steps the
    last. Orbax has it one deeper.

    Raises:
      CheckpointError: there is none.
    """
    if (held := _held(path)) is not None:
        return held
    steps = {
        int(p.name.removeprefix("checkpoint_")): held
        for p in (path.glob("checkpoint_*") if path.is_dir() else ())
        if re.fullmatch(r"checkpoint_\d{1,12}", p.name)
        and not p.is_symlink()
        and (held := _held(p)) is not None
    }
    if not steps:
        raise CheckpointError(
            f"{path} holds no T5X checkpoint: no directory checkpoint_<step> with a file "
            f"{TREE!r}, or {orbax_tree.STATE}/{orbax_tree.METADATA} of Orbax. Give that directory "
            "or the one around it."
        )
    return steps[max(steps)]


def _held(checkpoint: Path) -> Path | None:
    """Where the tree of a checkpoint lies, if it is complete."""
    for folder in (checkpoint, checkpoint / orbax_tree.STATE):
        marks = (TREE, orbax_tree.METADATA, orbax_tree.OCDBT)
        if any((folder / name).exists() for name in marks):
            if folder != checkpoint and folder.is_symlink():
                raise CheckpointError(f"{folder} is a symbolic link; links are not followed.")
            return folder
    return None


class Checkpoint:
    """The parameters of a T5X checkpoint.

    Attributes:
      shapes: parameter path -> shape.

    Raises:
      CheckpointError: it is damaged, or not what this format is.
    """

    def __init__(self, path: Path):
        self.directory = find(path)
        orbax_tree.check_form(self.directory)
        self._leaves: dict[str, np.ndarray | ZarrArray] = {}
        for name, leaf in self._named():
            if len(self._leaves) >= _MAX_LEAVES:
                raise CheckpointError(f"{self.directory} names more than {_MAX_LEAVES:,} arrays.")
            self._leaves[name] = leaf if isinstance(leaf, np.ndarray) else self._open(name, leaf)
        self.shapes = {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}

    def _named(self) -> Iterator[tuple[str, Any]]:
        """(path, leaf) of all parameters; a leaf is an array, or tells where it lies."""
        where = self.directory / TREE
        if not (where.exists() or where.is_symlink()):
            yield from orbax_tree.folders(self.directory)
            return
        tree = _unpack(read_small(where), where)
        outer = tree if isinstance(tree, dict) else {}
        plain = isinstance(outer.get("optimizer"), dict)  # T5X's own format
        target = outer["optimizer"].get("target") if plain else outer.get(orbax_tree.TARGET)
        if not isinstance(target, dict) or (plain and outer.get("version") not in (2, 3)):
            raise CheckpointError(
                f"{where} is neither T5X's version 3 nor a train state of Orbax: no "
                "optimizer.target and no target in it."
            )
        yield from _flatten(target, "")

    def _open(self, name: str, spec: Mapping[str, Any] | str) -> ZarrArray:
        if isinstance(spec, str):
            path = spec.removeprefix(orbax_tree.PLACEHOLDER)
        else:
            store = spec.get("kvstore")
            path = store.get("path") if isinstance(store, dict) else None
            path = spec.get("path") if path is None else path
        if not isinstance(path, str) or not _PATH.fullmatch(path) or ".." in path:
            raise CheckpointError(
                f"{self.directory}: {shown(name)} lies at {shown(repr(path), 80)}; allowed are "
                "names of directories in the checkpoint."
            )
        return _describe(self.directory / path.rstrip("/"))

    def read(self, name: str) -> np.ndarray:
        """One parameter.

        Raises:
          CheckpointError: a chunk is missing or damaged.
        """
        leaf = self._leaves[name]
        return leaf if isinstance(leaf, np.ndarray) else _read(leaf)


def _sizes(content: Mapping[str, Any], key: str, where: Path) -> list[int]:
    """A short list of sizes of dimensions in `.zarray`."""
    sizes = content.get(key)
    if not isinstance(sizes, list) or len(sizes) > 8:
        raise CheckpointError(f"{where}: {key} is no short list.")
    for size in sizes:
        integer(size, f"{where}: {key}", 1, 2**48)
    return sizes


def _describe(folder: Path) -> ZarrArray:
    """Reads and checks `.zarray`."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a symbolic link; links are not followed.")
    where = folder / ".zarray"
    content = read_json(where, MIB)
    shape, chunks = _sizes(content, "shape", where), _sizes(content, "chunks", where)
    if len(shape) != len(chunks) or any(c > n for n, c in zip(shape, chunks, strict=True)):
        raise CheckpointError(f"{where}: chunks of {chunks} do not fit an array of {shape}.")
    compressor = content.get("compressor")
    kind = compressor.get("id") if isinstance(compressor, dict) else compressor
    forms = {"zarr_format": 2, "order": "C", "filters": None, "dimension_separator": "."}
    known = isinstance(kind, str | None) and kind in _CODECS
    if not known or any(content.get(k, v) != v for k, v in forms.items()):
        raise CheckpointError(
            f"{where}: read are zarr version 2, order C, no filters, chunks in one directory, and "
            "gzip, zstd or no compression."
        )
    dtype = content.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{where}: dtype {str(dtype)[:40]!r} is not read; {', '.join(_DTYPES)} are."
        )
    array = ZarrArray(folder, tuple(shape), tuple(chunks), _DTYPES[dtype], _CODECS[kind])
    if math.prod(array.grid) > _MAX_CHUNKS:
        raise CheckpointError(f"{where}: {math.prod(array.grid):,} chunks are too many.")
    return array


def _read(array: ZarrArray) -> np.ndarray:
    """All chunks of an array whose shape the caller has compared with what it needs."""
    value = np.empty(array.shape, array.dtype)
    size = math.prod(array.chunks) * array.dtype.itemsize
    for index in itertools.product(*map(range, array.grid)):
        data = _chunk(array.folder / (".".join(map(str, index)) or "0"), size, array.codec)
        piece = np.frombuffer(data, array.dtype).reshape(array.chunks)
        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, array.chunks, strict=True))
        target = value[where]
        target[...] = piece[tuple(slice(n) for n in target.shape)]
    return value


def _chunk(path: Path, size: int, codec: str) -> bytes:
    """The `size` bytes of a chunk; a packed one is never unpacked far beyond that."""
    with open_regular(path) as file:
        try:
            if codec == "zstd":
                data = zstd.unpack(file.read(zstd.most_packed(size) + 1), size)
            elif codec:
                data = _inflate(file, size)
            else:
                data = file.read(size + 1)
        except (ValueError, zlib.error) as error:
            reason = shown(str(error).splitlines()[0])
            raise CheckpointError(f"{path} is damaged: {reason}.") from None
    if len(data) != size:
        raise CheckpointError(f"{path} should hold {size:,} bytes and holds another number.")
    return data


def _inflate(file: BinaryIO, size: int) -> bytes:
    """Up to size + 1 bytes of a gzip or zlib stream."""
    unpacker, parts, left = zlib.decompressobj(47), [], size + 1  # 47: gzip or zlib
    while left > 0 and not unpacker.eof:
        packed = unpacker.unconsumed_tail or file.read(MIB)
        part = unpacker.decompress(packed, left)
        if not packed and not part:
            break
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if not unpacker.eof and len(data) <= size:
        raise ValueError("it was cut off")
    return data


def _unpack(data: bytes, path: Path) -> Any:
    """msgpack with flax's arrays; no other extension type, bounded depth and number of leaves."""
    import msgpack

    def extension(code: int, payload: bytes) -> np.ndarray:
        if code not in (_NDARRAY, _SCALAR):
            raise ValueError(f"extension type {code}")
        shape, dtype, values = msgpack.unpackb(payload, max_array_len=16)
        if not isinstance(dtype, str) or dtype not in _INLINE:
            raise ValueError(f"an array of {str(dtype)[:20]!r}")
        kind = _INLINE[dtype]
        if len(shape) > 8 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
            raise ValueError("a shape")
        if math.prod(shape) * kind.itemsize != len(values):
            raise ValueError("an array whose bytes do not fit its shape")
        return np.frombuffer(values, kind).reshape(tuple(shape))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a name that is there twice")
        return content

    try:
        return msgpack.unpackb(
            data,
            ext_hook=extension,
            strict_map_key=True,
            max_map_len=_MAX_LEAVES,
            max_array_len=_MAX_LEAVES,
            max_bin_len=MAX_JSON,
            max_ext_len=MAX_JSON,
            object_pairs_hook=once,
        )
    # msgpack raises its own classes, ValueError and TypeError for all sorts of damage.
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not msgpack that can be read: {str(error)[:200]}."
        ) from None


def _flatten(node: Any, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a tree of parameters; a leaf is an array, a description, or Orbax's text."""
    if isinstance(node, np.ndarray) or (
        isinstance(node, str) and node.startswith(orbax_tree.PLACEHOLDER)
    ):
        yield prefix, node
    elif not isinstance(node, dict) or depth > _MAX_DEPTH:
        raise CheckpointError(f"The checkpoint holds {type(node).__name__} at {prefix[:80]!r}.")
    elif "driver" in node:
        yield prefix, node
    else:
        for key, child in node.items():
            if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_\-]{1,100}", key):
                raise CheckpointError(f"The checkpoint holds the name {str(key)[:80]!r}.")
            yield from _flatten(child, f"{prefix}/{key}" if prefix else key, depth + 1)
