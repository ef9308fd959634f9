"""Time and traffic of every operation of a compiled program, by the compiler's own account."""

from trainlib.planning.ledger.operation import Finding, Group, Operation

__all__ = ["Finding", "Group", "Operation"]
