"""A few bad records pass, many stop the run, and the message names them."""

import pytest

from trainlib.data.bad_records import BadRecords
from trainlib.errors import DataError


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
    assert count_until_stop(BadRecords(1000, 1e-3, str), 1000, 1000) == 51
    # 20 records: one in twenty, so one, is let through.
    assert count_until_stop(BadRecords(20, 1e-3, str), 20, 20) == 11
    assert count_until_stop(BadRecords(19, 1e-3, str), 19, 19) == 1
    assert count_until_stop(BadRecords(1000, 0.0, str), 1000, 1000) == 1
    assert count_until_stop(BadRecords(1000, 0.12, str), 1000, 1000) is None


def test_a_record_met_again_in_later_epochs_counts_once():
    bad = BadRecords(100, 0.12, str)
    assert count_until_stop(bad, 500, 100) is None
    assert len(bad.listed) == 10


def test_files_that_go_bad_in_a_late_epoch_are_held_against_one_epoch():
    bad = BadRecords(1000, 0.01, str)
    bad.count(50_000, [(n, "gone") for n in range(10)])
    with pytest.raises(DataError, match="11 of the 1000 records"):
        bad.count(10, [(10, "gone")])


def test_the_message_names_the_bad_records():
    bad = BadRecords(100, 0.01, "shard-{}".format)
    with pytest.raises(DataError, match=r"30 of the 60 .*shard-0: torn; shard-1.*and 10 more"):
        bad.count(60, [(n, "torn") for n in range(30)])
