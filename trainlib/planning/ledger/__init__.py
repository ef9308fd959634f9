"""Time and traffic of every operation of a compiled program, by the compiler's own account."""

from trainlib.planning.ledger.ledger import (
    Ledger,
    ledger_of,
    ledger_of_compiled,
    ledger_of_program,
)
from trainlib.planning.ledger.operation import Finding, Group, Operation

__all__ = [
    "Finding",
    "Group",
    "Ledger",
    "Operation",
    "ledger_of",
    "ledger_of_compiled",
    "ledger_of_program",
]
