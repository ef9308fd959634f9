"""What a program does without need, named as a person would: layer, time, bytes.

Kinds:
- "layout copy": an array is written again in another order or tiling of its dimensions;
- "copy": it is written again as it is, which keeps what is overwritten later: donate it;
- "unfused convert": an array is written again in another type, and nothing else is done to it;
- "rematerialised": a block is computed again for its gradient, as `jax.checkpoint` asks for or as
  the compiler decided, for want of memory;
- "padding": arrays whose tiles take at least twice the bytes of their elements move through HBM;
- "uncounted": the compiler makes no estimate, and the time is a bound by bytes;
- "left out": what the figures leave out or assume: how often a loop turns, which branch is taken,
  or what a kernel does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from trainlib.chips import Chip
from trainlib.planning.hlo import Instruction, Program
from trainlib.planning.hlo.layout import HBM, Array
from trainlib.planning.ledger.names import UNNAMED
from trainlib.planning.ledger.operation import Finding, Operation

# A finding takes at least this share of the program's time, or of its bytes where it has no time.
LEAST_SHARE = 0.002
_PADDED = 2.0
_UNCOUNTED = ("gather", "scatter", "sort", "random", "kernel", "other")
_LARGE = 2**20  # bytes
_MOVES = {"copy", "transpose", "reshape", "bitcast", "parameter", "constant"}
_TEXTS = {
    "layout copy": "{layer}: {count} of arrays into another layout",
    "copy": "{layer}: {count} of arrays as they are, kept because they are overwritten later",
    "unfused convert": "{layer}: {count} of arrays into another type, on their own",
    "rematerialised": "{layer}: {count}, computed again for the gradient",
    "padding": "{layer}: {count} on arrays that tiles pad to twice their size or more",
    "uncounted": "{layer}: {count} that the compiler makes no estimate of, at least",
}
_NOUNS = {
    "layout copy": ("copy", "copies"),
    "copy": ("copy", "copies"),
    "unfused convert": ("conversion", "conversions"),
}


def is_uncounted(operation: Operation) -> bool:
    """Whether the compiler makes no estimate of an operation that is more than a copy beside
    others or a few numbers.
    """
    if operation.basis != "bytes" or not operation.seconds:
        return False
    large = operation.hbm_bytes + operation.vmem_bytes >= _LARGE
    return operation.kind in _UNCOUNTED or (large and not operation.opcode.endswith("-start"))


def find(
    program: Program, operations: Sequence[Operation], chip: Chip | None
) -> tuple[Finding, ...]:
    """All findings, the longest first.

    Args:
      program: that was compiled.
      operations: of it.
      chip: that it was compiled for; without one, only bytes tell what counts.
    """
    by_name = program.by_name
    members: dict[tuple[str, str, str], list[tuple[Operation, float, int]]] = defaultdict(list)
    for one in operations:
        line = by_name[one.computation][one.name]
        # What is in no layer is told by its line.
        place = one.layer, one.source if one.layer == UNNAMED else ""
        for kind in _kinds(program, one, line):
            members[kind, *place].append((one, one.total_seconds, one.total_hbm_bytes))
        wasted = one.times * _waste(program, one, line)
        if wasted:
            seconds = wasted / chip.hbm_bandwidth if chip else 0.0
            # It comes from the sizes of a whole stage.
            stage = one.layer.split("/")[0]
            members["padding", stage, place[1]].append((one, seconds, wasted))
    whole_seconds = sum(one.total_seconds for one in operations)
    whole_bytes = sum(one.total_hbm_bytes for one in operations)
    found = []
    for (kind, layer, source), parts in members.items():
        seconds, size = sum(p[1] for p in parts), sum(p[2] for p in parts)
        share = seconds / whole_seconds if whole_seconds else size / max(1, whole_bytes)
        if share >= LEAST_SHARE:
            found.append(_finding(kind, layer, source, [p[0] for p in parts], seconds, size))
    found += left_out(program, operations)
    return tuple(sorted(found, key=lambda f: (-f.seconds, -f.hbm_bytes)))


def left_out(program: Program, operations: Sequence[Operation]) -> tuple[Finding, ...]:
    """What figures leave out or assume, whatever its share."""
    return (
        *_loops(program, operations),
        *_branches(program, operations),
        *_notes(operations),
    )


def _loops(program: Program, operations: Sequence[Operation]) -> Iterable[Finding]:
    """Loops that may turn more or less often than they are counted."""
    for name, trips in program.doubtful_loops.items():
        loop = next(lines[name] for lines in program.by_name.values() if name in lines)
        inside = [one for one in operations if one.computation in loop.called]
        layer = next((one.layer for one in inside if one.layer != UNNAMED), UNNAMED)
        place = next((one.source for one in inside if one.source), "") if layer == UNNAMED else ""
        yield Finding(
            kind="left out",
            seconds=sum(one.total_seconds for one in inside),
            hbm_bytes=sum(one.total_hbm_bytes for one in inside),
            operations=(name,),
            layer=layer,
            text=f"{place or layer}: the loop {name} {trips.doubt}.",
        )


def _branches(program: Program, operations: Sequence[Operation]) -> Iterable[Finding]:
    """Conditionals that run and do something in a branch that is not counted."""
    for computation, lines in program.by_name.items():
        for name, taken in program.taken.items() if program.times.get(computation) else ():
            if name not in lines:
                continue
            branches = {*lines[name].called}
            inside = [one for one in operations if one.computation == taken]
            if any(one.computation in branches - {taken} for one in operations):
                yield Finding(
                    kind="left out",
                    seconds=sum(one.total_seconds for one in inside),
                    hbm_bytes=sum(one.total_hbm_bytes for one in inside),
                    operations=(name,),
                    layer=inside[0].layer if inside else UNNAMED,
                    text=f"{name}: data choose one of {len(branches)} branches; "
                    "the longest is counted, the others count nothing.",
                )


def _notes(operations: Sequence[Operation]) -> Iterable[Finding]:
    """What figures of kernels leave out: the same of several in one sentence."""
    noted: dict[str, list[Operation]] = defaultdict(list)
    for one in operations:
        for note in one.notes:
            noted[note].append(one)
    for note, kernels in noted.items():
        first = kernels[0]
        place = first.source if first.layer == UNNAMED and first.source else first.layer
        others = f" and {len(kernels) - 1:,} more" if len(kernels) > 1 else ""
        yield Finding(
            kind="left out",
            seconds=sum(one.total_seconds for one in kernels),
            hbm_bytes=sum(one.total_hbm_bytes for one in kernels),
            operations=tuple(one.name for one in kernels),
            layer=first.layer,
            text=f"{place}: {first.name}{others}: {note}",
        )


def _finding(
    kind: str, layer: str, source: str, operations: list[Operation], seconds: float, size: int
) -> Finding:
    number = sum(one.times for one in operations)
    one, several = _NOUNS.get(kind, ("operation", "operations"))
    text = _TEXTS[kind].format(
        layer=source or layer, count=f"{number:,} {one if number == 1 else several}"
    )
    moved = f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
    return Finding(
        kind=kind,
        seconds=seconds,
        hbm_bytes=size,
        operations=tuple(one.name for one in operations),
        layer=layer,
        text=f"{text} ({1e3 * seconds:.3g} ms, {moved} through HBM).",
    )


def _kinds(program: Program, operation: Operation, line: Instruction) -> Iterable[str]:
    if operation.phase == "recomputed" or ".remat" in line.name:
        yield "rematerialised"
    if is_uncounted(operation):
        yield "uncounted"
    if operation.kind == "convert":
        yield "unfused convert"
    elif moved := _moved(program, line, operation.computation):
        before, after = moved
        # A reshape that moves data has another tiling in effect, even where none is written.
        same = (before.order, before.tiles, before.shape) == (after.order, after.tiles, after.shape)
        yield "copy" if same else "layout copy"


def _moved(program: Program, line: Instruction, computation: str) -> tuple[Array, Array] | None:
    """(before, after) of an instruction that only writes one array again."""
    if line.opcode == "fusion":
        body = program.computations.get(next(iter(line.called), ""), [])
        opcodes = {part.opcode for part in body}
        if not opcodes <= _MOVES or not opcodes & {"copy", "transpose", "reshape"}:
            return None
    elif line.opcode not in ("copy", "transpose", "reshape"):
        return None
    source = program.by_name[computation].get(next(iter(line.operands), ""))
    if source is None or len(source.arrays) != 1 or len(line.arrays) != 1:
        return None
    return source.arrays[0], line.arrays[0]


def _waste(program: Program, operation: Operation, line: Instruction) -> int:
    """Bytes of padding that one run moves through HBM, of arrays that are mostly padding."""
    if not operation.hbm_bytes:
        return 0
    lines = program.by_name[operation.computation]
    moved = [line.arrays, *(lines[name].arrays for name in line.operands if name in lines)]
    arrays = [array for part in moved for array in part if array.space == HBM]
    wasted = sum(
        array.padded_bytes - array.bytes
        for array in arrays
        if array.padded_bytes >= _PADDED * array.bytes
    )
    # Of a long array only a slice may be read: no more is wasted than is moved.
    return min(wasted, operation.hbm_bytes * (int(_PADDED) - 1) // int(_PADDED)) if wasted else 0
