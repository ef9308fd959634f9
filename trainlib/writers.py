"""What a run leaves to read: `metrics.jsonl` and TensorBoard events, both exact over a resume.

Each line of `metrics.jsonl` is one object {"step": 120, "kind": "train", "loss": 1.25, ...}. Floats
are written so that they read back bit for bit; NaN and infinities, which JSON has not, are the
strings "NaN", "Infinity" and "-Infinity". A run that resumes from step s first cuts all later lines
(and a half-written last one), so the file is as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainlib.errors import StorageError

FLUSH_SECONDS = 10.0  # between two flushes of TensorBoard events
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _encode(value: Any) -> Any:
    if isinstance(value, str | bool | int) or value is None:
        return value
    value = float(value)
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _parse(line: bytes) -> dict[str, Any] | None:
    """One record, or None for anything that is not one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The metrics file {path} cannot be written: {error.strerror}. Free space or choose "
        "another --workdir; the same command then goes on from the last checkpoint."
    )


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a metrics file; what is not a whole record is passed over."""
    with open(path, "rb") as file:
        for line in file:
            record = _parse(line) if line.endswith(b"\n") else None
            if record is not None:
                yield {
                    key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                    for key, value in record.items()
                }


def truncate(path: Path, step: int, redo: str = "") -> None:
    """Cuts the records after `step`, those of kind `redo` at it, and whatever is no whole record,
    in one atomic replacement.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    records = [_parse(line) if line.endswith(b"\n") else None for line in lines]
    kept = [
        line
        for line, r in zip(lines, records, strict=True)
        if r and (r["step"] < step or (r["step"] == step and r["kind"] != redo))
    ]
    broken = sum(record is None for record in records[:-1])
    if broken:
        logging.warning("%s: %d damaged lines were removed.", path, broken)
    if len(kept) == len(lines):
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.writelines(kept)
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
      StorageError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path, step: int = 0, redo: str = ""):
        self._path = Path(path)
        try:
            truncate(self._path, step, redo)
            # Unbuffered: a record reaches the system in one write, so a kill loses at most the one
            # being written.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
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


class TensorBoard:
    """Writes scalars as TensorBoard events, named `kind/name`.

    Args:
      directory: where the event files are.
      step: the step that the run starts from; later events of an earlier run are hidden.

    Raises:
      StorageError: the file cannot be written.
    """

    def __init__(self, directory: str | Path, step: int = 0):
        # Not `SummaryWriter`: its thread dies when the disk is full, and then its queue, once it
        # has filled up, holds the run for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2  # its names are made at run time
        self._directory, self._last, self._event = Path(directory), 0.0, messages.Event
        with self._refusals():
            self._directory.mkdir(parents=True, exist_ok=True)
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

        numbers = {n: v for n, v in values.items() if not isinstance(v, str | bool)}
        with self._refusals():
            for name, value in numbers.items():
                if value is not None:
                    summary = scalar(f"{kind}/{name}", float(value))
                    self._add(self._event(summary=summary, step=int(step)))
            if time.monotonic() > self._last + FLUSH_SECONDS:
                self._writer.flush()
                self._last = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the event file."""
        with self._refusals():
            self._writer.close()


class Writers:
    """`metrics.jsonl` and TensorBoard events of one run, in its workdir.

    Args:
      workdir: an existing directory.
      step: the step that the run starts from.
      redo: as for `JsonLines`.
      tensorboard: whether to write events as well.
    """

    def __init__(
        self, workdir: str | Path, step: int = 0, *, redo: str = "", tensorboard: bool = True
    ):
        workdir = Path(workdir)
        self._writers: list[JsonLines | TensorBoard] = [
            JsonLines(workdir / "metrics.jsonl", step, redo)
        ]
        if tensorboard:
            self._writers.append(TensorBoard(workdir / "tensorboard", step))

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one record, for example `write(120, "train", {"loss": 1.25})`."""
        for writer in self._writers:
            writer.write(step, kind, values)

    def close(self) -> None:
        """Closes all files."""
        for writer in self._writers:
            writer.close()
