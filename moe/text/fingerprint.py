"""A digest of every byte of a source's files, by which an edit is noticed.

Reading is the price: 1.8 GB of SHA-256 a second on one core here, twenty times as fast as
tokenising. Sources up to `_ALWAYS_BYTES` are read at every start. Of larger ones, each file's
digest is noted beside the caches together with what the system says of the file: size, inode, time
of the content and time of the last change to either. The last one (ctime) no program can set, so it
moves with an edit that keeps size and date too, as `rsync -t` and `touch -r` do; a file that looks
exactly as noted is not read again. Someone who sets the machine's clock back, or a file system
whose times are coarse beyond `_SETTLED_S`, could hide an edit of a large source; `python -m
launch.prepare --verify` reads everything whatever is noted.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from trainlib.errors import DataError, UserError, shown
from trainlib.files import make_directory, write_atomically
from trainlib.seal import sealed, unsealed
from trainlib.untrusted_files import open_regular, read_small

# Up to so many bytes all are read at every start: about a seventh of a second.
_ALWAYS_BYTES = 256 << 20

# A file that changed so shortly before it was read could change again with the same times.
_SETTLED_S = 3.0

Note = list  # [size, inode, mtime_ns, ctime_ns, sha256]


class _Notes:
    """Digests of files that did not change since they were read, in one sealed file."""

    def __init__(self, path: Path | None):
        self.path, self.known, self.changed = path, {}, False
        if path is not None and path.exists():
            try:
                noted = unsealed(read_small(path, error=DataError), shown(path), DataError)
            except UserError:
                return  # damaged: everything is read again
            self.known = {k: v for k, v in noted.items() if isinstance(v, list) and len(v) == 5}

    def digest(self, path: Path) -> str:
        started = time.time()
        with open_regular(path, follow=True, error=DataError) as file:
            before = _looks(file.fileno())
            noted = self.known.get(key := os.fsencode(path.resolve()).hex())
            if noted and noted[:4] == before:
                return str(noted[4])
            content = hashlib.file_digest(file, "sha256").hexdigest()
            if _looks(file.fileno()) == before and max(before[2:]) < (started - _SETTLED_S) * 1e9:
                self.known[key], self.changed = [*before, content], True
        return content

    def save(self, process: str) -> None:
        if self.path is None or not self.changed:
            return
        try:  # where it cannot be written, files are read again, no more
            self.path.parent.mkdir(parents=True, exist_ok=True)
            make_directory(self.path.parent)
            write_atomically(self.path, sealed(self.known), process)
        except (OSError, UserError):
            return


def _looks(descriptor: int) -> list[int]:
    status = os.fstat(descriptor)
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def files_digest(
    source: str, folder: Path, names: Sequence[str], notes: Path | None = None
) -> str | None:
    """Digest of the names and of every byte of files, None where there are none. A copy elsewhere
    has the same, whatever its times.

    Args:
      source: what they are, for messages.
      folder: where they lie.
      names: path in the folder of each.
      notes: file that holds the digests of large sources; None reads everything.

    Raises:
      DataError: a file cannot be read.
    """
    if not names:
        return None
    try:
        total = sum((folder / name).stat().st_size for name in names)
        known = _Notes(notes if total > _ALWAYS_BYTES else None)
        parts = [(os.fsencode(name), known.digest(folder / name)) for name in names]
    except OSError as error:
        raise unreadable(source, error) from error
    known.save(f"{os.getpid()}-{time.time_ns()}")
    return digest(parts)


def digest(*parts: object) -> str:
    """Sixteen digits that change when anything in `parts` does."""
    return hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a source that the system does not let us read."""
    return DataError(f"{name} cannot be read ({error}). Repair or remove what is named.")
