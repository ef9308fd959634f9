"""Records that cannot be read: counted, named, and skipped up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from trainlib.errors import DataError


class BadRecords:
    """Counts and names records that could not be read, and stops the run when they are too many.

    Records are counted once, however many epochs meet them, against the records seen so far (at
    most all N). The run stops when the count exceeds `max_fraction` of the records seen; a few are
    let through whatever the fraction, so that one bad file early in a run is not "100 % of what was
    read": 5, or one in twenty of a smaller set. With `max_fraction=0` the first one stops the run.
    """

    def __init__(self, records: int, max_fraction: float, describe: Callable[[Any], str]):
        self._records = records
        self._max_fraction = max_fraction
        self._describe = describe
        self._known: dict[Hashable, tuple[str, str]] = {}
        self._met = 0

    @property
    def listed(self) -> list[tuple[str, str]]:
        """(where, why) of each bad record, in the order of discovery."""
        return list(self._known.values())

    def count(self, records: int, bad: Sequence[tuple[Hashable, str]]) -> None:
        """Takes note of a batch of `records` records, of which `bad` (record, reason) could not be
        read; `describe` names a record.

        Raises:
          DataError: too many are bad; the message lists them.
        """
        self._met += records
        new = [(number, reason) for number, reason in bad if number not in self._known]
        for number, reason in new:
            self._known[number] = (self._describe(number), reason)
        if not new:
            return
        seen = min(self._met, self._records)
        tolerated = min(5, self._records // 20) if self._max_fraction > 0 else 0
        if len(self._known) > max(tolerated, self._max_fraction * seen):
            raise DataError(self._message(seen))

    def _message(self, seen: int, most: int = 20) -> str:
        names = "; ".join(f"{where}: {why}" for where, why in self.listed[:most])
        rest = len(self._known) - most
        more = f"; and {rest} more" if rest > 0 else ""
        return (
            f"{len(self._known)} of the {seen} records read so far cannot be used, more than "
            f"data.max_bad_fraction={self._max_fraction:g} allows. They are: {names}{more}. "
            "Repair or remove them, or raise --config.data.max_bad_fraction to train without "
            "them."
        )
