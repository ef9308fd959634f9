"""One line of an optimised HLO: `%name = type opcode(operands), attributes`."""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property

from trainlib.planning.hlo.layout import Array, arrays

_LINE = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|select|scatter)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes
    root: bool = False

    @cached_property
    def operands(self) -> list[str]:
        """Names of its operands."""
        end = self.rest.find(")")
        if "(" in self.rest[:end] or "{" in self.rest[:end]:
            end = self._end_of_operands()
        return _NAME.findall(self.rest[:end])

    def _end_of_operands(self) -> int:
        depth = 1
        for position, letter in enumerate(self.rest):
            depth += (letter in "({") - (letter in ")}")
            if not depth:
                return position
        return len(self.rest)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Of its result, with layouts; several where it is a tuple."""
        return arrays(self.type)

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; "" where it does not say."""
        found = _OP_NAME.search(self.rest)
        return re.sub(r'\\(["\\\'])', r"\1", found[1]) if found else ""

    @property
    def frame(self) -> int:
        """Number of the innermost frame in `Program.frames`; 0 where it does not say."""
        found = _FRAME.search(self.rest)
        return int(found[1]) if found else 0

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one run."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else None

    @property
    def custom_call_target(self) -> str:
        """What a custom call calls, or ""."""
        found = _TARGET.search(self.rest) if self.opcode.startswith("custom-call") else None
        return found[1] if found else ""

    @cached_property
    def called(self) -> list[str]:
        """Computations it names, loops and conditionals apart from others included."""
        names = _CALLED.findall(self.rest)
        for listed, single in _BRANCHES.findall(self.rest):
            names += re.findall(r"[\w.\-]+", listed) if listed else [single]
        return names


def parse(line: str) -> Instruction | None:
    """The instruction of a stripped line; None where it holds none."""
    counted = _LINE.match(line)
    if not counted:
        return None
    # The type may be a tuple with comments and layouts full of brackets; no opcode stands in it.
    body = counted[2]
    start = 0
    if body.startswith("("):
        depth = 0
        for start, letter in enumerate(body):  # noqa: B007
            depth += (letter == "(") - (letter == ")")
            if not depth:
                break
    opcode = _OPCODE.search(body, start)
    if not opcode:
        return None
    rest = body[opcode.end() :]
    return Instruction(
        counted[1], body[: opcode.start()], opcode[1], rest, line.startswith("ROOT ")
    )
