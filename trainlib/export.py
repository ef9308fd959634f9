"""Writes weights in other formats: leaf by leaf, by one process or by several.

Every process computes the same plan of all files from shapes alone; process `part` of `parts` reads
the leaves and writes the files of its share, and the first also writes what is there once. The
plan's names are the same whoever runs, so a part that failed can be run again by itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from trainlib import interchange, safetensors_io
from trainlib.errors import ConfigError, StorageError
from trainlib.interchange import Entry, Layout
from trainlib.saving import storage_error
from trainlib.weights import RECORD, Exported, Saved


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the work a process does: `part` of `parts`, from 0."""

    part: int = 0
    parts: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.part == 0


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export wrote: files and their tensors and bytes."""

    files: int
    tensors: int
    size: int


def result_dtypes(
    source: Saved | Exported, statistics: Sequence[str], dtype: np.dtype | None
) -> dict[str, np.dtype]:
    """Our name -> dtype in the export; running statistics stay as they are."""
    return {
        name: np.dtype(spec.dtype)
        if dtype is None or name in statistics or not jnp.issubdtype(spec.dtype, jnp.floating)
        else dtype
        for name, spec in source.specs.items()
    }


def prepare(out: Path, mine: Sequence[str]) -> None:
    """Makes the directory; refuses one that holds anything but an export with the same names.

    Raises:
      ConfigError: it holds other files.
      StorageError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = sorted({p.name for p in out.iterdir() if not p.name.endswith(".partial")})
    except OSError as error:
        raise StorageError(f"--out={out} cannot be made: {error.strerror}.") from None
    if others := [name for name in others if name not in mine]:
        raise ConfigError(
            f"--out={out} already holds {others[0]!r}. Give a directory that is new or empty."
        )


def safetensors(
    source: Saved | Exported,
    layout: Layout,
    out: Path,
    *,
    dtypes: Mapping[str, np.dtype],
    shard_size: int,
    share: Share,
    extra: Sequence[str] = (),
) -> Written:
    """Writes safetensors files, the index, and the layout's own files.

    Args:
      source: the weights.
      layout: names and forms.
      out: the directory.
      dtypes: our name -> dtype, see `result_dtypes`.
      shard_size: bytes of one file.
      share: what of it this process does.
      extra: names of further files that may stand there.

    Raises:
      ConfigError: the directory holds other files.
      StorageError: the disk refuses.
    """
    leaves = layout.by_leaf(written=True)
    tensors = {
        entry.theirs: (interchange.their_shape(entry, source.specs[name]), dtypes[name])
        for name, entries in leaves.items()
        for entry in entries
    }
    files = safetensors_io.plan(out, tensors, shard_size)
    once = {safetensors_io.INDEX: safetensors_io.index_text(files), **layout.files}
    prepare(out, [*(file.name for file in files), *once, RECORD, *extra])
    own = [f for number, f in enumerate(files) if number * share.parts // len(files) == share.part]
    try:
        with safetensors_io.Writer(out, own) as writer:
            needed = _needed(leaves, writer.names)
            for name, leaf in source.leaves(list(needed)):
                for theirs, value in interchange.give(needed[name], leaf, dtypes[name]):
                    writer.write(theirs, value)
                del leaf  # before the next one is read
        if share.first:
            for name, text in once.items():
                (out / name).write_text(text)
    except OSError as error:
        raise storage_error(error, out) from None
    return Written(len(own), sum(len(f.tensors) for f in own), sum(f.size for f in own))


def _needed(leaves: Mapping[str, list[Entry]], names: set[str]) -> dict[str, list[Entry]]:
    """The leaves that hold one of the tensors named, with those entries alone."""
    found = {
        name: [entry for entry in entries if entry.theirs in names]
        for name, entries in leaves.items()
    }
    return {name: entries for name, entries in found.items() if entries}


def record(out: Path, content: Mapping[str, object]) -> None:
    """Writes `export.json`: where the weights come from."""
    (out / RECORD).write_text(json.dumps(dict(content), indent=2) + "\n")
