"""Trips of loops as TPU programs write them: without a count."""

from __future__ import annotations

import pytest

from trainlib.planning.hlo import Program

TEXT = """HloModule m

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %s = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  %c = s32[]{{:T(128)}} copy(%i)
  %step = s32[]{{:T(128)}} constant({step})
  %next = s32[]{{:T(128)}} {opcode}(%c, %step)
  %x = f32[8]{{0:T(128)}} get-tuple-element(%s), index=1
  ROOT %t = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple(%next, %x)
}}

%condition (s.1: (s32[], f32[8])) -> pred[] {{
  %s.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%s.1), index=0
  %sum = s32[]{{:T(128)}} fusion(%s.1), kind=kLoop, calls=%summed
  %limit = s32[]{{:T(128)}} constant({limit})
  ROOT %test = pred[]{{:T(512)}} compare({compared}), direction={direction}
}}

ENTRY %main (x.1: f32[8], n: s32[]) -> f32[8] {{
  %x.1 = f32[8]{{0:T(128)}} parameter(0)
  %n = s32[]{{:T(128)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant({start})
  %first = s32[]{{:T(128)}} copy(%zero)
  %given = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple({first}, %x.1)
  %loop = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) while(%given), condition=%condition, \
body=%body{known}
  ROOT %out = f32[8]{{0:T(128)}} get-tuple-element(%loop), index=1
}}
"""
USUAL = {
    "start": 0,
    "limit": 10,
    "step": 1,
    "opcode": "add",
    "direction": "LT",
    "compared": "%i.1, %limit",
    "first": "%first",
    "known": "",
}


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({}, 10),
        ({"start": 4}, 6),
        ({"start": 2, "limit": 20, "step": 3}, 6),
        ({"direction": "LE"}, 11),
        ({"start": 7, "limit": 0, "step": -1, "direction": "GT"}, 7),
        ({"start": 7, "limit": 0, "step": 2, "opcode": "subtract", "direction": "GE"}, 4),
        ({"start": 12}, 0),
        # From an argument: the limit is the best guess.
        ({"first": "%n"}, 10),
        ({"known": ', backend_config={"known_trip_count":{"n":"3"}}'}, 3),
        # To an argument, or until what is computed is small: not known.
        ({"compared": "%i.1, %i.1"}, None),
        ({"compared": "%sum, %limit"}, None),
    ],
)
def test_trips(changes, trips):
    program = Program(TEXT.format(**(USUAL | changes)), {})
    loop = program.by_name["main"]["loop"]
    assert program.unknown_loops == ([] if trips is not None else ["loop"])
    assert program.trips(loop) == (1 if trips is None else trips)
    assert program.times.get("body", 0) == (1 if trips is None else trips)
