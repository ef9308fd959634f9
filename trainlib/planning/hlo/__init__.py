"""What a compiled program says in the text of its optimised HLO."""

from trainlib.planning.hlo.instruction import Instruction
from trainlib.planning.hlo.program import (
    KINDS,
    OTHER,
    Collective,
    Program,
    Total,
    array_bytes,
    involuntary,
)

__all__ = [
    "KINDS",
    "OTHER",
    "Collective",
    "Instruction",
    "Program",
    "Total",
    "array_bytes",
    "involuntary",
]
