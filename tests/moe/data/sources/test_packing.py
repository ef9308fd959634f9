"""Packing: rows that are full but not beyond, and every array of a row."""

import numpy as np
import pytest

from moe.data.sources.packing import fill_batch, pack_starts


def ids(*values):
    return np.asarray(values, np.int32)


def test_a_packed_row_array_by_array():
    # The example in seqio's documentation of packing, and its shift to the right by segment.
    row = [(ids(8, 7), ids(4)), (ids(2, 3, 4), ids(5, 6))]
    got = {key: value[0].tolist() for key, value in fill_batch([row], 10, 6).items()}
    assert got == {
        "encoder_inputs": [8, 7, 1, 2, 3, 4, 1, 0, 0, 0],
        "encoder_segments": [1, 1, 1, 2, 2, 2, 2, 0, 0, 0],
        "encoder_positions": [0, 1, 2, 0, 1, 2, 3, 0, 0, 0],
        "decoder_inputs": [0, 4, 0, 5, 6, 0],
        "decoder_targets": [4, 1, 5, 6, 1, 0],
        "decoder_segments": [1, 1, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0],
        "decoder_weights": [1, 1, 1, 1, 1, 0],
    }


def test_types_and_shapes():
    arrays = fill_batch([[(ids(5), ids(6))], []], 7, 3)
    for key, array in arrays.items():
        assert array.dtype == (np.float32 if key == "decoder_weights" else np.int32), key
        assert array.shape == (2, 7 if key.startswith("encoder") else 3), key
        assert not array[1].any(), key


@pytest.mark.parametrize("size", [4, 5, 6, 50])
def test_trimmed_to_leave_room_for_the_end(size):
    """As append_eos_after_trim: 5 places hold at most 4 ids and EOS."""
    long = np.arange(10, 10 + size, dtype=np.int32)
    arrays = fill_batch([[(long, long)]], 5, 5)
    assert arrays["encoder_inputs"][0].tolist() == [10, 11, 12, 13, 1]
    assert arrays["decoder_targets"][0].tolist() == [10, 11, 12, 13, 1]
    assert arrays["decoder_inputs"][0].tolist() == [0, 10, 11, 12, 13]


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_as_full_as_order_allows(seed):
    rng = np.random.default_rng(seed)
    encoder, decoder = rng.integers(1, 13, 50), rng.integers(1, 9, 50)
    starts = pack_starts(encoder, decoder, 12, 8)
    # Plain transcription: open a row, add examples until one does not fit.
    expected, room = [0], [12, 8]
    for i, (e, d) in enumerate(zip(encoder, decoder, strict=True)):
        if e > room[0] or d > room[1]:
            expected.append(i)
            room = [12, 8]
        room = [room[0] - e, room[1] - d]
    assert starts.tolist() == [*expected, 50]


def test_no_examples_make_no_rows():
    assert pack_starts(np.zeros(0, np.int64), np.zeros(0, np.int64), 8, 8).tolist() == [0]
