"""One rule for looking through folders of files: of images, for training and prediction, and of
text.

Links are followed. Names that begin with a dot and `__MACOSX`, which archives of macOS leave, are
passed over. Pipes, devices and links to nothing are never opened. Whatever is left out is counted
by suffix and reason, with one example of each, so that a data set that is smaller than a person
thinks says so when a run starts.

Names are kept as the file system has them: bytes that are no UTF-8 are half surrogates, as
everywhere in Python, and `shown` prints them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainlib.errors import DataError, shown
from trainlib.untrusted_files import what_is

HIDDEN = "hidden"
_OF_ARCHIVES = "__MACOSX"
_FOLDER = "folder"
_MOST_LINES = 12


def suffix_of(name: str) -> str:
    """`.txt`, or `.txt.gz`; in lower case, "" where there is none."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


class LeftOut:
    """What was passed over below a folder: how many files of each suffix for each reason, and one
    of them.

    Args:
      root: examples are named from here.
      wanted: whether a regular file of this name is looked for.
      unwanted: why the others are left out.
    """

    def __init__(self, root: str | Path, wanted: Callable[[str], bool], unwanted: str):
        self.root, self.wanted, self.unwanted = os.fspath(root), wanted, unwanted
        self._groups: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, path: str, reason: str, kind: str | None = None) -> None:
        """Counts one; `kind` stands for the suffix where it is no file."""
        suffix = kind or suffix_of(path) or "without a suffix"
        count, first = self._groups.get((suffix, reason), (0, path))
        self._groups[suffix, reason] = count + 1, first

    def counts(self) -> tuple[str, ...]:
        """One line for each suffix and reason, those of most files first."""
        groups = sorted(self._groups.items(), key=lambda item: (-item[1][0], item[0]))
        lines = [
            f"{count:,} {_counted(suffix, count)}, {reason} (such as {self._named(first)})"
            for (suffix, reason), (count, first) in groups[:_MOST_LINES]
        ]
        if rest := groups[_MOST_LINES:]:
            count = sum(number for _, (number, _) in rest)
            example = self._named(rest[0][1][1])
            lines.append(f"{count:,} more of {len(rest):,} other kinds (such as {example})")
        return tuple(lines)

    def lines(self) -> tuple[str, ...]:
        """The same, each with where that was."""
        return tuple(f"left out of {shown(self.root)}: {line}" for line in self.counts())

    def _named(self, path: str) -> str:
        return shown(os.path.relpath(path, self.root))


def _counted(suffix: str, count: int) -> str:
    if suffix.startswith(".") or suffix.startswith("without"):
        return shown(suffix, 40)
    return suffix if count == 1 else f"{suffix}s"


class Listing(NamedTuple):
    """One folder: the names of the folders, of the files that are wanted and of what else is in it
    and not hidden, each sorted."""

    folders: list[str]
    files: list[str]
    others: list[str]


def listing(folder: str | Path, left: LeftOut, *, strict: bool = False) -> Listing:
    """Lists one folder, and counts what is neither a folder nor wanted.

    Raises:
      DataError: it cannot be opened; or, where `strict`, a link in it leads to itself.
    """
    entries_of = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _sort_out(entry, entries_of, left, strict)
    except OSError as error:
        raise _unopened(error.filename or folder, error) from error
    return entries_of


def _sort_out(entry: os.DirEntry, entries_of: Listing, left: LeftOut, strict: bool) -> None:
    is_folder = is_file = False
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link that leads to itself
        if strict and not entry.name.startswith("."):
            raise
    if entry.name.startswith("."):
        left.add(entry.path, HIDDEN, _FOLDER if is_folder else None)
    elif is_folder and entry.name == _OF_ARCHIVES:
        left.add(entry.path, "left by an archive of macOS", _FOLDER)
    elif is_folder:
        entries_of.folders.append(entry.name)
    elif is_file and left.wanted(entry.name):
        entries_of.files.append(entry.name)
    else:
        entries_of.others.append(entry.name)
        reason = left.unwanted if is_file else f"not a regular file but {what_is(entry.path)}"
        left.add(entry.path, reason)


def below(folders: Iterable[str | Path], left: LeftOut, known: str | Path = "") -> Iterator[str]:
    """Yields the paths of all wanted files in some folders and below them: those of a folder, by
    name, and then those of its folders, by name.

    Each folder is read once, however many links lead to it, so links in a circle end. A folder
    that cannot be opened is counted as left out, with the reason.

    Args:
      folders: where to look.
      left: what counts.
      known: a folder that is read already.
    """
    seen = {_identity(known)} if known else set()
    waiting = [os.fspath(folder) for folder in folders][::-1]
    while waiting:
        folder = waiting.pop()
        try:
            identity = _identity(folder)
            entries_of = None if identity in seen else listing(folder, left)
        except (OSError, DataError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            left.add(folder, f"cannot be opened ({getattr(cause, 'strerror', cause)})", _FOLDER)
            continue
        if not entries_of:
            left.add(folder, "a link to a folder that is read already", _FOLDER)
            continue
        seen.add(identity)
        yield from (os.path.join(folder, name) for name in entries_of.files)
        waiting += [os.path.join(folder, name) for name in reversed(entries_of.folders)]


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _unopened(folder: str | Path, error: OSError) -> DataError:
    return DataError(f"{shown(folder)} cannot be opened: {error.strerror or error}.")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names of others, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name, 80) for name in names[:most]) + more


def once(*groups: Iterable[str]) -> tuple[str, ...]:
    """The lines of several splits, each once: they often are parts of one folder."""
    return tuple(dict.fromkeys(line for group in groups for line in group))
