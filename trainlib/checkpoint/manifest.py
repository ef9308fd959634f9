"""The manifest of a saved step: what it holds and how to tell that it is whole.

`manifest.json` is written last, into a finished step directory, in one atomic replacement. A step
without it was cut off and does not count. It holds, for each leaf, shape, dtype, logical axes,
partition and digest; the size of every file; the mesh; and what the run says of itself
(configuration, data position, versions, random numbers, metrics). Its own content is guarded by a
SHA-256. Everything that is read is checked for its type and bounded: a manifest may come from
elsewhere.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainlib.files import sync, write_atomically
from trainlib.seal import seal_of, sealed

FORMAT = 1
NAME = "manifest.json"
MAX_BYTES = 64 << 20
# Errors of the system that say what is there; all others say that it could not be looked at.
ABOUT_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)
SMALLER_IS_BETTER = ("loss", "cross_entropy")  # among what evaluations measure
_DIGEST = re.compile(r"[0-9a-f]{16}")


class NoManifest(Exception):
    """There is no manifest: the step was never finished, or it is not one of ours."""


class BadManifest(Exception):
    """There is a manifest, and it or the files beside it are not what was written."""


class UnknownFormat(Exception):
    """There is a whole manifest, in a format that came after this code."""


NOT_READ = (NoManifest, BadManifest, UnknownFormat)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a step.

    Attributes:
      shape: its shape.
      dtype: NumPy's name of its type, or "bfloat16".
      digest: 16 hexadecimal digits, `trainlib.checkpoint.digest`.
      axes: a logical axis for each dimension; None where nobody named them.
      partition: for each dimension, the mesh axes it was split over when it was saved.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str
    axes: tuple[str | None, ...] | None = None
    partition: tuple[tuple[str, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What stands in `manifest.json`.

    Attributes:
      step: number of finished training steps.
      leaves: name -> leaf.
      files: path below the step directory -> bytes, of every file but the manifest.
      mesh: mesh axis -> size, when it was saved.
      meta: what the run says of itself: config, data, versions, random.
      metrics: the evaluation at this step; empty when there was none.
    """

    step: int
    leaves: Mapping[str, Leaf]
    files: Mapping[str, int]
    mesh: Mapping[str, int]
    meta: Mapping[str, Any]
    metrics: Mapping[str, float]


def best(manifests: Mapping[int, Manifest], metric: str, *, larger_is_better: bool) -> int | None:
    """The step whose evaluation is the best by a metric, the newest of equals; None when none of
    them was measured.

    Args:
      found: number -> manifest.
      metric: its name.
      larger_is_better: its direction, see `larger_is_better`.
    """
    values = {step: entry.metrics.get(metric, math.nan) for step, entry in manifests.items()}
    sign = 1 if larger_is_better else -1
    measured = {step: sign * value for step, value in values.items() if not math.isnan(value)}
    return max(measured, key=lambda step: (measured[step], step), default=None)


def larger_is_better(metric: str) -> bool:
    """The direction of a metric by its name."""
    return not metric.endswith(SMALLER_IS_BETTER)


def write(directory: Path, manifest: Manifest) -> None:
    """Makes a step directory count. Everything in it is on the disk before the manifest is.

    Raises:
      OSError: the disk refuses.
    """
    text = sealed(dataclasses.asdict(manifest) | {"format": FORMAT}, "manifest")
    files = [directory / name for name in manifest.files]
    for path in files:
        sync(path)
    for folder in {
        directory,
        *(f for path in files for f in path.parents if directory in f.parents),
    }:
        sync(folder)
    write_atomically(directory / NAME, text)
    sync(directory.parent)


def read(directory: Path) -> Manifest:
    """Reads the manifest of a step directory and compares file sizes; reads no array.

    Raises:
      NoManifest: with the reason why this is no finished step.
      BadManifest: with what is damaged.
      UnknownFormat: with the format.
      OSError: the disk refuses, which says nothing about the step.
    """
    try:
        if not stat.S_ISDIR(directory.lstat().st_mode):
            raise NoManifest(f"{directory} is not a directory")
    except FileNotFoundError:
        raise NoManifest(f"there is no {directory}") from None
    path = directory / NAME
    try:
        # A link would let a step from elsewhere point at any file of this machine.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NoManifest(f"there is no {NAME} in it, so its save was never finished") from None
    except OSError as error:
        if error.errno not in ABOUT_CONTENT:
            raise
        raise BadManifest(f"{path}: {error.strerror}") from None
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise BadManifest(f"{path} is not a file of at most {MAX_BYTES} bytes")
        text = opened.read(MAX_BYTES + 1)
    try:
        manifest = _parsed(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadManifest(f"{path} is damaged: {error}") from None
    _compare_files(directory, manifest)
    return manifest


def _parsed(text: bytes) -> Manifest:
    outer = json.loads(text)
    inner, expected = outer["manifest"], outer["sha256"]
    actual = seal_of(inner)
    if actual != expected:
        raise ValueError(f"its SHA-256 is {actual}, and {expected} was written")
    if inner["format"] != FORMAT:
        raise UnknownFormat(f"format {inner['format']!r}, and {FORMAT} is known here")
    return Manifest(
        step=_count(inner["step"]),
        leaves={_name(name): _leaf(value) for name, value in inner["leaves"].items()},
        files={_path(name): _count(size) for name, size in inner["files"].items()},
        mesh={str(name): _count(size) for name, size in inner["mesh"].items()},
        meta=_meta(inner["meta"]),
        metrics={str(name): float(value) for name, value in inner["metrics"].items()},
    )


def _leaf(value: Mapping[str, Any]) -> Leaf:
    digest = value["digest"]
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a digest")
    axes, partition = value["axes"], value["partition"]
    return Leaf(
        shape=tuple(_count(size) for size in value["shape"]),
        dtype=str(value["dtype"]),
        digest=digest,
        axes=None if axes is None else tuple(axes),
        partition=None if partition is None else tuple(tuple(p) for p in partition),
    )


def _meta(value: Mapping[str, Any]) -> dict[str, Any]:
    for name, section in value.items():
        if not isinstance(section, dict):
            raise ValueError(f"its section {name[:50]!r} is no table")
    return dict(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is not a size")
    return value


def _name(name: str) -> str:
    if not 0 < len(name) <= 1024 or not name.isprintable():
        raise ValueError(f"{name[:50]!r} is not the name of a leaf")
    return name


def _path(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name[:50]!r} is not a path inside the step")
    return name


def _compare_files(directory: Path, manifest: Manifest) -> None:
    try:
        sizes = dict(files_of(directory))
    except OSError as error:
        if error.errno not in ABOUT_CONTENT:
            raise
        raise BadManifest(f"{error.filename}: {error.strerror}") from None
    for name, size in manifest.files.items():
        if name not in sizes:
            raise BadManifest(f"{directory / name} is missing")
        if sizes[name] != size:
            raise BadManifest(
                f"{directory / name} has {sizes[name]:,} bytes, and {size:,} were written"
            )


def files_of(directory: Path) -> Iterator[tuple[str, int]]:
    """(path below `directory`, bytes) of each file but the manifest.

    Raises:
      OSError: a directory cannot be listed.
      BadManifest: a link is in it, and may lead out of the step.
    """
    for folder, folders, names in os.walk(directory, onerror=_raise):
        for name in sorted([*folders, *names]):
            path = Path(folder) / name
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise BadManifest(f"{path} is a link, and a step holds none")
            relative = path.relative_to(directory).as_posix()
            if stat.S_ISREG(status.st_mode) and not relative.startswith(NAME):
                yield relative, status.st_size


def _raise(error: OSError) -> None:
    raise error
