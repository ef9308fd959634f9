"""How often loops turn: TPU programs state no trip counts.

A counted loop compares one element of its state with a constant, in its condition, and adds a
constant to that element, in its body; it starts from a constant, in the caller. Where it may also
stop for another reason, this is the most that it turns. Where the start is not known, it is counted
as from 0. What does not count up or down by a constant, to a constant, is not known: a guess from
the numbers in its condition may be wrong a millionfold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from trainlib.planning.hlo.instruction import Instruction

_WHOLE = re.compile(r"^[su]\d+\[\]")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w\w)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAMED = {part: re.compile(rf"\b{part}=%?([\w.\-]+)") for part in ("condition", "body")}
_SAME = ("copy", "bitcast", "copy-done", "copy-start", "reshape")
# A limit from here on says "no limit": the largest number of a type, or close to it.
_NO_LIMIT = 2**30


Lines = Mapping[str, Instruction]
Computations = Mapping[str, Lines]


@dataclasses.dataclass(frozen=True)
class Trips:
    """How often a loop turns.

    Attributes:
      count: None where it is not known.
      doubt: why the count may not be right, to be read after "the loop"; "" where it is exact.
    """

    count: int | None
    doubt: str = ""


UNKNOWN = Trips(
    None,
    "turns as often as data say; it is counted once: too few if it turns more often",
)


@dataclasses.dataclass(frozen=True)
class _Value:
    """An instruction where it stands: what parameters of a fused computation are, is `given`; of
    others it is None.
    """

    line: Instruction
    lines: Lines
    given: tuple[_Value | None, ...] | None = None

    def operand(self, number: int) -> _Value | None:
        names = self.line.operands
        line = self.lines.get(names[number]) if number < len(names) else None
        return _Value(line, self.lines, self.given) if line else None


def trips(loop: Instruction, caller: Lines, computations: Computations) -> Trips:
    """How often a loop turns.

    Args:
      loop: a `while`.
      caller: the instructions of the computation that it stands in, by name.
      computations: all of them.
    """
    if known := _KNOWN.search(loop.rest):
        return Trips(int(known[1]))
    parts = {part: p.search(loop.rest) for part, p in _NAMED.items()}
    condition = computations.get(parts["condition"][1], {}) if parts["condition"] else {}
    body = computations.get(parts["body"][1], {}) if parts["body"] else {}
    tests = list(_tests(_root(condition), computations))
    start = _Value(loop, caller)
    found = [_counted(test, start, body, computations) for test in tests]
    counts = [one for one in found if one.count is not None]
    if not counts:
        return UNKNOWN
    least = min(counts, key=lambda one: one.count or 0)
    if len(tests) == 1 or least.count == 0:
        return least
    if least.count is None or least.count >= _NO_LIMIT:
        return UNKNOWN
    if least.doubt:
        return Trips(least.count, f"{least.doubt}, and may stop before")
    return Trips(least.count, f"turns at most {least.count:,} times and is counted so")


def _counted(test: _Value, loop: _Value, body: Lines, computations: Computations) -> Trips:
    """What one comparison of a condition allows for."""
    sides = [_followed(test.operand(number), computations) for number in (0, 1)]
    direction = _DIRECTION.search(test.line.rest)
    index, bound = _element(sides[0]), _constant(sides[1])
    if test.line.opcode != "compare" or index is None or bound is None or direction is None:
        return UNKNOWN
    step = _step(body, index, computations)
    if not step:
        return UNKNOWN
    start = _start(loop, index, computations)
    if start is not None:
        count = _count(start, bound, step, direction[1])
        return UNKNOWN if count is None else Trips(count)
    if step < 0 or not 0 <= bound < _NO_LIMIT:
        return UNKNOWN
    count = _count(0, bound, step, direction[1])
    if count is None:
        return UNKNOWN
    return Trips(count, f"starts where data say; it is counted as from 0, for {count:,} turns")


def _count(start: int, bound: int, step: int, direction: str) -> int | None:
    """None where the numbers never meet, or the wrong way round."""
    if direction == "EQ":
        return int(start == bound)
    if direction == "NE":
        turns, rest = divmod(bound - start, step)
        return turns if turns >= 0 and not rest else None
    if (direction in ("LT", "LE")) != (step > 0):
        return None
    if direction in ("LE", "GE"):
        bound += 1 if direction == "LE" else -1
    return max(0, -((start - bound) // step)) if step > 0 else max(0, -((bound - start) // -step))


def _tests(value: _Value | None, computations: Computations) -> Iterable[_Value]:
    """What must hold for another turn, all of it."""
    made = _followed(value, computations) or value
    if made is not None and made.line.opcode == "and":
        for number in (0, 1):
            yield from _tests(made.operand(number), computations)
    elif made is not None:
        yield made


def _root(lines: Lines, given: tuple[_Value | None, ...] | None = None) -> _Value | None:
    line = next((line for line in lines.values() if line.root), None)
    return _Value(line, lines, given) if line else None


def _followed(value: _Value | None, computations: Computations) -> _Value | None:
    """What a value is a copy of, into fusions and out of them."""
    while value is not None:
        line = value.line
        if line.opcode in _SAME and line.operands:
            value = value.operand(0)
        elif line.opcode == "fusion":
            value = _inside(value, computations)
        elif line.opcode == "parameter" and value.given is not None:
            number = int(line.rest.split(")")[0])
            value = value.given[number] if number < len(value.given) else None
        elif line.opcode == "get-tuple-element" and (made := _part(value, computations)):
            value = made
        else:
            return value
    return None


def _inside(fusion: _Value, computations: Computations) -> _Value | None:
    """The root of what is fused."""
    given = tuple(fusion.operand(number) for number in range(len(fusion.line.operands)))
    return _root(computations.get(next(iter(fusion.line.called), ""), {}), given)


def _part(element: _Value, computations: Computations) -> _Value | None:
    """What makes an element of the result of a fusion with several; None of other tuples."""
    index, source = _INDEX.search(element.line.rest), element.operand(0)
    if index is None or source is None or source.line.opcode != "fusion":
        return None
    root = _inside(source, computations)
    return root.operand(int(index[1])) if root and root.line.opcode == "tuple" else None


def _element(value: _Value | None) -> int | None:
    """Number of the element of the loop's state that a value is."""
    if value is None or value.line.opcode != "get-tuple-element":
        return None
    index, state = _INDEX.search(value.line.rest), value.operand(0)
    return int(index[1]) if index and state and state.line.opcode == "parameter" else None


def _constant(value: _Value | None) -> int | None:
    if value is None or value.line.opcode != "constant" or not _WHOLE.match(value.line.type):
        return None
    number = re.match(r"(-?\d+)\)", value.line.rest)
    return int(number[1]) if number else None


def _start(loop: _Value, index: int, computations: Computations) -> int | None:
    given = _followed(loop.operand(0), computations)
    if given is None or given.line.opcode != "tuple":
        return None
    return _constant(_followed(given.operand(index), computations))


def _step(body: Lines, index: int, computations: Computations) -> int | None:
    result = _root(body)
    if result is None or result.line.opcode != "tuple":
        return None
    value = _followed(result.operand(index), computations)
    if value is None or value.line.opcode not in ("add", "subtract"):
        return None
    first, second = (_followed(value.operand(number), computations) for number in (0, 1))
    if _element(first) == index and (step := _constant(second)) is not None:
        return step if value.line.opcode == "add" else -step
    if value.line.opcode == "add" and _element(second) == index:
        return _constant(first)
    return None
