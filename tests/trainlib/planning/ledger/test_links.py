"""Seconds of collectives, worked out by hand from bytes, links and hops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from trainlib import chips
from trainlib.planning.hlo import Program
from trainlib.planning.ledger.links import DCN, HOP_SECONDS, LINK_EFFICIENCY, Links, wraps

V5E_LINK = 200e9 / 4 * LINK_EFFICIENCY  # four links of a chip share 200 GB/s
V4_LINK = 300e9 / 6 * LINK_EFFICIENCY
SIZE = 2**30


def torus(topology: str, slices: int = 1, cores: int = 1) -> list[SimpleNamespace]:
    """Devices in the order of their coordinates, the last axis the fastest."""
    sides = [int(side) for side in topology.split("x")]
    return [
        SimpleNamespace(coords=[*at, 0][:3], slice_index=number, core_on_chip=core)
        for number in range(slices)
        for at in itertools.product(*map(range, sides))
        for core in range(cores)
    ]


def links(target: str) -> Links:
    found = chips.target(target)
    return Links(found, torus(found.topology, found.slices, found.chip.per_chip))


def along(topology: str, *axes: int) -> np.ndarray:
    """Groups of devices that differ in these axes alone."""
    sides = [int(side) for side in topology.split("x")]
    numbers = np.arange(math.prod(sides)).reshape(sides)
    last = np.moveaxis(numbers, axes, range(-len(axes), 0))
    return last.reshape(-1, math.prod(sides[axis] for axis in axes))


def test_which_sides_close_to_rings():
    assert wraps("v5e", (8, 16)) == (False, True)
    assert wraps("v6e", (16, 16)) == (True, True)
    assert wraps("v4", (8, 8, 8)) == (True, True, True)
    assert wraps("v5p", (2, 4, 4)) == (False, False, False)


def test_a_closed_ring_sends_both_ways_and_an_open_line_does_not():
    # Side 16 of v5e closes, side 8 does not.
    groups = along("8x16", 1), along("8x16", 0)
    (ring, on_y), (line, on_x) = (links("v5e-128").seconds("all-gather", g, SIZE) for g in groups)
    assert (on_y, on_x) == (("y",), ("x",))
    assert ring == pytest.approx(SIZE * 15 / 16 / (2 * V5E_LINK) + 8 * HOP_SECONDS)
    assert line == pytest.approx(SIZE * 7 / 8 / V5E_LINK + 7 * HOP_SECONDS)


def test_two_axes_have_twice_the_links_unless_the_compiler_runs_one_ring():
    groups = along("8x8x8", 1, 2)
    pod = links("v4-1024")
    both, lanes = pod.seconds("reduce-scatter", groups, SIZE)
    assert lanes == ("y", "z")
    assert both == pytest.approx(SIZE * 63 / 64 / (4 * V4_LINK) + 8 * HOP_SECONDS)
    single, lanes = pod.seconds("reduce-scatter", groups, SIZE, one_ring=True)
    assert lanes == ("y", "z")
    assert single == pytest.approx(SIZE * 63 / 64 / (2 * V4_LINK) + 32 * HOP_SECONDS)


def test_an_all_reduce_is_a_scatter_and_a_gather():
    groups = along("8x8x8", 0)
    pod = links("v4-1024")
    once, twice = (pod.seconds(k, groups, SIZE)[0] for k in ("all-gather", "all-reduce"))
    assert twice == pytest.approx(2 * once)


def test_an_all_to_all_is_bound_by_the_middle_of_its_longest_axis():
    # Of 8 on a ring, 4 send half of their buffers over the two links in the middle, each way.
    ring, _ = links("v4-1024").seconds("all-to-all", along("8x8x8", 0), SIZE)
    assert ring == pytest.approx(4 * SIZE / 2 / (2 * V4_LINK) + 4 * HOP_SECONDS)
    line, _ = links("v5e-128").seconds("all-to-all", along("8x16", 0), SIZE)
    assert line == pytest.approx(4 * SIZE / 2 / V5E_LINK + 7 * HOP_SECONDS)


def test_groups_that_lie_between_each_other_share_links():
    # Every second device of a ring of 8: each hop takes two links, and two groups want each link.
    groups = np.array([[0, 2, 4, 6], [1, 3, 5, 7]]) * 64
    shared, _ = links("v4-1024").seconds("all-gather", groups, SIZE)
    alone = SIZE * 3 / 4 / (2 * V4_LINK)
    assert shared - 2 * HOP_SECONDS == pytest.approx(2 * alone)


def test_part_of_a_side_is_an_open_line():
    groups = np.arange(8).reshape(2, 4) * 64
    part, _ = links("v4-1024").seconds("all-gather", groups, SIZE)
    assert part == pytest.approx(SIZE * 3 / 4 / V4_LINK + 3 * HOP_SECONDS)


def test_a_permute_takes_the_shortest_way_and_the_fullest_link_decides():
    pod = links("v4-1024")
    ring = np.arange(8) * 64
    neighbours = np.stack([ring, np.roll(ring, -1)], 1)
    near, lanes = pod.seconds("collective-permute", neighbours, SIZE)
    assert lanes == ("x",)
    assert near == pytest.approx(SIZE / V4_LINK + HOP_SECONDS)
    # Three further: each link carries three of them.
    far, _ = pod.seconds("collective-permute", np.stack([ring, np.roll(ring, -3)], 1), SIZE)
    assert far == pytest.approx(3 * SIZE / V4_LINK + 3 * HOP_SECONDS)


def test_a_group_that_fills_no_box_is_a_ring_of_paths():
    # Three corners of a square of v5e: (0, 0), (0, 1), (1, 1), and back over (0, 1). The way back
    # shares its links with those of the other direction: two shares on each.
    seconds, lanes = links("v5e-4").seconds("all-gather", np.array([[0, 1, 3]]), SIZE)
    assert lanes == ("x", "y")
    step = SIZE / 3 / 2
    assert seconds == pytest.approx(2 * (2 * step / V5E_LINK + 2 * HOP_SECONDS))


def test_between_slices_the_network_of_the_data_centre_carries_a_part_for_each_chip():
    # Two slices of 4 chips: a chip sends its fourth of half of the buffer.
    groups = np.arange(8)[None]
    seconds, lanes = links("2xv5e-4").seconds("all-gather", groups, SIZE)
    assert lanes == ("x", "y", DCN)
    inside = SIZE * 3 / 4 / (2 * V5E_LINK) + 2 * HOP_SECONDS
    assert seconds == pytest.approx(inside + SIZE / 2 / 4 / chips.DCN_BANDWIDTH)


def test_devices_without_a_torus_have_all_their_bandwidth():
    seconds, lanes = Links(chips.target("gpu:h200x8"), None).seconds("all-gather", None, SIZE)
    assert lanes == ("links",)
    assert seconds == pytest.approx(SIZE * 7 / 8 / (450e9 * LINK_EFFICIENCY))


def test_the_two_devices_of_a_chip_are_joined_by_the_die():
    groups = np.arange(16).reshape(8, 2)
    _, lanes = links("tpu7x:2x2x2").seconds("all-gather", groups, SIZE)
    assert lanes == ("die",)


TEXT = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.1 (x: f32[64,128]) -> f32[16,128] {
  %x = f32[64,128]{1,0} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add, \
backend_config={"collective_algorithm_config":{"strategy":"StrategyRing"}}
  ROOT %dynamic-slice.1 = f32[16,128]{1,0} dynamic-slice(%all-reduce.1), \
dynamic_slice_sizes={16,128}
}

ENTRY %main (p: f32[64,128]) -> f32[16,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %fusion = f32[16,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_reduce_scatter_is_found_in_its_fusion():
    program = Program(TEXT, {"data": 4})
    parameter, fusion = program.computations["main"]
    found = links("v5e-4").transfer(program, fusion)
    assert found
    assert (found.kind, found.axes, found.bytes) == ("reduce-scatter", ("data",), 4 * 64 * 128)
    assert found.wire_bytes == 3 / 4 * found.bytes
    assert links("v5e-4").transfer(program, parameter) is None
