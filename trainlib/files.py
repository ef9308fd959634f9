"""Writes files in directories that may have been laid out by others: nothing goes through a link.

A workdir or an export directory can be a copy of somebody's, and a link in it can name any file of
this machine. So a name that is written is either made new, replaced as a whole, or opened only when
it is a regular file with no second name; otherwise the write is refused and the link is named.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from pathlib import Path
from typing import Any

from trainlib.errors import ConfigError, shown
from trainlib.untrusted_files import what_is


def check_target(path: Path) -> None:
    """Refuses to write where something other than a regular file of one name lies.

    Raises:
      ConfigError: a link, folder, pipe, device, or a file that has a second name (a hard link).
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(
            f"{shown(path)} is a folder, and a file is to be written there. Nothing was written. "
            "Name another place, such as a file in that folder, or move the folder away."
        )
    if not stat.S_ISREG(status.st_mode):
        _refuse(path, what_is(path))
    if status.st_nlink > 1:
        _refuse(path, f"a file with {status.st_nlink} names (hard links)")


def _refuse(path: Path, what: str) -> None:
    raise ConfigError(
        f"{shown(path)} is {what}, and writing to it would change what lies elsewhere. Nothing was "
        "written. Remove it, or choose another directory."
    )


def open_to_write(path: Path, *, append: bool = False) -> int:
    """Opens a regular file in place (made when absent) and returns its descriptor, for reading and
    writing; its content stays.

    Args:
      path: never followed when it is a link.
      append: whether every write goes to the end.

    Raises:
      ConfigError: see `check_target`.
      OSError: the disk refuses.
    """
    check_target(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | (os.O_APPEND if append else 0), 0o644)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # changed since the look
        os.close(descriptor)
        _refuse(path, "not a regular file of one name")
    return descriptor


def make_directory(path: Path) -> None:
    """Makes a directory inside one that is written, unless it is there.

    Raises:
      ConfigError: a link, or anything but a directory, has its name.
      OSError: the disk refuses.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    if not stat.S_ISDIR(path.lstat().st_mode):
        _refuse(path, what_is(path))


def write_atomically(path: Path, content: str | bytes, writer: str = "") -> None:
    """Replaces a file as a whole: a reader, or a run after a crash, sees the old or the new one.

    Args:
      path: the file.
      content: all of it.
      writer: names this process where several write the same file at once, so that none takes
        away the unfinished file of another.

    Raises:
      ConfigError: see `check_target`.
      OSError: the disk refuses; the old file is as it was.
    """
    check_target(path)
    temporary = path.with_name(f"{path.name}.{writer}.tmp" if writer else f"{path.name}.tmp")
    try:
        with os.fdopen(create(temporary), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def save_picture(figure: Any, path: Path, dots: int) -> None:
    """Writes a figure of matplotlib, which would follow a link, as a whole.

    Args:
      figure: its Figure.
      path: its suffix decides the format.
      dots: per inch.

    Raises:
      ConfigError: see `check_target`.
      OSError: the disk refuses.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix(".").lower(), dpi=dots)
    write_atomically(path, drawn.getvalue())


def create(path: Path) -> int:
    """Makes a new file and returns its descriptor; what a run that was killed left under that name
    goes first, a link itself and never what it names.

    Raises:
      ConfigError: a folder has that name.
      OSError: the disk refuses.
    """
    if path.is_dir() and not path.is_symlink():
        _refuse(path, what_is(path))
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a directory, are on the disk.

    Raises:
      OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
