"""What is planted in a program is named, with its layer, time and bytes; nothing else is."""

from __future__ import annotations

import re

import pytest

from tests.trainlib.planning.ledger.programs import FOLDER, recorded
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import ledger_of_program


def only(name):
    (finding,) = recorded(name).findings
    return finding


def test_a_layout_copy_is_named():
    """Read and written once, of 64 x 2048 x 512 in bfloat16; the copy has the argument's name in
    the program, so its layer is that of what it is made for."""
    found = only("layout_copy")
    assert (found.kind, found.layer) == ("layout copy", "swap")
    assert found.hbm_bytes == 2 * 64 * 2048 * 512 * 2
    assert found.seconds == pytest.approx(recorded("layout_copy").seconds, rel=0.5)
    assert found.text.startswith("swap: 1 copy of arrays into another layout (1.18 ms, 268 MB")


def test_an_unfused_convert_is_named():
    """It reads float32 from HBM; its result stays on the chip for the product."""
    found = only("unfused_convert")
    assert (found.kind, found.layer) == ("unfused convert", "cast")
    assert found.hbm_bytes == 16384 * 2048 * 4
    assert 0 < found.seconds < recorded("unfused_convert").seconds


def test_a_rematerialised_block_is_named():
    found = only("rematerialised")
    assert (found.kind, found.layer) == ("rematerialised", "block")
    ledger = recorded("rematerialised")
    again = [o for o in ledger.operations if o.phase == "recomputed"]
    assert found.operations == tuple(o.name for o in again)
    # One of the two products, of 2 x 8192 x 1024 x 1024, is computed again.
    assert sum(o.flops for o in again) == pytest.approx(2 * 8192 * 1024 * 1024, rel=0.01)


@pytest.mark.parametrize("name", ["clean", "residual_block", "matmul", "chain", "batched"])
def test_a_clean_program_has_no_findings(name):
    assert recorded(name).findings == ()


def test_padding_and_what_carries_no_estimate_are_named():
    """A max pool over 64 channels, and its gradient, which the compiler does not price."""
    found = {f.kind: f for f in recorded("max_pool_gradient").findings}
    assert set(found) == {"layout copy", "padding", "uncounted"}
    names = found["uncounted"].operations
    assert any("select_and_scatter" in name for name in names)
    assert tuple(o.name for o in recorded("max_pool_gradient").uncounted) == names
    # Gradient of [64, 112, 112, 64] in bfloat16, on 128 lanes: half of it is padding.
    assert found["padding"].hbm_bytes >= 64 * 112 * 112 * 64 * 2


def test_a_gather_is_listed_with_its_bound():
    (gather,) = recorded("gather").uncounted
    assert gather.basis == "bytes"
    assert gather.seconds == pytest.approx(gather.hbm_bytes / 819e9)


def test_without_a_chip_bytes_decide():
    ledger = recorded("layout_copy")
    found = ledger_of_program(ledger.program, None).findings
    assert [(f.kind, f.seconds) for f in found] == [("layout copy", 0.0)]


def test_a_copy_that_keeps_what_is_overwritten_is_told_from_one_of_layout():
    """The table of a scatter that is not donated."""
    kinds = [f.kind for f in recorded("scatter").findings]
    assert kinds == ["copy", "uncounted"]


def test_a_fusion_of_copies_is_a_copy():
    text = """HloModule m

%moved (p: f32[4096,8192]) -> f32[8192,4096] {
  %p = f32[4096,8192]{1,0:T(8,128)} parameter(0)
  %t = f32[8192,4096]{0,1:T(8,128)} bitcast(%p)
  ROOT %c = f32[8192,4096]{1,0:T(8,128)} copy(%t)
}

ENTRY %main (x: f32[4096,8192]) -> f32[8192,4096] {
  %x = f32[4096,8192]{1,0:T(8,128)} parameter(0)
  ROOT %f = f32[8192,4096]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%moved
}
"""
    (found,) = ledger_of_program(Program(text, {}), None).findings
    assert (found.kind, found.operations) == ("layout copy", ("f",))


def test_a_loop_that_turns_as_often_as_data_say_is_named():
    ledger = recorded("scan")
    text = (FOLDER / "scan.txt").read_text()
    endless = Program(re.sub(r"compare\(%(\S+), %\S+\)", r"compare(%\1, %\1)", text), {})
    (found,) = [f for f in ledger_of_program(endless, None).findings if f.kind == "left out"]
    assert found.operations == tuple(endless.doubtful_loops)
    assert not ledger.program.doubtful_loops
