"""The finished lines of a prediction, which a later call of the same command resumes from.

They lie in OUTPUT.partial; OUTPUT.partial.json says what they were made from. OUTPUT.partial.early
has answers to lines that stand behind one that is not answered: objects with `number`, that of the
line from 0, and `line`. The file gets its name when all lines are answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from moe.prediction.lines import Counts, Line
from trainlib import files
from trainlib.errors import DataError, StorageError, shown
from trainlib.untrusted_files import open_regular, parse_json, read_json

_FEW = 256  # lines of the file of early answers that need not be in it


class PartialOutput:
    """The lines that are finished.

    Args:
      input: the file that is answered.
      output: the file that is made.
      made_by: text that tells weights and settings from others.
      added: the fields that each line gets, and their types.
      several: answers that each line asks for.
    """

    def __init__(
        self, input: Path, output: Path, made_by: str, added: Mapping[str, type], several: int = 1
    ):
        self.output, self.added, self.several = output, added, several
        self.path = output.with_name(f"{output.name}.partial")
        self.note = output.with_name(f"{output.name}.partial.json")
        self.ahead = output.with_name(f"{output.name}.partial.early")
        self._stored: set[int] = set()  # numbers of the lines in it
        with open_regular(input, follow=True, error=DataError) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        made_by = hashlib.sha256(made_by.encode()).hexdigest()
        self.origin = {"input": content, "made_by": made_by}

    def resume(self) -> tuple[int, dict[int, Line], Counts, int]:
        """What an earlier call left: the number of its lines, answered lines behind these by their
        numbers, counts of the former; and how many lines it left of another input, other weights or
        another configuration, which are removed, as is what is damaged.
        """
        known = False
        with contextlib.suppress(DataError):
            known = read_json(self.note, error=DataError) == self.origin
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(files.open_to_write(self.path), "r+b") as file:
                before = file.read()
                lines, size = _whole(before, self.added) if known else ([], 0)
                file.truncate(size)
            with os.fdopen(files.open_to_write(self.ahead), "r+b") as file:
                early = _early(file.read(), self.added) if known else {}
            early = {number: line for number, line in early.items() if number >= len(lines)}
            files.write_atomically(self.note, json.dumps(self.origin))
        except OSError as error:
            raise self._refused(error) from None
        self._store(early)
        counts = Counts()
        counts.add(lines, self.several)
        return len(lines), early, counts, 0 if known else before.count(b"\n")

    def write(self, lines: list[Line], early: Mapping[int, Line]) -> None:
        """Appends lines.

        Args:
          lines: the next ones of the file.
          early: by their numbers, all lines behind these that are answered.
        """
        added = {n: early[n] for n in early.keys() - self._stored if early[n]}
        try:
            for path, rows in ((self.path, lines), (self.ahead, _numbered(added))):
                if rows:
                    with os.fdopen(files.open_to_write(path, append=True), "wb") as file:
                        file.write(_text(rows))
        except OSError as error:
            raise self._refused(error) from None
        self._stored.update(added)
        if len(self._stored) > 2 * len(early) + _FEW:
            self._store(early)

    def _store(self, early: Mapping[int, Line]) -> None:
        """Makes the file of answers that are early anew, without those that are no longer."""
        kept = {number: line for number, line in early.items() if line}
        try:
            files.write_atomically(self.ahead, _text(_numbered(kept)).decode())
        except OSError as error:
            raise self._refused(error) from None
        self._stored = set(kept)

    def finish(self) -> None:
        """Gives the file its name."""
        self.path.replace(self.output)
        self.note.unlink(missing_ok=True)
        self.ahead.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"--output={shown(self.output)} cannot be written ({error.strerror}). Free space or "
            "name another file; finished lines stay."
        )


def _text(lines: Iterable[Line]) -> bytes:
    rows = (json.dumps(line, ensure_ascii=False) if line else "" for line in lines)
    return "".join(f"{row}\n" for row in rows).encode()


def _numbered(lines: Mapping[int, Line]) -> list[Line]:
    return [{"number": number, "line": line} for number, line in sorted(lines.items())]


def _early(content: bytes, added: Mapping[str, type]) -> dict[int, Line]:
    """The lines of a file that was cut off somewhere, by their numbers."""
    found, _ = _whole(content, {"number": int, "line": dict})
    return {row["number"]: row["line"] for row in found if row and _has(row["line"], added)}


def _has(line: object, fields: Mapping[str, type]) -> bool:
    return isinstance(line, dict) and all(
        isinstance(line.get(name), kind) for name, kind in fields.items()
    )


def _whole(content: bytes, added: Mapping[str, type]) -> tuple[list[Line], int]:
    """The finished lines of a file that was cut off somewhere, and how many bytes they are."""
    lines: list[Line] = []
    size = 0
    for text in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        line = None
        if text.strip():
            try:
                line = parse_json(text, "", error=DataError)
            except DataError:
                break
            if not _has(line, added):
                break
        lines.append(line)
        size += len(text)
    return lines, size
