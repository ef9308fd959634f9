"""What a kill at any moment leaves on the disk, a disk that refuses, a writer that is slow."""

import contextlib
import dataclasses
import resource
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.trainlib.checkpoint.states import META, as_nobody, equal, make
from trainlib import files
from trainlib.checkpoint import manifest
from trainlib.checkpoint import write as saving
from trainlib.checkpoint.checkpoints import Checkpoints, DamagedStep
from trainlib.checkpoint.workdir_lock import WorkdirLock
from trainlib.errors import CheckpointError, StorageError
from trainlib.sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def states():
    """Number -> a state of its own, and the state as shapes."""
    real, like = make(make_mesh(1, 4, 2))
    return {n: dataclasses.replace(real, step=real.step + n) for n in range(1, 6)}, like


class Snapshots:
    """Copies a directory whenever Python touches a file below it: what a kill then would leave."""

    def __init__(self) -> None:
        self.source: Path | None = None
        self.target = Path()
        self.seen: dict[tuple, Path] = {}
        self._guard = threading.Lock()
        self._copying = threading.local()
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def of(self, source: Path, target: Path) -> Iterator[dict[tuple, Path]]:
        self.source, self.target, self.seen = source, target, {}
        try:
            yield self.seen
        finally:
            self.source = None

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.source is None or getattr(self._copying, "now", False):
            return
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        if not isinstance(arguments[0], str | Path) or str(self.source) not in str(arguments[0]):
            return
        self._copying.now = True
        try:
            self._take()
        finally:
            self._copying.now = False

    def _take(self) -> None:
        with self._guard:
            here = tuple(
                (path.relative_to(self.source).as_posix(), path.stat().st_size)
                for path in sorted(self.source.rglob("*"))
                if path.exists()
            )
            if here in self.seen:
                return
            place = self.target / str(len(self.seen))
            # The writer goes on while files are copied: some are gone when their turn comes.
            with contextlib.suppress(shutil.Error, OSError):
                shutil.copytree(self.source, place)
            self.seen[here] = place


@pytest.fixture(scope="module")
def snapshots():
    return Snapshots()


def newest_whole(folder: Path, like):
    """What a restarted run goes on from."""
    opened = Checkpoints(folder)
    for number in opened.numbers():
        with contextlib.suppress(DamagedStep, CheckpointError):
            return number, opened.restore(number, like)
    return None, None


@pytest.mark.thorough
def test_a_kill_at_any_moment_of_a_save_leaves_a_good_step(states, snapshots, tmp_path):
    """keep=1, so that retention removes the only older step as soon as it may."""
    real, like = states
    folder = tmp_path / "checkpoints"
    opened = Checkpoints(folder, keep=1)
    opened.save(1, real[1], META)
    opened.wait()
    with snapshots.of(folder, tmp_path / "kills") as seen:
        opened.save(2, real[2], META)
        opened.wait()
        opened.save(3, real[3], META)
        opened.wait()
    opened.close()
    found = [newest_whole(place, like) for place in seen.values()]
    assert None not in {number for number, _ in found}
    assert {number for number, _ in found} == {1, 2, 3}
    assert all(equal(state, real[number]) for number, state in found)
    assert len(found) > 20
    # And the run that comes after such a kill saves the same number again.
    for place in list(seen.values())[:: max(1, len(seen) // 4)]:
        again = Checkpoints(place, keep=1)
        again.save(4, real[4], META)
        again.close()
        assert again.steps() == [4]
        assert not any(saving.LEFT_BEHIND.fullmatch(p.name) for p in place.iterdir())


def test_a_step_that_was_cut_off_is_written_anew(states, tmp_path):
    real, like = states
    opened = Checkpoints(tmp_path)
    opened.save(2, real[1], META)
    opened.close()
    (tmp_path / "2" / manifest.NAME).unlink()
    assert opened.steps() == []
    opened = Checkpoints(tmp_path)
    opened.save(2, real[2], META)
    opened.close()
    assert equal(Checkpoints(tmp_path).restore(2, like), real[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.damaged"]


def test_only_what_a_save_left_behind_is_swept(states, tmp_path):
    real, _ = states
    ours = ["4.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17", "3.removing"]
    others = ["notes.removing", "x.orbax-checkpoint-tmp", "4.damaged", "40"]
    for name in [*ours, *others]:
        (tmp_path / name / "d").mkdir(parents=True)
    opened = Checkpoints(tmp_path)
    opened.save(1, real[1], META)
    opened.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "1"])


def save_and_wait(opened: Checkpoints, number: int, state) -> None:
    opened.save(number, state, META)
    opened.wait()


@contextlib.contextmanager
def full_disk(limit: int = 20_000) -> Iterator[None]:
    """No file may grow past `limit` bytes, as on a disk that has no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def large():
    """A state of 1 MB that does not compress."""
    real, _ = make(make_mesh(), width=64)
    place = real.params["norm.scale"].sharding
    noise = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    return dataclasses.replace(real, params={"noise": jax.device_put(noise, place)})


def test_a_full_disk_is_a_warning_up_to_the_limit_and_then_74(large, tmp_path, capsys):
    opened = Checkpoints(tmp_path, keep=1, may_fail=2)
    opened.save(1, large, META)
    opened.wait()
    with full_disk():
        for number in (2, 3):
            opened.save(number, large, META)
            opened.wait()
        warned = " ".join(capsys.readouterr().err.split())
        assert "warning: Step 2 was not saved" in warned
        assert "stops with exit code 74 when the next save fails" in warned
        with pytest.raises(StorageError, match="Steps saved before are intact"):
            save_and_wait(opened, 4, large)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    opened.save(5, large, META)  # there is room again
    opened.close()
    assert opened.steps() == [5]


def test_a_run_that_ends_without_its_last_save_says_so(large, tmp_path):
    opened = Checkpoints(tmp_path, may_fail=3, lock=WorkdirLock(tmp_path))
    opened.save(1, large, META)
    opened.wait()
    with full_disk():
        opened.save(2, large, META)
        with pytest.raises(StorageError):
            opened.close()
    assert Checkpoints(tmp_path).steps() == [1]
    assert (tmp_path / "run.lock").read_text() == ""  # the next run may come


def refuse(*_):
    raise OSError(5, "Input/output error")


def test_a_writer_that_fails_late_is_reported_at_the_next_step(states, tmp_path, monkeypatch):
    real, like = states
    opened = Checkpoints(tmp_path, keep=1)
    opened.save(1, real[1], META)
    opened.wait()

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write_atomically", refuse)
        opened.save(2, real[2], META)
        assert opened.latest() == 1
        with pytest.raises(StorageError, match="Input/output error"):
            wait_for(opened.poll)
    assert opened.steps() == [1]
    assert equal(opened.restore(1, like), real[1])


def test_an_old_step_that_cannot_be_removed_is_no_failed_save(states, tmp_path, capsys):
    real, _ = states
    opened = Checkpoints(tmp_path, keep=1)
    save_and_wait(opened, 1, real[1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        save_and_wait(opened, 2, real[2])
    assert opened.steps() == [2]
    warned = " ".join(capsys.readouterr().err.split())
    assert "Step 2 is saved, but older steps could not be removed" in warned
    assert "Input/output error" in warned
    save_and_wait(opened, 3, real[3])
    opened.close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_everything_is_on_the_disk_before_a_step_counts(states, tmp_path, monkeypatch):
    """Also the names in each directory: after a power cut, a file without one is gone."""
    real, _ = states
    opened, synced, write = Checkpoints(tmp_path / "made"), set(), files.sync

    def note(path):
        synced.add(path)
        write(path)

    monkeypatch.setattr(files, "sync", note)
    monkeypatch.setattr(manifest, "sync", note)
    save_and_wait(opened, 1, real[1])
    opened.close()
    made = {path for path in tmp_path.rglob("*") if path.name != manifest.NAME}
    assert synced == made | {tmp_path}


def wait_for(poll) -> None:
    for _ in range(600):
        poll()
        time.sleep(0.05)


def test_a_slow_writer_holds_up_the_next_save_and_nothing_else(states, tmp_path, monkeypatch):
    real, _ = states
    opened = Checkpoints(tmp_path, keep=1)
    opened.save(1, real[1], META)
    opened.wait()
    go_on, write = threading.Event(), manifest.write

    def slow(*arguments):
        go_on.wait(1200)
        write(*arguments)

    monkeypatch.setattr(manifest, "write", slow)
    opened.save(2, real[2], META)
    for _ in range(3):
        opened.poll()
        assert opened.steps() == [1]
    threading.Timer(0.3, go_on.set).start()
    opened.save(3, real[3], META)
    assert 2 in opened.steps()
    opened.close()
    assert opened.steps() == [3]


def test_a_directory_that_may_not_be_written(states, tmp_path):
    real, like = states
    opened = Checkpoints(tmp_path)
    opened.save(1, real[1], META)
    opened.close()
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path):
        opened = Checkpoints(tmp_path)
        with pytest.raises(StorageError, match="Permission denied"):
            save_and_wait(opened, 2, real[2])
        assert equal(Checkpoints(tmp_path).restore(1, like), real[1])
    tmp_path.chmod(0o755)


def test_readers_see_finished_steps_alone_while_a_run_writes(states, tmp_path):
    real, like = states
    opened = Checkpoints(tmp_path, keep=2)
    opened.save(1, real[1], META)
    opened.wait()
    seen, done = [], threading.Event()

    def write() -> None:
        for number in range(2, 500):
            opened.save(number, real[2 + number % 4], META)
            opened.wait()
            if number >= 6 and seen:
                break
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        number = Checkpoints(tmp_path).pick(None)
        try:
            found = Checkpoints(tmp_path).restore(number, like)
        except CheckpointError:  # retention took it meanwhile; a newer one is there
            assert Checkpoints(tmp_path).pick(None) > number
            continue
        assert equal(found, real[2 + number % 4] if number > 1 else real[1])
        seen.append(number)
    writer.join()
    opened.close()
    assert seen
    assert seen == sorted(seen)
