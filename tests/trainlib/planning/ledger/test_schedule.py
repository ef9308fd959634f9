"""Schedules of small programs that can be worked out by hand.

Every operation called `work` takes 10 ms and reads nothing; copies move bytes that take 4 ms at the
bandwidth of v5e; collectives take as long as their links say.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from tests.trainlib.planning.ledger.programs import FOLDER, PROGRAMS, recorded
from trainlib import chips
from trainlib.planning.hlo import Program
from trainlib.planning.ledger import ledger_of_program
from trainlib.planning.ledger.links import Links
from trainlib.planning.ledger.operation import Operation
from trainlib.planning.ledger.schedule import Schedule, Span, at_bandwidth, schedule

V5E = chips.CHIPS["v5e"]
MS = 1e-3
WORK = 10 * MS
COPY = int(4 * MS * V5E.hbm_bandwidth)


def devices(sides: tuple[int, int]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(coords=[*at, 0], slice_index=0, core_on_chip=0)
        for at in itertools.product(*map(range, sides))
    ]


def run(text: str, mesh: dict[str, int] | None = None, bytes_of_work: int = 0) -> Schedule:
    """The schedule of a text on v5e-8, 2 x 4 chips."""
    program = Program(text, mesh or {"data": 1})
    links = Links(chips.target("v5e-8"), devices((2, 4)))
    operations = {}
    for name, lines in program.computations.items():
        for line in lines:
            copy = line.opcode in ("copy-start", "slice-start")
            work = line.name.startswith("work")
            operations[line.name] = Operation(
                name=line.name,
                opcode=line.opcode,
                kind="copy" if copy else "other",
                computation=name,
                times=program.times.get(name, 0),
                seconds=WORK if work else 0.0,
                basis="compiler",
                hbm_bytes=COPY if copy else bytes_of_work if work else 0,
            )
    return schedule(program, operations, links, V5E)


def entry(*lines: str) -> str:
    body = "\n".join(f"  %{line}" for line in lines)
    return f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n{body}\n}}\n"


START = "s = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)"
DONE = "d = f32[8]{0:S(1)} copy-done(%s)"
GATHER = "f32[64,1048576]{1,0}"  # 256 MiB


def gather(name: str, groups: str) -> tuple[str, str]:
    start = (
        f"{name} = (f32[16,1048576]{{1,0}}, {GATHER}) all-gather-start(%p), "
        f"replica_groups={groups}, dimensions={{0}}"
    )
    return start, f"{name}-d = {GATHER} all-gather-done(%{name})"


def work(name: str) -> str:
    return f"work.{name} = f32[8]{{0}} fusion(%p), kind=kLoop, calls=%f"


def test_what_nothing_waits_for_runs_one_after_the_other():
    found = run(entry(work("a"), work("b")))
    assert found.seconds == pytest.approx(2 * WORK)
    assert found.core_seconds == pytest.approx(2 * WORK)
    assert found.spans == (
        Span("core", 0.0, WORK, "work.a"),
        Span("core", WORK, 2 * WORK, "work.b"),
    )


def test_a_copy_hides_behind_the_work_between_its_start_and_its_done():
    found = run(entry(START, work("a"), DONE, work("b")))
    assert found.seconds == pytest.approx(2 * WORK)
    assert not found.exposed
    assert found.in_flight["copies"] == pytest.approx(4 * MS)


def test_a_done_waits_for_what_is_left():
    assert run(entry(START, DONE, work("a"))).seconds == pytest.approx(WORK + 4 * MS)
    found = run(entry(START, work("a"), DONE), bytes_of_work=int(9 * MS * V5E.hbm_bandwidth))
    # The work leaves the copy 1 of its 10 ms; 3 ms are left at the done.
    assert found.exposed["copies"] == pytest.approx(3 * MS)
    assert found.seconds == pytest.approx(WORK + 3 * MS)


PREFETCH = START + ", cross_program_prefetch_index=0"


def test_what_is_fetched_before_the_step_is_there_when_it_starts():
    found = run(entry(PREFETCH, DONE, work("a")))
    assert found.seconds == pytest.approx(WORK)
    assert not found.exposed
    assert found.in_flight["copies"] == pytest.approx(4 * MS)


def test_a_step_fetches_for_the_next_one_with_the_bandwidth_that_it_leaves():
    alone = run(entry(PREFETCH, DONE))
    assert alone.seconds == alone.exposed["copies"] == pytest.approx(4 * MS)
    found = run(entry(PREFETCH, DONE, work("a")), bytes_of_work=int(9 * MS * V5E.hbm_bandwidth))
    assert found.exposed["copies"] == pytest.approx(3 * MS)
    assert found.seconds == pytest.approx(found.bounds["memory"]) == pytest.approx(13 * MS)
    assert found.core_seconds == pytest.approx(WORK)
    assert found.spans[-1] == Span("copies", WORK, found.seconds, "what the next step needs")


def test_a_copy_beside_a_loop_has_what_the_copies_in_the_loop_leave():
    line = "w = (s32[], f32[8]) while(%p), condition=%cond, body=%body"
    outer = [START.replace("s =", "o ="), line, DONE.replace("d =", "e =").replace("%s", "%o")]
    nine = int(9 * MS * V5E.hbm_bandwidth)
    # Of 5 times 14 ms the copies inside take 4 and the work 9: 5 ms are left.
    assert not run(LOOP + entry(*outer), bytes_of_work=nine).exposed.keys() - {"copies"}
    assert run(LOOP + entry(*outer), bytes_of_work=nine).seconds == pytest.approx(70 * MS)
    ten = int(10 * MS * V5E.hbm_bandwidth)
    assert run(LOOP + entry(*outer), bytes_of_work=ten).seconds == pytest.approx(74 * MS)


def test_copies_take_turns():
    second = [line.replace("%s)", "%t)") for line in (START.replace("s =", "t ="), "e" + DONE[1:])]
    found = run(entry(START, second[0], DONE, second[1]))
    assert found.seconds == pytest.approx(8 * MS)
    ends = {span.name: span.end for span in found.spans if span.lane == "copies"}
    assert ends == {"s": pytest.approx(4 * MS), "t": pytest.approx(8 * MS)}


def test_a_collective_runs_on_its_links_and_its_axis_is_named():
    mesh = {"data": 2, "model": 4}
    start, done = gather("ag", "{{0,1,2,3},{4,5,6,7}}")
    alone = run(entry(start, done), mesh)
    assert alone.exposed == {"model": pytest.approx(alone.seconds)}
    assert alone.exposed_communication == pytest.approx(1.0)
    assert alone.bounds["links"] == pytest.approx(alone.seconds)
    # 256 MiB over an open line of 4: three quarters of it over the one link of an end.
    assert alone.seconds == pytest.approx(2**28 * 3 / 4 / 45e9 + 3e-6)
    hidden = run(entry(start, work("a"), done), mesh)
    assert hidden.seconds == pytest.approx(max(alone.seconds, WORK))
    lanes = {span.lane for span in alone.spans}
    assert lanes == {"ici y"}


def test_collectives_of_two_axes_run_together_and_of_one_axis_in_turn():
    mesh = {"data": 2, "model": 4}
    over_model, over_data = "{{0,1,2,3},{4,5,6,7}}", "{{0,4},{1,5},{2,6},{3,7}}"
    first, first_done = gather("a", over_model)
    other, other_done = gather("b", over_data)
    same, same_done = gather("c", over_model)
    model = run(entry(first, first_done), mesh).seconds
    data = run(entry(other, other_done), mesh).seconds
    together = run(entry(first, other, first_done, other_done), mesh)
    assert together.seconds == pytest.approx(max(model, data))
    in_turn = run(entry(first, same, first_done, same_done), mesh)
    assert in_turn.seconds == pytest.approx(2 * model)


def test_a_synchronous_collective_holds_the_core():
    mesh = {"data": 2, "model": 4}
    line = f"ag = {GATHER} all-gather(%p), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}"
    found = run(entry(work("a"), line, work("b")), mesh)
    assert found.seconds == pytest.approx(2 * WORK + found.exposed["model"])
    assert found.core_seconds == pytest.approx(2 * WORK)


LOOP = """%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]) parameter(0)
  %n = s32[] constant(5)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]) parameter(0)
  %s = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%q)
  %d = f32[8]{0:S(1)} copy-done(%s)
  %work.b = f32[8]{0} fusion(%d), kind=kLoop, calls=%f
  %j = s32[] get-tuple-element(%q), index=0
  %one = s32[] constant(1)
  %k = s32[] add(%j, %one)
  ROOT %t = (s32[], f32[8]) tuple(%k, %work.b)
}

"""


def test_a_loop_is_its_body_times_its_trips():
    line = "w = (s32[], f32[8]) while(%p), condition=%cond, body=%body"
    found = run(LOOP + entry(work("a"), line))
    assert found.seconds == pytest.approx(WORK + 5 * (WORK + 4 * MS))
    assert found.exposed["copies"] == pytest.approx(20 * MS)
    # Drawn once, stretched: 5 waits of 4 ms, then 5 times the work.
    spans = {span.name: (span.start, span.end) for span in found.spans}
    assert spans["work.b"] == pytest.approx((WORK + 20 * MS, WORK + 70 * MS))


def test_the_condition_of_a_loop_takes_its_time_at_every_turn():
    test = "  ROOT %lt ="
    slow = LOOP.replace(test, "  %work.c = f32[8]{0} fusion(%c), kind=kLoop, calls=%f\n" + test)
    found = run(slow + entry("w = (s32[], f32[8]) while(%p), condition=%cond, body=%body"))
    assert found.seconds == pytest.approx(5 * (2 * WORK + 4 * MS))


def branches_and_a_conditional() -> str:
    """A branch of one operation and one of three."""
    branches = "".join(
        f"%{name} (q: f32[8]) -> f32[8] {{\n  %q = f32[8]{{0}} parameter(0)\n"
        + "".join(f"  %work.{name}{i} = f32[8]{{0}} fusion(%q), calls=%f\n" for i in range(count))
        + "}\n\n"
        for name, count in (("short", 1), ("long", 3))
    )
    line = "c = f32[8]{0} conditional(%p, %p, %p), branch_computations={%short, %long}"
    return branches + entry(line)


def test_a_loop_that_never_turns_takes_and_counts_nothing():
    never = 'backend_config={"known_trip_count":{"n":"0"}}'
    line = "w = (s32[], f32[8]) while(%p), condition=%cond, body=%body, " + never
    ledger = ledger_of_program(Program(LOOP + entry(line), {"data": 1}), chips.target("v5e-1"))
    assert {one.times for one in ledger.operations} == {0}
    assert ledger.seconds == ledger.schedule.seconds == ledger.hbm_bytes == 0


def test_a_conditional_takes_the_longest_branch():
    assert run(branches_and_a_conditional()).seconds == pytest.approx(3 * WORK)


def test_the_branch_that_takes_longest_counts_everywhere():
    text = branches_and_a_conditional()
    text = text.replace("calls=%f", 'calls=%f, backend_config={"estimated_cycles":"15000000"}')
    ledger = ledger_of_program(Program(text, {"data": 1}), chips.target("v5e-1"))
    assert {one.name: one.times for one in ledger.operations} == {
        "work.short0": 0,
        **{f"work.long{i}": 1 for i in range(3)},
    }
    assert ledger.seconds == ledger.schedule.seconds == pytest.approx(3 * WORK)
    assert max(ledger.schedule.bounds.values()) <= ledger.schedule.seconds
    (said,) = (found.text for found in ledger.findings if "branches" in found.text)
    assert said.startswith("c: data choose one of 2 branches; the longest is counted")
    assert ledger.program.times.keys() == {"main", "long"}


CHAIN = """%start (x: f32[16]) -> f32[64,1048576] {
  %x = f32[16,1048576]{1,0} parameter(0)
  %ag.0 = f32[64,1048576]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, \
frontend_attributes={chain_id="3"}
  ROOT %cc.0 = f32[64,1048576]{1,0} custom-call(%ag.0), custom_call_target="AsyncCollectiveStart"
}

%go (x: f32[16]) -> f32[64,1048576] {
  %x = f32[16,1048576]{1,0} parameter(0)
  ROOT %ag.1 = f32[64,1048576]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, \
frontend_attributes={chain_id="3"}
}

%end (x: f32[16]) -> f32[64,1048576] {
  %x = f32[16,1048576]{1,0} parameter(0)
  %ag.2 = f32[64,1048576]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, \
frontend_attributes={chain_id="3"}
  ROOT %cc.1 = f32[64,1048576]{1,0} custom-call(%ag.2), custom_call_target="AsyncCollectiveDone"
}

"""


def test_a_collective_in_fusions_runs_from_its_first_to_its_last():
    fusion = "{} = f32[64,1048576]{{1,0}} fusion(%p), kind=kCustom, calls=%{}"
    lines = [fusion.format(*names) for names in (("s", "start"), ("work.g", "go"), ("e", "end"))]
    found = run(CHAIN + entry(*lines), {"data": 2, "model": 4})
    transfer = 2**28 * 3 / 4 / 45e9 + 3e-6
    assert found.seconds == pytest.approx(max(WORK, transfer))
    assert found.in_flight["model"] == pytest.approx(transfer)


def test_between_slices_the_runtime_sends_beside_the_core():
    common = '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_target="{1,2}x{0:3}"'
    kind = '_xla_megascale_transfer_type="ALL_REDUCE"'
    pair = [
        f"{name} = (f32[1048576]{{0}}, u32[], token[]) {name}(%p), is_host_transfer=true, "
        f"frontend_attributes={{{common},{kind}}}"
        for name in ("send", "recv")
    ]
    ends = ["e = token[] send-done(%send)", "r = (f32[1048576]{0}, token[]) recv-done(%recv)"]
    sent = 2**22 / chips.DCN_BANDWIDTH  # of two slices, each sends half of it and gets half back
    alone = run(entry(*pair, *ends))
    assert alone.seconds == pytest.approx(sent)
    assert alone.exposed == {"dcn": pytest.approx(sent)}
    assert run(entry(*pair, work("a"), *ends)).seconds == pytest.approx(max(WORK, sent))


def test_what_goes_to_the_host_has_a_lane_of_its_own():
    start = "s = (f32[1048576]{0:S(5)}, f32[1048576]{0}, u32[]{:S(2)}) copy-start(%p)"
    found = run(entry(start, "d = f32[1048576]{0:S(5)} copy-done(%s)"))
    assert found.exposed["host"] == pytest.approx(2**22 / 16e9)


def test_what_only_streams_can_be_taken_at_the_bandwidth():
    def operation(kind: str, hbm_bytes: int) -> Operation:
        times = {"times": 1, "seconds": WORK, "basis": "compiler", "hbm_bytes": hbm_bytes}
        return Operation(f"{kind}{hbm_bytes}", "fusion", kind, "main", **times)

    cases = [("elementwise", COPY), ("elementwise", 0), ("product", COPY), ("copy", 9 * COPY)]
    found = at_bandwidth([operation(*case) for case in cases], V5E)
    # Only the first is longer than its 4 ms of bytes; what stays on the chip has none.
    assert [one.seconds for one in found.values()] == pytest.approx([4 * MS, WORK, WORK, WORK])


def test_bounds_are_below_the_schedule():
    found = run(entry(START, work("a"), DONE, work("b")), bytes_of_work=COPY)
    assert found.bounds["memory"] == pytest.approx(12 * MS)
    assert max(found.bounds.values()) <= found.seconds


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_recorded_program_is_faster_than_its_bounds(name):
    found = recorded(name)
    for seconds in (found.schedule.seconds, found.seconds_at_bandwidth):
        assert max(found.schedule.bounds.values()) <= seconds * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "narrow", "peak"), [("matmul", "", 197e12), ("matmul_int8", "int8", 394e12)]
)
def test_products_of_8_bit_integers_have_a_peak_of_their_own(name, narrow, peak):
    found = recorded(name)
    product = max(found.operations, key=lambda one: one.flops)
    assert product.narrow == narrow
    assert found.schedule.bounds["arithmetic"] == pytest.approx(found.flops / peak)
    assert 0.6 < found.schedule.bounds["arithmetic"] / found.schedule.seconds <= 1


def test_a_product_of_few_rows_takes_as_long_as_its_weights():
    found = recorded("few_rows")
    weights = 2 * 4096 * 8192
    assert "cross_program_prefetch_index=" in (FOLDER / "few_rows.txt").read_text()
    assert found.schedule.seconds >= weights / V5E.hbm_bandwidth
