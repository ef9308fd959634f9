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
  %next = s32[]{{:T(128)}} {opcode}(%c, %step){calls}
  %x = f32[8]{{0:T(128)}} get-tuple-element(%s), index=1
  ROOT %t = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) tuple(%next, %x)
}}

%fused (k: s32[], one: s32[]) -> s32[] {{
  %k = s32[] parameter(0)
  %one = s32[] parameter(1)
  ROOT %more = s32[] add(%k, %one)
}}

%condition (s.1: (s32[], f32[8])) -> pred[] {{
  %s.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%s.1), index=0
  %sum = s32[]{{:T(128)}} fusion(%s.1), kind=kLoop, calls=%summed
  %limit = s32[]{{:T(128)}} constant({limit})
  %small = pred[]{{:T(512)}} fusion(%s.1), kind=kLoop, calls=%any
  {root}%test = pred[]{{:T(512)}} compare({compared}), direction={direction}
  {and_root}%both = pred[]{{:T(512)}} and(%small, %test)
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
    "calls": "",
    "root": "ROOT ",
    "and_root": "",
}
BOTH = {"root": "", "and_root": "ROOT "}


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
        ({"limit": 12, "step": 2, "direction": "NE"}, 6),
        ({"opcode": "fusion", "calls": ", kind=kLoop, calls=%fused"}, 10),
        ({"known": ', backend_config={"known_trip_count":{"n":"3"}}'}, 3),
        # To an argument, or until what is computed is small: not known.
        ({"compared": "%i.1, %i.1"}, None),
        ({"compared": "%sum, %limit"}, None),
        # Doubled each turn, or past what it never meets.
        ({"start": 1, "limit": 64, "step": 2, "opcode": "multiply"}, None),
        ({"limit": 11, "step": 2, "direction": "NE"}, None),
        # Until what is computed is small, and no limit to speak of.
        (BOTH | {"limit": 2**31 - 1}, None),
        ({"first": "%n", "limit": 0, "step": -1, "direction": "GT"}, None),
    ],
)
def test_trips(changes, trips):
    program = Program(TEXT.format(**(USUAL | changes)), {})
    loop = program.by_name["main"]["loop"]
    assert list(program.doubtful_loops) == ([] if trips is not None else ["loop"])
    assert program.trips(loop) == (1 if trips is None else trips)
    assert program.times.get("body", 0) == (1 if trips is None else trips)


@pytest.mark.parametrize(
    ("changes", "trips", "doubt"),
    [
        (BOTH, 10, "turns at most 10 times"),
        # From an argument.
        ({"first": "%n", "limit": 100, "step": 3}, 34, "is counted as from 0, for 34 turns"),
    ],
)
def test_a_count_that_is_the_most_says_so(changes, trips, doubt):
    program = Program(TEXT.format(**(USUAL | changes)), {})
    assert program.trips(program.by_name["main"]["loop"]) == trips
    assert doubt in program.doubtful_loops["loop"].doubt
