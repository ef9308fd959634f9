"""Writes weights in other formats: leaf by leaf, by one process or by several.

Every process computes the same plan of all files from shapes alone; process `part` of `parts` reads
the leaves and writes the files of its share, and the first also writes what is there once. The
plan's names are the same whoever runs, so a part that failed can be run again by itself.

What makes a directory readable (the index, or T5X's tree) is removed before anything is written and
comes last, from whichever process finds everything there and of one origin. So an export that was
cut off, or whose parts took different steps, is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from trainlib.checkpoint.write import reason
from trainlib.errors import ConfigError, StorageError
from trainlib.files import check_target, write_atomically
from trainlib.formats import layout as interchange
from trainlib.formats import safetensors as safetensors_io
from trainlib.formats.layout import Entry, Layout
from trainlib.formats.weight_source import Weights

_UNFINISHED = (".partial", ".tmp")  # of a file that is being written


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
    """What a process wrote: files and their tensors and bytes; and whether nothing is missing of
    the whole export, whoever writes it.
    """

    files: int
    tensors: int
    size: int
    complete: bool


def result_dtypes(
    source: Weights, statistics: Sequence[str], dtype: np.dtype | None
) -> dict[str, np.dtype]:
    """Our name -> dtype in the export; running statistics stay as they are."""
    return {
        name: np.dtype(spec.dtype)
        if dtype is None or name in statistics or not jnp.issubdtype(spec.dtype, jnp.floating)
        else dtype
        for name, spec in source.specs.items()
    }


def prepare(out: Path, mine: Sequence[str], last: Sequence[Path], share: Share) -> None:
    """Makes the directory and removes what says that an export is complete in it.

    Args:
      out: the directory.
      mine: names of all files of the export.
      last: paths that make the export readable or are written once; the first of them also by
        processes that do not write it.
      share: what this process does.

    Raises:
      ConfigError: it holds anything but an export with the same names.
      StorageError: it cannot be made or changed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = sorted(out.iterdir())
        others = [p.name for p in found if p.suffix not in _UNFINISHED and p.name not in mine]
        if others:
            raise ConfigError(
                f"--out={out} already holds {others[0]!r}. Give a directory that is new or empty."
            )
        for path in found:
            if path.suffix not in _UNFINISHED and not (path.is_dir() and not path.is_symlink()):
                check_target(path)
        for path in last if share.first else last[:1]:
            path.unlink(missing_ok=True)
        for path in found if share.parts == 1 else ():
            if path.suffix in _UNFINISHED:  # of an export that was killed
                path.unlink()
    except OSError as error:
        raise refused(error, out) from None


def refused(error: OSError, out: Path) -> StorageError:
    """One paragraph for a disk that refuses an export."""
    return StorageError(
        f"Writing to --out={out} failed: {reason(error)}. What is there now is no complete export "
        "and is not read as one. Free space, or give another --out; the same command then writes "
        "it anew."
    )


def safetensors(
    source: Weights,
    layout: Layout,
    out: Path,
    *,
    dtypes: Mapping[str, np.dtype],
    shard_size: int,
    share: Share,
    extra: Mapping[str, bytes],
) -> Written:
    """Writes safetensors files, the layout's own files and `extra`, and last the index.

    Args:
      source: the weights.
      layout: names and forms.
      out: the directory.
      dtypes: our name -> dtype, see `result_dtypes`.
      shard_size: bytes of one file.
      share: what of it this process does.
      extra: name -> content of further files; of other processes than the first, the names count.

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
    files = safetensors_io.plan(out, tensors, shard_size, source.origin)
    index = out / safetensors_io.INDEX
    once = {name: text.encode() for name, text in layout.files.items()} | dict(extra)
    last = [index, *(out / name for name in once)]
    prepare(out, [*(file.name for file in files), *(path.name for path in last)], last, share)
    own = [f for number, f in enumerate(files) if number * share.parts // len(files) == share.part]
    try:
        with safetensors_io.Writer(out, own) as writer:
            needed = _needed(leaves, writer.names)
            for name, leaf in source.leaves(list(needed)):
                for theirs, value in interchange.give(needed[name], leaf, dtypes[name]):
                    writer.write(theirs, value)
                del leaf  # before the next one is read
        if share.first:
            for name, content in once.items():
                write_atomically(out / name, content)
        complete = all(path.is_file() for path in last[1:]) and safetensors_io.is_complete(
            out, files
        )
        if complete:
            write_atomically(index, safetensors_io.index_text(files))
    except OSError as error:
        raise refused(error, out) from None
    tensors, size = sum(len(f.tensors) for f in own), sum(f.size for f in own)
    return Written(len(own), tensors, size, complete)


def _needed(leaves: Mapping[str, list[Entry]], names: set[str]) -> dict[str, list[Entry]]:
    """The leaves that hold one of the tensors named, with those entries alone."""
    found = {
        name: [entry for entry in entries if entry.theirs in names]
        for name, entries in leaves.items()
    }
    return {name: entries for name, entries in found.items() if entries}
