"""Which files of a folder a text source reads, and what it passes over, by suffix and reason.

Folders at any depth are looked through as `trainlib.data.folders` does, for suffixes in any case. A
file that is named itself is read whatever its suffix. What a file
holds is decided by its first bytes: plain text, gzip, or another format, which is not read.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from trainlib.data import folders
from trainlib.errors import DataError, shown
from trainlib.untrusted_files import open_regular, what_is

# Suffixes by kind of source; each also with .gz.
SUFFIXES = {"text": (".txt", ".md", ".text"), "jsonl": (".jsonl", ".ndjson", ".json")}

BOM = b"\xef\xbb\xbf"

_FORMATS = (
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file in a gzip file"),
    (b"\xff\xfe\x00\x00", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)

GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)  # what damage in one raises

_START = 512  # bytes that tell the format

# Of the gzip files of a source, so much is unpacked to tell how much text there is.
_PROBE_BYTES = 33 << 20


@dataclasses.dataclass(frozen=True)
class TextFile:
    """One file that is read.

    Attributes:
      name: path in the folder, with slashes; "" when the source is this file.
      size: bytes of text, estimated for a large gzip file.
      packed: it is gzip.
      array: it begins as a JSON array.
    """

    name: str
    size: int
    packed: bool = False
    array: bool = False


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a folder: files in the order of their paths, and what is passed over."""

    files: tuple[TextFile, ...]
    passed_over: tuple[str, ...]  # one line for each suffix and reason


def find(kind: str, path: Path) -> Listing:
    """The files of a source.

    Args:
      kind: "text" or "jsonl".
      path: a folder or a file.

    Raises:
      DataError: the file that is named cannot be read as text; or nothing in the folder can, and
        something is there: says what.
    """
    if not path.is_dir():
        if not os.path.lexists(path):
            return Listing((), ())
        file, why = _looked_at(path, "", kind, _Probe())
        if file is None:
            raise DataError(f"{shown(path)} {why}.")
        return Listing((file,), ())
    left = folders.LeftOut(path, lambda name: _has_suffix(name, kind), "another suffix")
    files, probe = [], _Probe()
    names = sorted(os.path.relpath(file, path) for file in folders.below([path], left))
    for name in names:
        file, why = _looked_at(path / name, name, kind, probe)
        if file is not None:
            files.append(file)
        else:
            left.add(str(path / name), why)
    lines = left.counts()
    if lines and not files:
        raise DataError(
            f"{shown(path)} has nothing that {kind}: reads, only {'; '.join(lines)}. {wanted(kind)}"
        )
    return Listing(tuple(files), lines)


def wanted(kind: str) -> str:
    """What a source of this kind reads, as a sentence."""
    listed = ", ".join(SUFFIXES[kind])
    what = "UTF-8 text" if kind == "text" else "one JSON object a line, or a JSON array of objects"
    return (
        f"Give a folder of {listed} files ({what}; .gz as well), or the path of one such file: "
        f"{kind}:PATH."
    )


def _has_suffix(name: str, kind: str) -> bool:
    return folders.suffix_of(name).removesuffix(".gz") in SUFFIXES[kind]


def _looked_at(path: Path, name: str, kind: str, probe: _Probe) -> tuple[TextFile | None, str]:
    """(file, "") or (None, why it is not read)."""
    if not path.is_file():
        return None, f"is {what_is(path)}" if not name else what_is(path)
    with open_regular(path, follow=True, error=DataError) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_START)
        packed = start.startswith(b"\x1f\x8b")
        if packed:
            size, start = probe.unpack(file, size, path)
    if what := other_format(start):
        advice = "convert it to UTF-8" if "UTF" in what else "unpack or convert it"
        return None, f"{'is ' if not name else ''}{what}: {advice}"
    return TextFile(name, size, packed, kind == "jsonl" and _is_array(start)), ""


def other_format(start: bytes) -> str:
    """What begins like this and is no text; "" when nothing that is known does."""
    if start[257:262] == b"ustar":
        return "a tar archive"
    return next((what for magic, what in _FORMATS if start.startswith(magic)), "")


class _Probe:
    """Tells how much text gzip files hold: counted, and beyond the limit estimated."""

    def __init__(self):
        self.left, self.ratio = _PROBE_BYTES, 4.0

    def unpack(self, file: BinaryIO, size: int, path: Path) -> tuple[int, bytes]:
        """(bytes of text, the first of them) of a file of `size` bytes.

        Raises:
          DataError: it is damaged.
        """
        file.seek(0)
        total, start, ended = 0, b"", False
        try:
            with gzip.open(file) as text:
                start = text.read(_START)
                total, ended = len(start), not start
                while total < self.left and not ended:
                    part = text.read(1 << 20)
                    total, ended = total + len(part), not part
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, error) from None
        self.left = max(self.left - total, 0)
        if ended:
            return total, start
        if total > 1 << 20:
            self.ratio = total / max(file.tell(), 1)
        return max(total, int(size * self.ratio)), start


def _is_array(start: bytes) -> bool:
    return start.removeprefix(BOM).lstrip().startswith(b"[")


def damaged_gzip(path: Path, error: Exception) -> DataError:
    """The error for a gzip file that cannot be unpacked."""
    return DataError(f"{shown(path)} is no whole gzip file ({error}). Copy it again, or remove it.")
