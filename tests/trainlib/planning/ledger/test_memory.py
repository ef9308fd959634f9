"""Live bytes along the schedule: against the compiler's own figures, and by hand."""

from __future__ import annotations

import pytest

from tests.trainlib.planning.ledger.programs import PROGRAMS, costs, recorded
from trainlib.planning.hlo import Program
from trainlib.planning.ledger.memory import over_time


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_arguments_and_temporaries_are_those_of_the_compiler(name):
    memory, said = recorded(name).memory, costs()[name]
    assert memory.arguments == pytest.approx(said["arguments"], abs=2048)
    assert memory.peak == pytest.approx(said["temporaries"], rel=0.01, abs=2048)


TEXT = """HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%body (s: (f32[1024], s32[])) -> (f32[1024], s32[]) {
  %s = (f32[1024]{0:T(1024)}, s32[]{:T(128)S(6)}) parameter(0)
  %v = f32[1024]{0:T(1024)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)S(6)} get-tuple-element(%s), index=1
  %wide = f32[8192]{0:T(1024)} broadcast(%v), dimensions={}
  %next = f32[1024]{0:T(1024)} reduce(%wide), dimensions={0}
  ROOT %t = (f32[1024]{0:T(1024)}, s32[]{:T(128)S(6)}) tuple(%next, %n)
}

%condition (s.1: (f32[1024], s32[])) -> pred[] {
  %s.1 = (f32[1024]{0:T(1024)}, s32[]{:T(128)S(6)}) parameter(0)
  ROOT %p = pred[]{:T(512)S(6)} constant(true)
}

ENTRY %main (x: f32[1024], n.1: s32[]) -> (f32[1024], f32[2048]) {
  %x = f32[1024]{0:T(1024)} parameter(0)
  %n.1 = s32[]{:T(128)S(6)} parameter(1)
  %a = f32[1024]{0:T(1024)} negate(%x)
  %chip = f32[1024]{0:T(1024)S(1)} negate(%x)
  %b = f32[4096]{0:T(1024)} broadcast(%a), dimensions={}
  %given = (f32[1024]{0:T(1024)}, s32[]{:T(128)S(6)}) tuple(%a, %n.1)
  %loop = (f32[1024]{0:T(1024)}, s32[]{:T(128)S(6)}) while(%given), condition=%condition, \
body=%body
  %r = f32[1024]{0:T(1024)} get-tuple-element(%loop), index=0
  %c = f32[4096]{0:T(1024)} fusion(%b, %r), kind=kLoop, calls=%fused, \
backend_config={"aliasing_operands":{"lists":[{"indices":["0","2"]}]}}
  %d = f32[2048]{0:T(1024)} reduce(%c), dimensions={0}
  %e = f32[1024]{0:T(1024)} reduce(%d), dimensions={0}
  ROOT %out = (f32[1024]{0:T(1024)}, f32[2048]{0:T(1024)}) tuple(%e, %d)
}
"""
K = 4096  # bytes of 1,024 numbers


def test_live_bytes_by_hand():
    memory = over_time(Program(TEXT, {}))
    # x and the result that is not donated; n lies in scalar memory.
    assert memory.arguments == K + 2 * K
    live = dict(zip(memory.instructions, memory.live, strict=True))
    assert live["a"] == live["chip"] == K
    assert live["b"] == K + 4 * K
    # In the loop 8 K of its own; the next state takes the place of the last.
    assert live["loop"] == K + 4 * K + 8 * K
    assert live["c"] == 4 * K + K  # in place of b; a ends here
    assert live["d"] == 4 * K  # a result of the program is no temporary
    assert live["e"] == live["out"] == 0
    assert memory.peak == live["loop"]
    assert [(b.made_by, b.bytes) for b in memory.at_peak()] == [("b", 4 * K), ("a", K)]
