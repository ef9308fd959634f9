"""The order of records, the parts of hosts, and the position that a checkpoint saves."""

import numpy as np
import pytest

from trainlib.data.order import (
    MIXING,
    data_position,
    generator,
    host_slice,
    position_changes,
    record_order,
    records_at,
    repeated_records,
)
from trainlib.errors import ConfigError


def test_an_epoch_holds_each_record_once_and_epochs_differ():
    for records in (1, 2, 7, 1000):
        orders = [record_order(3, epoch, records) for epoch in range(3)]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), np.arange(records))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(record_order(4, 0, 1000), orders[0])


def test_the_order_never_changes_between_versions():
    # A resumed run depends on these numbers. They sort the first 8 words of Philox4x64-10 keyed by
    # SeedSequence((0, seed, epoch)), both frozen by NumPy's compatibility policy.
    assert record_order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert record_order(7, 2, 8).tolist() == [2, 3, 5, 4, 6, 0, 7, 1]


def test_positions_cross_epochs_inside_a_batch():
    records, batch = 10, 4
    seen = [records_at(np.arange(b * batch, (b + 1) * batch), 1, records) for b in range(5)]
    epochs = np.concatenate([e for e, _ in seen])
    found = np.concatenate([r for _, r in seen])
    np.testing.assert_array_equal(epochs, np.repeat([0, 1], 10))
    for epoch in (0, 1):
        np.testing.assert_array_equal(np.sort(found[epochs == epoch]), np.arange(records))
    assert not np.array_equal(found[epochs == 0], found[epochs == 1])


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_share_a_batch_without_gap_or_overlap(hosts):
    rows = [np.arange(*host_slice(16, host, hosts)) for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(16))


def test_a_batch_that_does_not_divide_over_hosts_is_named():
    with pytest.raises(ConfigError, match=r"batch_size=10 .* 4 hosts.*multiple of 4"):
        host_slice(10, 0, 4)
    with pytest.raises(ConfigError, match=r"outside 0\.\.3"):
        host_slice(8, 4, 4)


def test_each_record_and_epoch_has_its_own_random_stream():
    draws = {generator(s, e, r).random() for s in (0, 1) for e in (0, 1) for r in (0, 1)}
    assert len(draws) == 8
    assert generator(1, 2, 3).random() == generator(1, 2, 3).random()


def test_a_changed_data_set_is_noticed():
    saved = data_position(8, 64, 0, 1000, "abc")
    assert position_changes(saved, data_position(9, 64, 0, 1000, "abc")) == []
    changes = position_changes(saved, data_position(8, 32, 0, 999, "abd"))
    assert len(changes) == 3
    assert "batch size was 64" in changes[0]
    assert "records was 1000" in changes[1]


def test_repeats_of_records_have_other_draws_and_other_neighbours():
    # 4 records a batch, three times: epoch 0 ends in the third batch of 10 records.
    draws, found = repeated_records(2, np.arange(12), 12, 3, 1, 10)
    order, following = record_order(1, 0, 10), record_order(1, 1, 10)
    first = [*order[8:], *following[:2]]
    assert found.tolist() == [*first, *first[1:], first[0], *first[2:], *first[:2]]
    epochs = np.array([0, 0, 1, 1])
    assert draws.tolist() == [
        *(3 * epochs),
        *(3 * np.roll(epochs, -1) + 1),
        *(3 * np.roll(epochs, -2) + 2),
    ]


def test_without_repeats_a_batch_is_a_part_of_the_order():
    rows = np.arange(3, 8)
    for found, expected in zip(
        repeated_records(4, rows, 8, 1, 1, 10), records_at(32 + rows, 1, 10), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_roles_have_streams_of_their_own():
    assert generator(1, 2, 3).random() != generator(1, 2, 3, MIXING).random()
