"""Rows of CSV and Parquet files, by pyarrow, which holds a bounded part of the file at a time.

Only the columns that are asked for are converted. A cell of CSV is text; `targets` and `choices`
that are a JSON list are one. Numbers of Parquet stay numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe.text.files import GZIP_ERRORS, damaged_gzip
from moe.text.json_rows import Bad, open_rows
from trainlib import commands
from trainlib.errors import ConfigError, DataError, nearest, shown
from trainlib.untrusted_files import open_regular

Rows = Iterator[tuple[str, dict[str, Any] | Bad]]

# What is parsed at once, and so the longest row of CSV.
BLOCK_BYTES = 16 << 20
# Rows of Parquet that are converted at once.
_BATCH_ROWS = 1024
# Bounds of what the head of a Parquet file may ask for.
_HEAD_BYTES, _HEAD_ENTRIES = 64 << 20, 1 << 20
LISTS = ("targets", "choices")


def _library(key: str, path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(
            f"{key}={shown(path)} is read by the package pyarrow, which is not installed: "
            f"{commands.install('text')} or pip install pyarrow; or convert the file to JSON lines."
        ) from None
    return pyarrow


@contextlib.contextmanager
def _explained(path: Path, key: str, what: str, hint: str) -> Iterator[None]:
    """Words what pyarrow refuses."""
    pyarrow = _library(key, path)
    try:
        yield
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise DataError(f"{key}={shown(path)} is no {what} file ({reason}). {hint}") from None


# ------------------------------------------------------------------------------------- CSV
def csv_rows(path: Path, key: str, fields: Sequence[str], separator: str) -> Rows:
    """The rows of a CSV file with a line of names, numbered from 2 as a spreadsheet does; lines
    without a cell do not count. Columns of other names come with the value None.

    Args:
      path: plain or gzip, UTF-8; cells may hold line ends in quotation marks.
      key: the configuration key that names it.
      fields: the columns to read.
      separator: between cells.

    Raises:
      DataError: no such column, a name twice, or a row above 16 MiB.
      ConfigError: pyarrow is not installed.
    """
    pyarrow = _library(key, path)
    from pyarrow import csv

    ragged: dict[int, str] = {}

    def skip(row: Any) -> str:
        ragged[row.number] = (
            f"has {row.actual_columns} cells where the first line names {row.expected_columns} "
            f"columns ({shown(row.text, 60)}). Cells that hold the separator, a quotation mark or "
            "a line end stand in quotation marks"
        )
        return "skip"

    hint = (
        f"A row has at most {BLOCK_BYTES >> 20} MiB: look for a quotation mark that is not closed."
    )
    with _explained(path, key, "CSV", hint), open_rows(path) as file:
        reader = csv.open_csv(
            file,
            # One thread, so that rows that are skipped come with their numbers.
            read_options=csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=skip
            ),
            # As bytes, so that one cell that is no UTF-8 spoils its own row alone.
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(fields, pyarrow.binary()), null_values=[]
            ),
        )
        names = reader.schema.names
        _check_names(path, key, names, separator)
        number = 1
        for batch in reader:
            columns = {name: batch.column(name).to_pylist() for name in names if name in fields}
            others = dict.fromkeys(name for name in names if name not in fields)
            for row in range(batch.num_rows):
                number += 1
                while number in ragged:
                    yield f"row {number}", Bad(ragged.pop(number))
                    number += 1
                cells = {name: column[row] for name, column in columns.items()}
                yield f"row {number}", _row_of_csv(cells, others)
        yield from ((f"row {n}", Bad(why)) for n, why in sorted(ragged.items()))


def _check_names(path: Path, key: str, names: Sequence[str], separator: str) -> None:
    """Refuses columns without `inputs`, and a name that stands twice."""
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{key}={shown(path)} row 1 names the column {shown(twice[0])!r} twice.")
    if "inputs" in names:
        return
    hint = nearest("inputs", names)
    other = {",": ";", "\t": ","}[separator]
    if len(names) == 1 and other in names[0]:
        hint = (
            f"Its cells seem to be separated by {other!r}: .csv files have commas between cells, "
            ".tsv files tabs. "
        )
    raise DataError(
        f"{key}={shown(path)} row 1 names no column 'inputs'. {hint}Columns: "
        f"{', '.join(map(shown, names[:20]))}."
    )


def _row_of_csv(cells: dict[str, bytes], others: dict[str, None]) -> dict[str, Any] | Bad:
    row: dict[str, Any] = dict(others)
    for name, content in cells.items():
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            byte = content[error.start]
            return Bad(f"has a byte in the column '{name}' that is not UTF-8 (0x{byte:02x})")
        if text or name == "inputs":  # an empty cell is no value
            row[name] = _listed(text) if name in LISTS else text
    return row


def _listed(text: str) -> Any:
    """The list that a cell holds as JSON, or the cell as it is."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


# --------------------------------------------------------------------------------- Parquet
def parquet_rows(path: Path, key: str, fields: Sequence[str]) -> Rows:
    """The rows of a Parquet file, numbered from 1. Columns of other names come with the value None.

    Args:
      path: the file.
      key: the configuration key that names it.
      fields: the columns to read; nothing else is taken from the disk.

    Raises:
      DataError: damaged, or no such column.
      ConfigError: pyarrow is not installed.
    """
    _library(key, path)
    from pyarrow import parquet

    hint = "Write it again, or copy it again."
    with (
        _explained(path, key, "whole Parquet", hint),
        open_regular(path, follow=True, error=DataError) as opened,
        parquet.ParquetFile(
            opened,
            thrift_string_size_limit=_HEAD_BYTES,
            thrift_container_size_limit=_HEAD_ENTRIES,
        ) as file,
    ):
        names = file.schema_arrow.names
        if "inputs" not in names or len(set(names)) < len(names):
            raise DataError(
                f"{key}={shown(path)} has no column 'inputs', or a name twice. "
                f"{nearest('inputs', names)}Columns: {', '.join(map(shown, names[:20]))}."
            )
        wanted = [name for name in names if name in fields]
        others = dict.fromkeys(name for name in names if name not in fields)
        numbers = itertools.count(1)
        # Nested columns are read by the names of their leaves; a whole column by its own.
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False):
            for cells in batch.to_pylist():
                yield f"row {next(numbers)}", _row_of_parquet(cells, others)


def _row_of_parquet(cells: dict[str, Any], others: dict[str, None]) -> dict[str, Any] | Bad:
    try:
        values = {name: _text(value) for name, value in cells.items() if value is not None}
    except UnicodeDecodeError as error:
        return Bad(f"holds bytes that are not UTF-8 ({error.reason})")
    return others | values


def _text(value: Any) -> Any:
    """Columns of bytes hold text where the program that wrote them did not say so."""
    if isinstance(value, bytes):
        return value.decode()
    return [_text(entry) for entry in value] if isinstance(value, list) else value
