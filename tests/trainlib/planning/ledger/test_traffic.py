"""Bytes by memory, against what the compiler says of programs of several kinds, and by hand."""

from __future__ import annotations

import pytest

from tests.trainlib.planning.ledger.programs import PROGRAMS, compiled_bytes, costs, recorded
from trainlib.planning.hlo import Program
from trainlib.planning.ledger.account import Account
from trainlib.planning.ledger.traffic import Movement

ROWS = ("gather", "scatter")  # The compiler's analysis takes whole tiles and whole tables.


@pytest.mark.parametrize("name", sorted(set(PROGRAMS) - {*ROWS, "scan"}))
def test_totals_are_those_of_the_compiler(name):
    """Within 1 %, once copies that it counts at both ends are counted so."""
    assert compiled_bytes(recorded(name)) == pytest.approx(costs()[name]["bytes"], rel=0.01)


def through_hbm(name, opcode=""):
    return sum(o.total_hbm_bytes for o in recorded(name).operations if o.opcode.startswith(opcode))


def test_a_product_reads_its_operands_and_writes_its_result_once():
    """One operand is prefetched whole into VMEM: that reads it, and the product does not."""
    assert through_hbm("matmul") == 3 * 4096 * 4096 * 2
    assert through_hbm("matmul", "copy-start") == 4096 * 4096 * 2
    assert recorded("matmul").vmem_bytes == 2 * 4096 * 4096 * 2


def test_lanes_are_padded():
    """[8M, 64] in bfloat16, read and written; its rows lie on the lanes here, so nothing is."""
    assert through_hbm("lanes_64") == 2 * (8 << 20) * 64 * 2


def test_a_gather_reads_rows():
    """4,096 rows of 1,024, each with the one that is packed with it, and writes them."""
    (gather,) = (o for o in recorded("gather").operations if o.kind == "gather")
    assert gather.hbm_bytes == 4096 * 1024 * 2 * (2 + 1)


def test_a_scatter_reads_and_writes_rows():
    """The whole table is copied before, because it is not donated."""
    rows, table = 4096 * 1024 * 4, 32768 * 1024 * 4
    assert through_hbm("scatter", "copy") - through_hbm("scatter", "copy-start") == 2 * table
    assert through_hbm("scatter", "fusion") == 2 * rows


def test_an_update_in_place_writes_the_update():
    assert through_hbm("update", "dynamic-update-slice") == 64 * 1024 * 4


def test_a_loop_counts_its_trips():
    """8 steps, each with its own weight and the state in VMEM."""
    steps = [o for o in recorded("scan").operations if o.kind == "product"]
    assert {o.times for o in steps} == {8}
    weights = 8 * 1024 * 1024 * 2
    assert weights <= recorded("scan").hbm_bytes <= 1.7 * weights


FUSIONS = """HloModule jit_f, is_scheduled=true

%inner (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %s = f32[8,128]{1,0:T(8,128)} slice(%p), slice={[0:8], [0:128]}
}

%sliced (a: f32[64,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %bits = f32[64,128]{1,0:T(8,128)} bitcast(%a)
  %one = f32[8,128]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%inner
  %two = f32[8,128]{1,0:T(8,128)} slice(%bits), slice={[8:16], [0:128]}
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %sum = f32[8,128]{1,0:T(8,128)} add(%one, %two)
  ROOT %out = f32[8,128]{1,0:T(8,128)} add(%sum, %b)
}

%updated (a.1: f32[64,128], b.1: f32[8,128], i: s32[]) -> (f32[64,128], f32[8,128]) {
  %a.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %b.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %half = f32[8,128]{1,0:T(8,128)} multiply(%b.1, %b.1)
  %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%a.1, %half, %i, %zero)
  ROOT %both = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%new, %half)
}

ENTRY %main (x: f32[64,128], y: f32[8,128], n: s32[]) -> f32[8,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %y = f32[8,128]{1,0:T(8,128)} parameter(1)
  %n = s32[]{:T(128)S(6)} parameter(2)
  %read = f32[8,128]{1,0:T(8,128)} fusion(%x, %y), kind=kLoop, calls=%sliced
  %write = (f32[64,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}) fusion(%x, %y, %n), \
kind=kLoop, calls=%updated
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %sum = f32[8,128]{1,0:T(8,128)} all-reduce-start(%y), to_apply=%add
  %all = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}) all-gather-start(%y)
  %host = f32[8,128]{1,0:T(8,128)S(5)} copy(%y)
  ROOT %r = f32[8,128]{1,0:T(8,128)} copy(%done)
}
"""
ROW = 8 * 128 * 4


@pytest.mark.parametrize(
    ("name", "hbm", "vmem"),
    [
        ("read", 4 * ROW, 0),  # two slices and y, and the result
        ("write", 2 * ROW, ROW),  # y, the update; the second result stays on the chip
        ("start", ROW, ROW),
        ("done", 0, 0),
        ("host", ROW, 0),
        ("sum", 2 * ROW, 0),
        ("all", ROW, 2 * ROW),
        ("r", ROW, ROW),
        ("x", 0, 0),
    ],
)
def test_fusions_and_memories_by_hand(name, hbm, vmem):
    program = Program(FUSIONS, {})
    traffic = Movement(program).traffic(program.by_name["main"][name], "main")
    assert (traffic.hbm, traffic.vmem) == (hbm, vmem)


# A gather that starts in one fusion, goes on beside a product in the next, and ends in the third.
CHAIN = """HloModule jit_f, is_scheduled=true

%started (p: f32[8,128]) -> (f32[8,128], f32[16,128], u32[]) {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %g = f32[16,128]{1,0:T(8,128)} all-gather(%p), frontend_attributes={chain_id="2"}
  ROOT %c = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p.1: f32[8,128], q.1: f32[16,128], w: f32[8,128]) -> (f32[8,128], f32[16,128]) {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q.1 = f32[16,128]{1,0:T(8,128)S(1)} parameter(1)
  %w = f32[8,128]{1,0:T(8,128)} parameter(2)
  %g.1 = f32[16,128]{1,0:T(8,128)S(1)} all-gather(%p.1), frontend_attributes={chain_id="2"}
  %m = f32[8,128]{1,0:T(8,128)} convolution(%w, %w), dim_labels=bf_io->bf
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}) tuple(%m, %q.1)
}

%ended (p.2: f32[8,128], q.2: f32[16,128]) -> f32[16,128] {
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q.2 = f32[16,128]{1,0:T(8,128)S(1)} parameter(1)
  %g.2 = f32[16,128]{1,0:T(8,128)} all-gather(%p.2), frontend_attributes={chain_id="2"}
  ROOT %d = f32[16,128]{1,0:T(8,128)S(1)} custom-call(%p.2, %q.2, %g.2), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8,128]) -> f32[16,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %s = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) fusion(%x), \
kind=kCustom, calls=%started
  %x.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=0
  %y.1 = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%s), index=1
  %b = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}) fusion(%x.1, %y.1, %x), \
kind=kOutput, calls=%beside
  %y.2 = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%b), index=1
  ROOT %e = f32[16,128]{1,0:T(8,128)S(1)} fusion(%x.1, %y.2), kind=kCustom, calls=%ended
}
"""


@pytest.mark.parametrize(
    ("name", "kind", "hbm", "vmem"),
    [
        ("s", "collective", ROW, 2 * ROW),
        ("b", "product", 2 * ROW, 0),  # its operand, which it reads once, and its result
        ("e", "collective", 0, 0),
    ],
)
def test_what_a_collective_moves_counts_where_it_starts(name, kind, hbm, vmem):
    (one,) = (o for o in Account(Program(CHAIN, {"data": 2}), None).operations() if o.name == name)
    assert (one.kind, one.hbm_bytes, one.vmem_bytes) == (kind, hbm, vmem)
