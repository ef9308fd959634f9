"""One run in a workdir: refusal by name, take-over from the dead."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainlib.checkpoint.workdir_lock import NAME, WorkdirLock
from trainlib.errors import ConfigError, StorageError

ROOT = Path(__file__).resolve().parents[3]
HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from trainlib.checkpoint.workdir_lock import WorkdirLock\n"
    "lock = WorkdirLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_process_and_host(holder, tmp_path):
    words = f"in use by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(ConfigError, match=words):
        WorkdirLock(tmp_path)
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(holder, tmp_path, capfd, number):
    holder.send_signal(number)
    holder.wait()
    lock = WorkdirLock(tmp_path)
    assert f"took over the lock of process {holder.pid}" in capfd.readouterr().err
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert (tmp_path / NAME).read_text() == ""


def test_reading_the_lock_file_does_not_give_it_back(tmp_path):
    lock = WorkdirLock(tmp_path)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert f"in use by process {os.getpid()}" in done.stderr
    lock.release()


def test_what_a_failed_run_of_this_process_left_is_no_hindrance(tmp_path):
    left = WorkdirLock(tmp_path)
    again = WorkdirLock(tmp_path)
    left.release()
    with pytest.raises(ConfigError):
        held_elsewhere(tmp_path)
    again.release()
    held_elsewhere(tmp_path)


def held_elsewhere(workdir) -> None:
    """Takes and returns the lock in another process."""
    code = HOLD.replace("time.sleep(600)", "lock.release()")
    command = [sys.executable, "-c", code, str(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise ConfigError(done.stderr)


def test_a_stopped_process_still_holds_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    with pytest.raises(ConfigError, match=f"process {holder.pid}"):
        WorkdirLock(tmp_path)


@contextlib.contextmanager
def orphan(workdir, fork, before=""):
    """A process that took the lock, forked and died; its child lives on. Gives its process id."""
    code = (
        f"import ctypes, os, sys, time; from pathlib import Path\n{before}\n"
        "from trainlib.checkpoint.workdir_lock import WorkdirLock\n"
        f"lock = WorkdirLock(Path(sys.argv[1]))\nchild = {fork}\n"
        "if child == 0: time.sleep(600); os._exit(0)\n"
        "print(child, flush=True); os._exit(9)"
    )
    command = [sys.executable, "-c", code, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.wait()
        try:
            yield parent.pid
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path, seconds, monkeypatch):
    """Also when the system first runs the child a while after its parent died."""
    # However busy this machine is.
    monkeypatch.setattr("trainlib.checkpoint.workdir_lock.HANDED_BACK_SECONDS", 1200.0)
    # Hooks run in the order in which they were made: this one before that of the lock.
    late = f"os.register_at_fork(after_in_child=lambda: time.sleep({seconds}))"
    with orphan(tmp_path, "os.fork()", late):
        WorkdirLock(tmp_path).release()


def test_a_child_that_never_gives_the_lock_back_is_not_waited_for_long(tmp_path, monkeypatch):
    """Native code forks without the hooks of Python."""
    monkeypatch.setattr("trainlib.checkpoint.workdir_lock.HANDED_BACK_SECONDS", 0.3)
    with (
        orphan(tmp_path, "ctypes.CDLL(None).fork()") as parent,
        pytest.raises(ConfigError, match=f"process {parent}"),
    ):
        WorkdirLock(tmp_path)


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"pid": 1}', "\xff" * 9999])
def test_a_damaged_lock_file_locks_nobody_out(tmp_path, content):
    (tmp_path / NAME).write_text(content, encoding="latin-1")
    WorkdirLock(tmp_path).release()


def test_a_workdir_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        WorkdirLock(Path("/proc"))


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "pipe"])
def test_a_lock_that_is_no_file_of_its_own_is_not_written_through(tmp_path, kind):
    letter, lock = tmp_path / "letter.txt", tmp_path / NAME
    letter.write_text("dear")
    make = {
        "link": lambda: lock.symlink_to(letter),
        "hard link": lambda: lock.hardlink_to(letter),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }
    make[kind]()
    with pytest.raises(ConfigError, match=r"run\.lock is a"):
        WorkdirLock(tmp_path)
    assert letter.read_text() == "dear"
