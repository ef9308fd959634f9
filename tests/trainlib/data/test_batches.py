"""Batches from worker processes: order, errors, and an end to every worker."""

import collections
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainlib.data.bad_records import BadRecords
from trainlib.data.batches import Batches, worker_count
from trainlib.errors import ConfigError, DataError, PeerLost

ROOT = Path(__file__).parents[3]
ROWS = 3


def numbers(batch, piece, fail_at=-1, error=ValueError):
    """A piece whose rows say where they belong; each fifth record is bad."""
    if batch == fail_at:
        raise error("piece says no")
    index = np.arange(ROWS, dtype=np.int64) + 100 * batch + ROWS * piece
    bad = [(int(i), "fifth") for i in index if i % 5 == 0]
    big = np.repeat(index[:, None].astype(np.float32), 1000, 1)
    return {"image": big, "index": index, "bad": bad}


def batches(make=numbers, workers=0, start=0, stop=4, pieces=2, max_fraction=1.0):
    bad = BadRecords(1000, max_fraction, "record {}".format)
    return Batches(
        make, pieces=pieces, start=start, stop=stop, workers=workers, prefetch=2, bad=bad
    )


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_workers(workers):
    with batches(workers=workers, start=3, stop=8) as reader:
        found = list(reader)
        bad = reader.bad
    expected = [np.arange(2 * ROWS) + 100 * b for b in range(3, 8)]
    np.testing.assert_array_equal([b["index"] for b in found], expected)
    np.testing.assert_array_equal([b["image"][:, 9] for b in found], expected)
    assert all(set(batch) == {"image", "index"} for batch in found)
    assert bad[:3] == [("record 300", "fifth"), ("record 305", "fifth"), ("record 400", "fifth")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_reader_with_its_type(workers):
    make = functools.partial(numbers, fail_at=2, error=DataError)
    with batches(make, workers=workers) as reader:
        assert [b["index"][0] for _, b in zip(range(2), reader, strict=False)] == [0, 100]
        with pytest.raises(DataError, match="piece says no"):
            next(reader)
        assert list(reader) == []


def workers_of(reader):
    return [p for p in multiprocessing.active_children() if "grain" in p.name]


@pytest.mark.thorough
def test_a_killed_worker_is_an_error_not_a_hang_and_ctrl_c_does_not_reach_workers():
    with batches(workers=2, stop=None) as reader:
        next(reader)
        first, second = (process.pid for process in workers_of(reader))
        os.kill(first, signal.SIGINT)
        os.kill(second, signal.SIGTERM)
        for _ in range(20):
            next(reader)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(PeerLost, match=r"worker processes was killed.*shm"):
            collections.deque(reader, maxlen=0)
    assert workers_of(reader) == []


PROGRAM = """
import os, signal, sys, time
import numpy as np
from trainlib.data.bad_records import BadRecords
from trainlib.data.batches import Batches

def piece(batch, piece):
    return {"image": np.zeros((8, 50000), np.float32), "index": np.arange(8), "bad": []}

def main():
    bad = BadRecords(8, 0.0, str)
    reader = Batches(piece, pieces=2, start=0, stop=None, workers=2, prefetch=2, bad=bad)
    for _ in range(5):
        next(reader)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3)

if __name__ == "__main__":
    main()
"""


def run_program(tmp_path, how):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(script), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def all_end(pids):
    deadline = time.monotonic() + 1200
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_program_that_just_ends_leaves_no_worker_and_no_traceback(tmp_path):
    done = run_program(tmp_path, "end")
    assert (done.returncode, done.stderr) == (3, "")
    assert all_end(done.stdout.split())


def test_workers_of_a_killed_program_end_too(tmp_path):
    done = run_program(tmp_path, "die")
    workers = done.stdout.split()
    assert done.returncode == -signal.SIGKILL
    assert len(workers) == 2
    assert all_end(workers)


def test_the_number_of_workers_suits_the_source():
    assert worker_count(-1, in_memory=True) == 0
    assert 1 <= worker_count(-1, in_memory=False) <= 64
    assert worker_count(5, in_memory=True) == 5
    with pytest.raises(ConfigError, match=r"data\.workers=-2"):
        worker_count(-2, in_memory=False)
