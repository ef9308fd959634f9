"""One run in a workdir at a time.

A lock of the system (flock) on `run.lock`, dropped when its process ends, however it ends. Anybody
may read the file, which names the holder; a POSIX record lock would be lost by the first reader in
the same process. Forked data workers give their copy back, so that none of them holds the workdir
after its run was killed; one that was forked just before needs a moment for that, which is waited
for. Local disks and NFS honour such locks; buckets mounted as directories may not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

from trainlib.errors import ConfigError, StorageError, UserError, shown
from trainlib.files import open_to_write
from trainlib.untrusted_files import read_small

NAME = "run.lock"
HANDED_BACK_SECONDS = 10.0  # how long a busy machine may take to first run a forked worker

_held: dict[Path, WorkdirLock] = {}


def _drop_all() -> None:
    for lock in _held.values():
        lock.drop()
    _held.clear()


os.register_at_fork(after_in_child=_drop_all)


def release_all() -> None:
    """Gives back what this process holds, before it ends at once."""
    for lock in list(_held.values()):
        lock.release()


def _alive(pid: int, began: int | None = None) -> bool:
    """Whether a process of this host runs; one that has ended and was not waited for does not, nor
    does one whose number another process has now, which began at another time.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    state, start = _stat(pid)
    return state not in ("Z", "X") and (None in (began, start) or began == start)


def _stat(pid: int) -> tuple[str, int | None]:
    """State of a process and when it began (ticks since this machine did); ("", None) where the
    system does not say.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    return "", None


_MOST = 4096  # bytes that are read of the file


class _Written(NamedTuple):
    """What a lock file says: process id, host, and when that process began."""

    pid: int
    host: str
    began: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on {shown(self.host, 100)}"

    def gone(self) -> bool | None:
        """Whether that process has ended; None where this host cannot see it."""
        here = self.host == socket.gethostname()
        return not _alive(self.pid, self.began) if here else None


def _parsed(content: bytes) -> _Written | None:
    """What stands in a lock file; None where it is not what a lock writes."""
    try:
        entry = json.loads(content)
        pid, host, began = int(entry["pid"]), str(entry["host"]), entry.get("began")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    began = began if isinstance(began, int) else None
    return _Written(pid, host, began) if 0 < pid < 2**31 else None


class Holder(NamedTuple):
    """Who a lock file names.

    Attributes:
      name: "process 12 on host-a".
      gone: whether that process has ended; None where this host cannot see it.
    """

    name: str
    gone: bool | None


def holder(workdir: Path) -> Holder | None:
    """Who holds a workdir, or held it last and did not give it back; None when nobody did."""
    try:
        owner = _parsed(read_small(workdir / NAME, _MOST))
    except UserError:
        return None
    if owner is None:
        return None
    return Holder(str(owner), owner.gone())


class WorkdirLock:
    """Holds `workdir` until `release` or the end of the process. A run that failed in this process
    and left its lock behind is no hindrance.

    Args:
      workdir: an existing directory.

    Raises:
      ConfigError: another process holds it; names its process id and host. Or its file is a link or
        anything but a file of one name.
      StorageError: the lock file cannot be written.
    """

    def __init__(self, workdir: Path):
        self._path = workdir.resolve() / NAME
        if self._path in _held:
            _held[self._path].release()
        try:
            self._file: int | None = open_to_write(self._path)
        except OSError as error:
            raise StorageError(
                f"--workdir={workdir} cannot be written: {error.strerror}. Choose a directory "
                "that you may write to."
            ) from None
        try:
            self._take(self._file)
        except BlockingIOError:
            holder = self._holder()
            os.close(self._file)
            raise ConfigError(
                f"--workdir={workdir} is in use by {holder}. Two runs in one workdir would "
                "overwrite each other. Wait for that run, stop it (it saves first), or choose "
                "another --workdir."
            ) from None
        except OSError as error:
            os.close(self._file)
            raise StorageError(
                f"{self._path} cannot be locked: {error.strerror}. Choose a --workdir on a file "
                "system with locks."
            ) from None
        gone = self._holder()
        if gone:
            print(f"took over the lock of {gone}, which is gone", file=sys.stderr, flush=True)
        pid = os.getpid()
        self._write({"pid": pid, "host": socket.gethostname(), "began": _stat(pid)[1]})
        _held[self._path] = self

    def _take(self, file: int) -> None:
        """Locks the file; waits while only what a dead process of this host left behind holds it.

        Raises:
          BlockingIOError: somebody holds it.
        """
        until = time.monotonic() + HANDED_BACK_SECONDS
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                written = self._written()
                if not (written and written.gone()) or time.monotonic() > until:
                    raise
            time.sleep(0.02)

    def _written(self) -> _Written | None:
        """What stands in the lock file."""
        assert self._file is not None
        return _parsed(os.pread(self._file, _MOST, 0))

    def _holder(self) -> str:
        """Who wrote the lock file; "" when its last holder released it."""
        assert self._file is not None
        if not os.pread(self._file, 4096, 0).strip():
            return ""
        owner = self._written()
        return str(owner) if owner else "an unknown process"

    def _write(self, content: dict[str, object] | None) -> None:
        assert self._file is not None
        text = "" if content is None else json.dumps(content) + "\n"
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written: {error.strerror}. Free space or choose another "
                "--workdir."
            ) from None

    def release(self) -> None:
        """Lets the next run in; does nothing the second time."""
        if self._file is not None:
            self._write(None)
            self.drop()
            _held.pop(self._path, None)

    def drop(self) -> None:
        """Closes the file of the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
