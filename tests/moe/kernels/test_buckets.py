"""Relative position buckets against T5's rule written out one distance at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe.kernels.buckets import BUCKETS, MAX_DISTANCE, relative_buckets
from trainlib.errors import InputError


def t5_bucket(offset: int, bidirectional: bool, epsilon: float = 0.0) -> int:
    """The rule of arXiv 1910.10683 for one offset (key minus query), float32 as in its code."""
    count, behind, first = BUCKETS, -offset, 0
    if bidirectional:
        count //= 2
        if behind < 0:
            first = count
        behind = abs(behind)
    elif behind < 0:
        behind = 0
    if behind < count // 2:
        return first + behind
    ratio = np.float32(behind) / np.float32(count // 2) + np.float32(epsilon)
    share = np.log(ratio) / np.float32(math.log(MAX_DISTANCE / (count // 2)))
    return first + min(count - 1, count // 2 + int(share * np.float32(count - count // 2)))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_t5s(bidirectional):
    offsets = np.arange(-600, 601)
    actual = relative_buckets(offsets, bidirectional=bidirectional)
    expected = [t5_bucket(int(offset), bidirectional) for offset in offsets]
    np.testing.assert_array_equal(actual, expected)
    # flaxformer adds one float32 step inside the logarithm: no distance changes its bucket.
    nudged = [t5_bucket(int(o), bidirectional, np.finfo(np.float32).eps) for o in offsets]
    np.testing.assert_array_equal(actual, nudged)


def test_buckets_worked_by_hand():
    # Encoder: 16 buckets a side, 8 exact; 8 * 16^(k/8) is the start of bucket 8 + k: 16 -> 10,
    # 32 -> 12, 64 -> 14, and 128 would be 16 but the side ends at 15.
    found = relative_buckets(
        np.array([0, -1, -7, -8, -16, -32, -64, -128, 1, 7, 16, 500]), bidirectional=True
    )
    np.testing.assert_array_equal(found, [0, 1, 7, 8, 10, 12, 14, 15, 17, 23, 26, 31])
    # Decoder: keys ahead share bucket 0 with the query itself (they are masked anyway).
    found = relative_buckets(np.array([5, 0, -15, -16, -127, -128]), bidirectional=False)
    np.testing.assert_array_equal(found, [0, 0, 15, 16, 31, 31])


@pytest.mark.parametrize(
    ("bidirectional", "buckets", "distance"), [(True, 3, 128), (False, 1, 128), (True, 32, 8)]
)
def test_buckets_without_a_rule_are_refused(bidirectional, buckets, distance):
    sizes = {"bidirectional": bidirectional, "buckets": buckets, "max_distance": distance}
    with pytest.raises(InputError, match=f"^{buckets} buckets of relative positions"):
        relative_buckets(np.arange(3), **sizes)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("distance", [20, 33, 64, 100, 128, 512, 10_000])
def test_other_buckets_and_distances_are_those_of_transformers(bidirectional, distance):
    torch = pytest.importorskip("torch", reason="compares with the other library")
    pytest.importorskip("transformers", reason="compares with the other library")
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = np.arange(-1500, 1501)
    for buckets in (4, 5, 8, 17, 31, 32, 38, 64, 100):
        if distance <= buckets // 2:
            continue
        sizes = {"bidirectional": bidirectional, "max_distance": distance}
        found = relative_buckets(offsets, buckets=buckets, **sizes)
        expected = T5Attention._relative_position_bucket(
            torch.from_numpy(offsets), num_buckets=buckets, **sizes
        )
        np.testing.assert_array_equal(found, expected.numpy())
        assert found.max() < buckets
