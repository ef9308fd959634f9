"""The rows of a file of pairs: JSON lines or an array, CSV, TSV or Parquet; the first three also as
gzip.

What a file holds is decided by its first bytes, and CSV and TSV by the suffix. A row is a mapping
from the names of its fields to values of Python, whatever the format; a row that cannot be used is
a `Bad`, which says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe.pairs.tables import csv_rows, parquet_rows
from moe.text.files import BOM, GZIP_ERRORS, damaged_gzip, other_format
from moe.text.json_rows import Bad, open_rows, read_rows
from trainlib.errors import DataError, nearest, shown
from trainlib.untrusted_files import open_regular

FIELDS = ("inputs", "targets", "choices", "task")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
_START = 512  # bytes that tell the format


def rows_of(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
    """(position, row) of each row of a file, such as ("line 3", {"inputs": ..}); blank lines are
    left out.

    Args:
      path: a regular file, or a link to one.
      key: the configuration key that names it, for messages.

    Raises:
      DataError: it is not there, is no regular file, empty, of another format, or damaged in a way
        that loses what follows.
      ConfigError: the library that reads its format is not installed.
    """
    named = f"{key}={shown(path)}"
    start, packed = _start(path, key)
    if start.startswith(b"PAR1"):
        if packed:
            raise DataError(f"{named} is a Parquet file in a gzip file: unpack it.")
        yield from parquet_rows(path, key, FIELDS)
        return
    if what := other_format(start):
        advice = "convert it to UTF-8" if "UTF" in what else "unpack or convert it"
        raise DataError(f"{named} is {what}: {advice}.")
    if not start.removeprefix(BOM).strip():
        raise DataError(f"{named} begins with nothing: it has no rows.")
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in SEPARATORS:
        yield from csv_rows(path, key, FIELDS, SEPARATORS[suffix])
        return
    yield from ((where, row) for where, row in read_rows(path) if row is not None)


def _start(path: Path, key: str) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked, and whether it is gzip.

    Raises:
      DataError: it is not there, is no regular file, or a damaged gzip file.
    """
    if path.is_dir():
        raise DataError(
            f"{key}={shown(path)} is a folder. Give one file of rows: .jsonl, .csv, .tsv or "
            f".parquet. {_there(path)}"
        )
    if not os.path.lexists(path):
        names = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(
            f"{key}={shown(path)}: there is no such file (here: {shown(os.getcwd())}). "
            f"{nearest(path.name, names)}Give a file of rows: .jsonl, .csv, .tsv or .parquet."
        )
    with open_regular(path, follow=True, error=DataError) as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with open_rows(path) as file:
            return file.read(_START), packed
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None


def _there(folder: Path) -> str:
    """The first files of a folder, as a sentence."""
    names = sorted(entry.name for entry in folder.glob("*") if entry.is_file())
    return f"In it: {', '.join(map(shown, names[:5]))}{', ..' * (len(names) > 5)}." if names else ""
