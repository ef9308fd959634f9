"""What a run leaves to read: `metrics.jsonl` and TensorBoard events, both exact over a resume.
Trackers of the user (`trainlib.run.trackers`) get the same records.

Each line of `metrics.jsonl` is one object {"step": 120, "kind": "train", "loss": 1.25, ...}. Floats
are written so that they read back bit for bit; NaN and infinities, which JSON has not, are the
strings "NaN", "Infinity" and "-Infinity". A run that resumes from step s first cuts all later lines
(and a half-written last one), so the file is as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainlib.errors import DataError, StorageError, UserError, paragraph, shown
from trainlib.files import check_target, create, make_directory, open_to_write
from trainlib.run.trackers.feed import scalars
from trainlib.untrusted_files import open_regular, parse_json

FLUSH_SECONDS = 10.0  # between two flushes of TensorBoard events
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _encode(value: Any) -> Any:
    if isinstance(value, str | bool | int) or value is None:
        return value
    value = float(value)
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


MOST_BYTES = 4 << 30  # of a metrics file; one with no end to it is none
_LONGEST = 1 << 20  # bytes of a line
_VALUES = (str, bool, int, float, type(None))


def _parse(line: bytes) -> dict[str, Any] | None:
    """One record, or None for anything that is not one: a step and plain values."""
    try:
        record = parse_json(line, "a line")
    except UserError:
        return None
    if not isinstance(record, dict) or not all(isinstance(v, _VALUES) for v in record.values()):
        return None
    numbers = [v for v in record.values() if isinstance(v, int)]
    step, kind = record.get("step"), record.get("kind", "")
    fits = type(step) is int and step >= 0 and all(abs(v) < 2**63 for v in numbers)
    return record if fits and isinstance(kind, str) else None


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """(line, its record or None) of a metrics file, one at a time; of what is too long to be a line
    the beginning.

    Raises:
      DataError: it is no regular file, cannot be read, or is larger than any run writes.
    """
    with open_regular(path, error=DataError) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{shown(path)} has {size:,} bytes, and no more than {MOST_BYTES:,} are read. It "
                "is not what a run wrote: move it away."
            )
        while line := file.readline(_LONGEST):
            whole = line.endswith(b"\n")
            yield line, _parse(line) if whole else None
            while not whole and (rest := file.readline(_LONGEST)):
                whole = rest.endswith(b"\n")


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The metrics file {path} cannot be written: {error.strerror}. Free space or choose "
        "another --workdir; the same command then goes on from the last checkpoint."
    )


def read(path: str | Path, damaged: Callable[[int], None] | None = None) -> Iterator[dict]:
    """Yields the records of a metrics file; what is not a whole record is passed over.

    Args:
      path: the file.
      damaged: told the number of lines that were passed over, when there were any; default: a
        warning says it. A last line that was not finished does not count.

    Raises:
      DataError: it is no regular file, cannot be read, or is larger than any run writes.
    """
    bad, last = 0, False
    for line, record in _lines(Path(path)):
        last = record is None and not line.endswith(b"\n")
        bad += record is None
        if record is not None:
            yield {
                key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                for key, value in record.items()
            }
    if bad - last:
        (damaged or functools.partial(_warn, Path(path), "passed over"))(bad - last)


def _warn(path: Path, what: str, count: int) -> None:
    lines = f"{count:,} damaged line{'s were' if count > 1 else ' was'} {what}"
    print(paragraph(f"warning: {path}: {lines}."), file=sys.stderr, flush=True)


def truncate(path: Path, step: int, redo: str = "") -> None:
    """Cuts the records after `step`, those of kind `redo` at it, and whatever is no whole record,
    in one atomic replacement.

    Raises:
      ConfigError: it is a link, or has a second name.
      DataError: as `read`.
      OSError: the disk refuses.
    """
    check_target(path)
    if not path.exists():
        return

    def stays(record: dict[str, Any] | None) -> bool:
        if record is None or record["step"] > step:
            return False
        return record["step"] < step or record.get("kind") != redo

    cut = bad = last = 0
    for line, record in _lines(path):
        last = record is None and not line.endswith(b"\n")
        bad, cut = bad + (record is None), cut + (not stays(record))
    if bad - last:
        _warn(path, "removed", bad - last)
    if not cut:
        return
    temporary = path.with_name(path.name + ".tmp")
    with os.fdopen(create(temporary), "wb") as file:
        file.writelines(line for line, record in _lines(path) if stays(record))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class JsonLines:
    """Appends records to a metrics file.

    Args:
      path: the file; made when absent.
      step: the step that the run starts from; later records are cut.
      redo: kind of record that the run writes for that step itself once more.

    Raises:
      ConfigError: it is a link, or has a second name.
      DataError: it is larger than any run writes.
      StorageError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path, step: int = 0, redo: str = ""):
        self._path = Path(path)
        try:
            truncate(self._path, step, redo)
            # Unbuffered: a record reaches the system in one write, so a kill loses at most the one
            # being written.
            self._file = os.fdopen(open_to_write(self._path, append=True), "ab", buffering=0)
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Appends one record; values are numbers (host or device scalars), strings or None."""
        encoded = {name: _encode(value) for name, value in values.items()}
        record = {"step": int(step), "kind": kind, **encoded}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):  # a disk that is nearly full takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Hides a package that an import inside the block would load if it is installed: PyTorch takes
    two seconds of every start, and tensorboardX asks it for the name of a type.
    """
    if package in sys.modules:
        yield
        return
    hidden: dict[str, Any] = sys.modules  # None in it stands for a package that is not installed
    hidden[package] = None
    try:
        yield
    finally:
        del hidden[package]


class TensorBoard:
    """Writes scalars as TensorBoard events, named `kind/name`.

    Args:
      directory: where the event files are.
      step: the step that the run starts from; later events of an earlier run are hidden.

    Raises:
      ConfigError: the directory is a link.
      StorageError: the file cannot be written.
    """

    def __init__(self, directory: str | Path, step: int = 0):
        # Not `SummaryWriter`: its thread dies when the disk is full, and then its queue, once it
        # has filled up, holds the run for ever.
        with _without("torch"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

        # It warns of each value that is not finite; the mean of nothing is NaN, and no mistake.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        messages: Any = event_pb2  # its names are made at run time
        self._directory, self._last, self._event = Path(directory), 0.0, messages.Event
        with self._refusals():
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            make_directory(self._directory)
            # Files of one second would have one name; a resumed run never continues another's.
            self._writer = EventsWriter(
                str(self._directory / "events"), f".{os.getpid()}.{time.monotonic_ns()}"
            )
            if step:
                start = messages.SessionLog(status=messages.SessionLog.START)
                self._add(messages.Event(session_log=start, step=step + 1))
            self._writer.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _storage_error(self._directory, error) from error

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes the values that are numbers."""
        from tensorboardX.summary import scalar

        with self._refusals():
            for name, value in scalars(kind, values).items():
                self._add(self._event(summary=scalar(name, value), step=int(step)))
            if time.monotonic() > self._last + FLUSH_SECONDS:
                self._writer.flush()
                self._last = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the event file."""
        with self._refusals():
            self._writer.close()


class Writer(Protocol):
    """What takes the records of a run."""

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Takes one record; values are numbers (host or device scalars), strings or None."""
        ...


class Writers:
    """`metrics.jsonl` and TensorBoard events of one run, in its workdir, and the user's trackers.

    Args:
      workdir: an existing directory.
      step: the step that the run starts from.
      redo: as for `JsonLines`.
      tensorboard: whether to write events as well.
      extra: further writers, which the caller closes.
    """

    def __init__(
        self,
        workdir: str | Path,
        step: int = 0,
        *,
        redo: str = "",
        tensorboard: bool = True,
        extra: Sequence[Writer] = (),
    ):
        workdir = Path(workdir)
        self._files: list[JsonLines | TensorBoard] = [
            JsonLines(workdir / "metrics.jsonl", step, redo)
        ]
        if tensorboard:
            self._files.append(TensorBoard(workdir / "tensorboard", step))
        self._extra = extra

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one record, for example `write(120, "train", {"loss": 1.25})`."""
        for writer in (*self._files, *self._extra):
            writer.write(step, kind, values)

    def close(self) -> None:
        """Closes all files."""
        for file in self._files:
            file.close()
