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
# Columns of CSV; files with more are no pairs.
MOST_COLUMNS = 1000


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
    """Words what pyarrow refuses, or stumbles over."""
    pyarrow = _library(key, path)
    try:
        yield
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from None
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, ArithmeticError) as error:
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
        text = shown(_utf8(row.text, "backslashreplace"), 60)
        ragged[row.number] = (
            f"has {row.actual_columns} cells where the first line names {row.expected_columns} "
            f"columns ({text}). Cells that hold the separator, a quotation mark or a line end "
            "stand in quotation marks"
        )
        return "skip"

    hint = (
        f"A row has at most {BLOCK_BYTES >> 20} MiB: look for a quotation mark that is not closed."
    )
    with _explained(path, key, "CSV", hint), open_rows(path) as file:
        reader = csv.open_csv(
            file,
            # One thread, so that rows that are skipped come with their numbers. The names are read
            # as a row, since pyarrow would guess the types of columns that nobody asked for.
            # Every byte is a letter of Latin-1, so that what is no UTF-8 spoils its own row alone.
            read_options=csv.ReadOptions(
                block_size=BLOCK_BYTES,
                use_threads=False,
                autogenerate_column_names=True,
                encoding="latin-1",
            ),
            parse_options=csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=skip
            ),
            convert_options=csv.ConvertOptions(
                column_types={f"f{n}": pyarrow.string() for n in range(MOST_COLUMNS)},
                null_values=[],
            ),
        )
        names: list[str] = []
        number = 0
        for batch in reader:
            first = 0
            if not names and batch.num_rows:
                names = _names(path, key, [cell[0].as_py() for cell in batch.columns], separator)
                first, number = 1, 1
            wanted = {name: names.index(name) for name in names if name in fields}
            columns = {name: batch.column(at).to_pylist() for name, at in wanted.items()}
            others = dict.fromkeys(name for name in names if name not in fields)
            for row in range(first, batch.num_rows):
                number += 1
                while number in ragged:
                    yield f"row {number}", Bad(ragged.pop(number))
                    number += 1
                cells = {name: column[row] for name, column in columns.items()}
                yield f"row {number}", _row_of_csv(cells, others)
        yield from ((f"row {n}", Bad(why)) for n, why in sorted(ragged.items()))


def _names(path: Path, key: str, cells: Sequence[object], separator: str) -> list[str]:
    """The names of the columns, from the cells of the first row.

    Raises:
      DataError: there is no `inputs` among them, one stands twice, or there are too many.
    """
    if len(cells) > MOST_COLUMNS:
        raise DataError(f"{key}={shown(path)} has more than {MOST_COLUMNS:,} columns.")
    names = [_utf8(str(cell), "backslashreplace") for cell in cells]
    names[0] = names[0].removeprefix("\ufeff")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{key}={shown(path)} row 1 names the column {shown(twice[0])!r} twice.")
    if "inputs" in names:
        return names
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


def _utf8(letters: str, errors: str = "strict") -> str:
    """The text of bytes that were read as Latin-1."""
    return letters.encode("latin-1").decode(errors=errors)


def _row_of_csv(cells: dict[str, str], others: dict[str, None]) -> dict[str, Any] | Bad:
    row: dict[str, Any] = dict(others)
    for name, letters in cells.items():
        try:
            text = _utf8(letters)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
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
        twice = next((name for name in names if names.count(name) > 1), None)
        if "inputs" not in names or twice is not None:
            what = (
                f"two columns {shown(twice)!r}. "
                if twice is not None
                else (f"no column 'inputs'. {nearest('inputs', names)}")
            )
            raise DataError(
                f"{key}={shown(path)} has {what}Columns: {', '.join(map(shown, names[:20]))}."
            )
        wanted = [name for name in names if name in fields]
        others = dict.fromkeys(name for name in names if name not in fields)
        numbers = itertools.count(1)
        # Nested columns are read by the names of their leaves; a whole column by its own.
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False):
            for row in _values(batch):
                cells = row if isinstance(row, Bad) else others | row
                yield f"row {next(numbers)}", cells


def _values(batch: Any) -> Iterator[dict[str, Any] | Bad]:
    """The values of each row of a batch; one that holds bytes that are no text spoils itself
    alone.
    """
    try:
        rows = batch.to_pylist()
        yield from [{k: _text(v) for k, v in row.items() if v is not None} for row in rows]
    except ValueError as error:  # a UnicodeDecodeError, or a date that is none
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _values(batch.slice(row, 1))
        else:
            yield Bad(f"holds a value that cannot be read ({shown(error, 80)})")


def _text(value: Any) -> Any:
    """Columns of bytes hold text where the program that wrote them did not say so."""
    if isinstance(value, bytes):
        return value.decode()
    return [_text(entry) for entry in value] if isinstance(value, list) else value
