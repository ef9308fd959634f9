"""How often loops turn: TPU programs state no trip counts.

A counted loop compares one element of its state with a constant, in its condition, and adds a
constant to that element, in its body; it starts from a constant, in the caller. Where a part of
this cannot be followed, the largest whole number that the condition holds is taken for the count;
where it compares with none, the count is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainlib.planning.hlo.instruction import Instruction

_WHOLE = re.compile(r"^[su]\d+\[\]")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w\w)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAMED = {part: re.compile(rf"\b{part}=%?([\w.\-]+)") for part in ("condition", "body")}
_SAME = ("copy", "bitcast", "copy-done", "copy-start")


Lines = Mapping[str, Instruction]


def trips(loop: Instruction, caller: Lines, computations: Mapping[str, Lines]) -> int | None:
    """Trips of a loop; None where they depend on data.

    Args:
      loop: a `while`.
      caller: the instructions of the computation that it stands in, by name.
      computations: all of them.
    """
    if known := _KNOWN.search(loop.rest):
        return int(known[1])
    parts = {part: p.search(loop.rest) for part, p in _NAMED.items()}
    condition = computations.get(parts["condition"][1], {}) if parts["condition"] else {}
    body = computations.get(parts["body"][1], {}) if parts["body"] else {}
    test = _root(condition)
    if test is None:
        return None
    if test.opcode == "compare" and len(test.operands) == 2:
        counter, limit = (condition.get(name) for name in test.operands)
        index, bound = _element(condition, counter), _constant(condition, limit)
        if bound is None or _is_made(condition, counter):
            return None
        if index is None:
            return bound
        start, step = _start(loop, caller, index), _step(body, index)
        if start is not None and step:
            direction = _DIRECTION.search(test.rest)
            return _count(start, bound, step, direction[1] if direction else "LT")
    return max(_whole_numbers(condition, computations), default=None)


def _count(start: int, bound: int, step: int, direction: str) -> int:
    if direction in ("LE", "GE"):
        bound += 1 if direction == "LE" else -1
    return max(0, -((start - bound) // step)) if step > 0 else max(0, -((bound - start) // -step))


def _root(lines: Lines) -> Instruction | None:
    return next((line for line in lines.values() if line.root), None)


def _followed(lines: Lines, line: Instruction | None) -> Instruction | None:
    """What a value is a copy of."""
    while line is not None and line.opcode in _SAME and line.operands:
        line = lines.get(line.operands[0])
    return line


def _element(lines: Lines, line: Instruction | None) -> int | None:
    """Number of the element of the loop's state that a value is."""
    line = _followed(lines, line)
    if line is None or line.opcode != "get-tuple-element":
        return None
    state = lines.get(line.operands[0])
    index = _INDEX.search(line.rest)
    return int(index[1]) if index and state is not None and state.opcode == "parameter" else None


def _is_made(lines: Lines, line: Instruction | None) -> bool:
    """Whether a condition computes a value, and does not take it from the state."""
    line = _followed(lines, line)
    return line is not None and line.opcode not in ("get-tuple-element", "parameter")


def _constant(lines: Lines, line: Instruction | None) -> int | None:
    line = _followed(lines, line)
    if line is None or line.opcode != "constant" or not _WHOLE.match(line.type):
        return None
    value = re.match(r"(-?\d+)\)", line.rest)
    return int(value[1]) if value else None


def _start(loop: Instruction, caller: Lines, index: int) -> int | None:
    given = caller.get(loop.operands[0]) if loop.operands else None
    if given is None or given.opcode != "tuple" or index >= len(given.operands):
        return None
    return _constant(caller, caller.get(given.operands[index]))


def _step(body: Lines, index: int) -> int | None:
    result = _root(body)
    if result is None or result.opcode != "tuple" or index >= len(result.operands):
        return None
    line = _followed(body, body.get(result.operands[index]))
    if line is None or line.opcode not in ("add", "subtract") or len(line.operands) != 2:
        return None
    first, second = (body.get(name) for name in line.operands)
    if _element(body, first) == index and (step := _constant(body, second)) is not None:
        return step if line.opcode == "add" else -step
    if line.opcode == "add" and _element(body, second) == index:
        return _constant(body, first)
    return None


def _whole_numbers(lines: Lines, computations: Mapping[str, Lines]) -> list[int]:
    found = []
    for line in lines.values():
        value = _constant(lines, line) if line.opcode == "constant" else None
        if value is not None and value > 0:
            found.append(value)
        for called in line.called:
            found += _whole_numbers(computations.get(called, {}), computations)
    return found
