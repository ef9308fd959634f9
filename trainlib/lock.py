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

from trainlib.errors import ConfigError, StorageError

NAME = "run.lock"
HANDED_BACK_SECONDS = 10.0  # how long a busy machine may take to first run a forked worker

_held: dict[Path, WorkdirLock] = {}


def _give_back() -> None:
    for lock in _held.values():
        lock.drop()
    _held.clear()


os.register_at_fork(after_in_child=_give_back)


def _alive(pid: int) -> bool:
    """Whether a process of this host runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return True


class WorkdirLock:
    """Holds `workdir` until `release` or the end of the process. A run that failed in this process
    and left its lock behind is no hindrance.

    Args:
      workdir: an existing directory.

    Raises:
      ConfigError: another process holds it; names its process id and host.
      StorageError: the lock file cannot be written.
    """

    def __init__(self, workdir: Path):
        self._path = workdir.resolve() / NAME
        if self._path in _held:
            _held[self._path].release()
        try:
            self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
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
        self._write({"pid": os.getpid(), "host": socket.gethostname()})
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
                pid, host = self._written() or (0, "")
                here = host == socket.gethostname()
                if not here or _alive(pid) or time.monotonic() > until:
                    raise
            time.sleep(0.02)

    def _written(self) -> tuple[int, str] | None:
        """Process id and host in the lock file; None where there are none."""
        assert self._file is not None
        try:
            found = json.loads(os.pread(self._file, 4096, 0))
            return int(found["pid"]), str(found["host"])
        except (ValueError, TypeError, KeyError):
            return None

    def _holder(self) -> str:
        """Who wrote the lock file; "" when its last holder released it."""
        assert self._file is not None
        if not os.pread(self._file, 4096, 0).strip():
            return ""
        found = self._written()
        return f"process {found[0]} on {found[1]}" if found else "an unknown process"

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
