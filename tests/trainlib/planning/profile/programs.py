"""A scheduled program for a TPU, by hand: a product, a loop of three turns, a pass, a copy beside
them and one that is waited for. Cycles are those of v5e, 1.5 GHz.
"""

from __future__ import annotations

from trainlib import chips
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import ledger_of_program
from trainlib.planning.profile.figures import Profile, Subject

CYCLES = {"product": 1_500_000, "turn": 150_000, "pass": 450_000}
N = 2048
EVIL = "</script><img src=x onerror=alert(1)>"
_A = f"bf16[{N},{N}]{{1,0:T(8,128)(2,1)}}"
_NEAR = f"bf16[{N},{N}]{{1,0:T(8,128)(2,1)S(1)}}"
_CONTEXT = "u32[]{:S(2)}"


def _of(name: str, op: str) -> str:
    cycles = f'backend_config={{"estimated_cycles":"{CYCLES[name]}"}}'
    return f'metadata={{op_name="jit(step)/{op}"}}, {cycles}'


_PRODUCT = _of("product", "jvp(stem)/conv1/dot_general")
_DIMENSIONS = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
_TURN = _of("turn", "transpose(jvp(deep))/while/body/block/norm/add")
_TURNS = 'backend_config={"known_trip_count":{"n":"3"}}'
_PASS = _of("pass", f"{EVIL}/mul")

TEXT = f"""HloModule jit_step, is_scheduled=true

%body (state: (s32[], {_A})) -> (s32[], {_A}) {{
  %state = (s32[]{{:T(128)}}, {_A}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %x = {_A} get-tuple-element(%state), index=1
  %turn = {_A} add(%x, %x), {_TURN}
  ROOT %next = (s32[]{{:T(128)}}, {_A}) tuple(%i, %turn)
}}

%condition (state.1: (s32[], {_A})) -> pred[] {{
  %state.1 = (s32[]{{:T(128)}}, {_A}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
  %three = s32[]{{:T(128)}} constant(3)
  ROOT %less = pred[]{{:T(512)}} compare(%i.1, %three), direction=LT
}}

ENTRY %main (a: bf16[{N},{N}], b: bf16[{N},{N}]) -> bf16[{N},{N}] {{
  %a = {_A} parameter(0)
  %b = {_A} parameter(1)
  %copy-start = ({_NEAR}, {_A}, {_CONTEXT}) copy-start(%b)
  %product = {_A} dot(%a, %b), {_DIMENSIONS}, {_PRODUCT}
  %copy-done = {_NEAR} copy-done(%copy-start)
  %zero = s32[]{{:T(128)}} constant(0)
  %start = (s32[]{{:T(128)}}, {_A}) tuple(%zero, %product)
  %loop = (s32[]{{:T(128)}}, {_A}) while(%start), condition=%condition, body=%body, {_TURNS}
  %deep = {_A} get-tuple-element(%loop), index=1
  %copy-start.1 = ({_NEAR}, {_A}, {_CONTEXT}) copy-start(%deep)
  %copy-done.1 = {_NEAR} copy-done(%copy-start.1)
  ROOT %pass = {_A} multiply(%copy-done.1, %copy-done), {_PASS}
}}
"""


def profile(text: str = TEXT, name: str = "by hand") -> Profile:
    """Of the program, for one chip of v5e."""
    target = chips.target("v5e-1")
    ledger = ledger_of_program(Program(text, {"data": 1}), target, temporaries=3 * N * N * 2)
    return Profile(ledger, Subject(name, target.name, flops=2.0 * N**3, examples=8))
