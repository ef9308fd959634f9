"""Tiles of grouped products: their ceilings, and blocks counted by hand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.grouped_products import SIZES, ceilings
from moe.kernels.grouped_tiles import MIB, VMEM, Shape, cost, tiling
from trainlib.chips import CHIPS

EXPERT = Shape(32768, 5120, 2560, 1)  # one of ST-MoE-32B on its pod


@pytest.mark.parametrize("chip", list(VMEM))
@pytest.mark.parametrize("size", list(SIZES))
def test_the_model_table_has_no_ceiling_below_the_peak(size, chip):
    """At least 95 % of it, for a product and both of its gradients, up and down."""
    for one in ceilings(size, chip):
        assert one.ceiling >= 0.95, one
        assert one.vmem <= VMEM[chip]


def test_small_tiles_fetch_everything_many_times():
    """The tile of 128 that was taken for all: 63 FLOP a byte, 26 % of a v5e's peak."""
    done = cost("forward", EXPERT, (128, 128, 128))
    # Rows for each of 20 columns of tiles, weights for each of 256 of rows, the result once.
    elements = 20 * 32768 * 5120 + 256 * 5120 * 2560 + 32768 * 2560
    assert done.bytes == 2 * elements
    assert done.flops / done.bytes == pytest.approx(63, rel=0.01)
    assert done.ceiling(EXPERT, CHIPS["v5e"]) == pytest.approx(0.26, abs=0.005)


def test_weights_stay_where_the_depth_is_whole():
    done = cost("forward", EXPERT, (512, 5120, 1280))
    assert done.bytes == 2 * (2 * 32768 * 5120 + 5120 * 2560 + 32768 * 2560)
    # Blocks twice, sums in float32: more than any chip has.
    assert done.vmem > 40 * MIB


def test_gradients_of_weights_are_sums_over_rows():
    done = cost("weights", EXPERT, (1024, 512, 1280))
    assert done.bytes == 2 * (2 * 32768 * 5120 + 10 * 32768 * 2560 + 5120 * 2560)


def test_a_tile_with_two_experts_is_multiplied_twice():
    shape = Shape(32768, 1024, 2816, 8)
    assert cost("forward", shape, (512, 1024, 1408)).flops == shape.flops * (64 + 7) / 64
    # So many experts take smaller tiles than one.
    alone = dataclasses.replace(shape, experts=1)
    assert tiling("forward", shape, "v5e")[0] < tiling("forward", alone, "v5e")[0]


@pytest.mark.parametrize("sides", [(8, 12), (64, 128), (200, 1000)])
def test_sides_that_no_tile_divides_are_taken_whole(sides):
    depth, columns = sides
    assert tiling("forward", Shape(128, depth, columns, 4, 4), "v5e") == (128, depth, columns)
