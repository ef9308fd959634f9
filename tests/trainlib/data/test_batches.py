"""Order, host shards, worker processes, bad records and the position of `trainlib.data.batches`."""

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

from trainlib.data import batches as data
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
    bad = data.BadRecords(1000, max_fraction, "record {}".format)
    return data.Batches(
        make, pieces=pieces, start=start, stop=stop, workers=workers, prefetch=2, bad=bad
    )


def test_an_epoch_holds_each_record_once_and_epochs_differ():
    for records in (1, 2, 7, 1000):
        orders = [data.record_order(3, epoch, records) for epoch in range(3)]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), np.arange(records))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(data.record_order(4, 0, 1000), orders[0])


def test_the_order_never_changes_between_versions():
    # A resumed run depends on these numbers. They sort the first 8 words of Philox4x64-10 keyed by
    # SeedSequence((0, seed, epoch)), both frozen by NumPy's compatibility policy.
    assert data.record_order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert data.record_order(7, 2, 8).tolist() == [2, 3, 5, 4, 6, 0, 7, 1]


def test_positions_cross_epochs_inside_a_batch():
    records, batch = 10, 4
    seen = [data.records_at(np.arange(b * batch, (b + 1) * batch), 1, records) for b in range(5)]
    epochs = np.concatenate([e for e, _ in seen])
    found = np.concatenate([r for _, r in seen])
    np.testing.assert_array_equal(epochs, np.repeat([0, 1], 10))
    for epoch in (0, 1):
        np.testing.assert_array_equal(np.sort(found[epochs == epoch]), np.arange(records))
    assert not np.array_equal(found[epochs == 0], found[epochs == 1])


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_share_a_batch_without_gap_or_overlap(hosts):
    rows = [np.arange(*data.host_rows(16, host, hosts)) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(16))


def test_a_batch_that_does_not_divide_over_hosts_is_named():
    with pytest.raises(ConfigError, match=r"batch_size=10 .* 4 hosts.*multiple of 4"):
        data.host_rows(10, 0, 4)
    with pytest.raises(ConfigError, match=r"outside 0\.\.3"):
        data.host_rows(8, 4, 4)


def test_each_record_and_epoch_has_its_own_random_stream():
    draws = {data.generator(s, e, r).random() for s in (0, 1) for e in (0, 1) for r in (0, 1)}
    assert len(draws) == 8
    assert data.generator(1, 2, 3).random() == data.generator(1, 2, 3).random()


def test_a_changed_data_set_is_noticed():
    saved = data.data_position(8, 64, 0, 1000, "abc")
    assert data.position_changes(saved, data.data_position(9, 64, 0, 1000, "abc")) == []
    changes = data.position_changes(saved, data.data_position(8, 32, 0, 999, "abd"))
    assert len(changes) == 3
    assert "batch size was 64" in changes[0]
    assert "records was 1000" in changes[1]


def count_until_stop(bad, rows, records):
    """Feeds records one by one; returns how many were read when the run stopped, or None."""
    for n in range(rows):
        try:
            bad.count(1, [(n % records, "torn")] if n % records % 10 == 0 else [])
        except DataError:
            return n + 1
    return None


def test_a_few_bad_records_pass_and_many_stop_the_run():
    # One in ten is bad, one in a thousand allowed: the sixth (record 50) is one more than the 5 let
    # through.
    assert count_until_stop(data.BadRecords(1000, 1e-3, str), 1000, 1000) == 51
    # 20 records: one in twenty, so one, is let through.
    assert count_until_stop(data.BadRecords(20, 1e-3, str), 20, 20) == 11
    assert count_until_stop(data.BadRecords(19, 1e-3, str), 19, 19) == 1
    assert count_until_stop(data.BadRecords(1000, 0.0, str), 1000, 1000) == 1
    assert count_until_stop(data.BadRecords(1000, 0.12, str), 1000, 1000) is None


def test_a_record_met_again_in_later_epochs_counts_once():
    bad = data.BadRecords(100, 0.12, str)
    assert count_until_stop(bad, 500, 100) is None
    assert len(bad.found) == 10


def test_files_that_go_bad_in_a_late_epoch_are_held_against_one_epoch():
    bad = data.BadRecords(1000, 0.01, str)
    bad.count(50_000, [(n, "gone") for n in range(10)])
    with pytest.raises(DataError, match="11 of the 1000 records"):
        bad.count(10, [(10, "gone")])


def test_the_message_names_the_bad_records():
    bad = data.BadRecords(100, 0.01, "shard-{}".format)
    with pytest.raises(DataError, match=r"30 of the 60 .*shard-0: torn; shard-1.*and 10 more"):
        bad.count(60, [(n, "torn") for n in range(30)])


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


def test_a_killed_worker_is_an_error_not_a_hang_and_ctrl_c_does_not_reach_workers():
    with batches(workers=2, stop=None) as reader:
        next(reader)
        first, second = (process.pid for process in workers_of(reader))
        os.kill(first, signal.SIGINT)
        os.kill(second, signal.SIGTERM)
        for _ in range(20):
            next(reader)
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(PeerLost, match=r"worker processes was killed.*shm"):
            collections.deque(reader, maxlen=0)
        assert time.monotonic() - began < 240
    assert workers_of(reader) == []


PROGRAM = """
import os, signal, sys, time
import numpy as np
from trainlib.data import batches as data

def piece(batch, piece):
    return {"image": np.zeros((8, 50000), np.float32), "index": np.arange(8), "bad": []}

def main():
    bad = data.BadRecords(8, 0.0, str)
    reader = data.Batches(piece, pieces=2, start=0, stop=None, workers=2, prefetch=2, bad=bad)
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
        timeout=300,
    )


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_program_that_just_ends_leaves_no_worker_and_no_traceback(tmp_path):
    done = run_program(tmp_path, "end")
    assert (done.returncode, done.stderr) == (3, "")
    assert not any(alive(pid) for pid in done.stdout.split())


def test_workers_of_a_killed_program_end_too(tmp_path):
    done = run_program(tmp_path, "die")
    workers = done.stdout.split()
    assert done.returncode == -signal.SIGKILL
    assert len(workers) == 2
    deadline = time.monotonic() + 240
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def test_the_number_of_workers_suits_the_source():
    assert data.worker_count(-1, in_memory=True) == 0
    assert 1 <= data.worker_count(-1, in_memory=False) <= 64
    assert data.worker_count(5, in_memory=True) == 5
    with pytest.raises(ConfigError, match=r"data\.workers=-2"):
        data.worker_count(-2, in_memory=False)
