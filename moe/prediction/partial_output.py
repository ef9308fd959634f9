"""The finished lines of a prediction, which a later call of the same command resumes from.

They lie in OUTPUT.partial; OUTPUT.partial.json says what they were made from. The file gets its
name when all lines are answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from moe.prediction.lines import Counts, Line
from trainlib import files
from trainlib.errors import DataError, StorageError, shown
from trainlib.untrusted_files import open_regular, read_json


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
        with open_regular(input, follow=True, error=DataError) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        made_by = hashlib.sha256(made_by.encode()).hexdigest()
        self.origin = {"input": content, "made_by": made_by}

    def resume(self) -> tuple[int, Counts, int]:
        """(lines, counts) that an earlier call left, and how many lines it left of another input,
        other weights or another configuration, which are removed, as is what is damaged.
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
            files.write_atomically(self.note, json.dumps(self.origin))
        except OSError as error:
            raise self._refused(error) from None
        counts = Counts()
        counts.add(lines, self.several)
        return len(lines), counts, 0 if known else before.count(b"\n")

    def write(self, lines: list[Line], enabled: bool) -> None:
        """Appends the lines of a batch."""
        if not enabled:
            return
        text = "".join(
            (json.dumps(line, ensure_ascii=False) if line else "") + "\n" for line in lines
        )
        try:
            with os.fdopen(files.open_to_write(self.path, append=True), "wb") as file:
                file.write(text.encode())
        except OSError as error:
            raise self._refused(error) from None

    def finish(self) -> None:
        """Gives the file its name."""
        self.path.replace(self.output)
        self.note.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"--output={shown(self.output)} cannot be written ({error.strerror}). Free space or "
            "name another file; finished lines stay."
        )


def _whole(content: bytes, added: Mapping[str, type]) -> tuple[list[Line], int]:
    """The finished lines of a file that was cut off somewhere, and how many bytes they are."""
    lines: list[Line] = []
    size = 0
    for text in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        line = None
        if text.strip():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or not all(
                isinstance(line.get(name), kind) for name, kind in added.items()
            ):
                break
        lines.append(line)
        size += len(text)
    return lines, size
