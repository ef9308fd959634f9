"""The metrics of a run in columns, read once; what is drawn is thinned to what a page can show."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_COLUMNS = 20_000  # (kind, name); a file from elsewhere may hold any number of names
MOST_ALERTS = 2_000
ALERT = "alert"


class Column:
    """One figure: int64 steps and float64 values, in the order of the file."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")
        self.whole = True  # every value was an integer

    def add(self, step: int, value: float) -> None:
        """Appends a value; integers of up to 64 bits, floats, NaN and infinities."""
        self._steps.append(step)
        self._values.append(value)
        self.whole = self.whole and isinstance(value, int)

    @property
    def steps(self) -> np.ndarray:
        """int64 [N]."""
        return np.frombuffer(self._steps, np.int64)

    @property
    def values(self) -> np.ndarray:
        """float64 [N]."""
        return np.frombuffer(self._values, np.float64)


class Metrics:
    """What the records of a run say.

    Attributes:
      columns: kind -> name -> column, of every number.
      alerts: records of kind "alert".
      left_out: values of names beyond `MOST_COLUMNS`, and alerts beyond `MOST_ALERTS`.
    """

    def __init__(self) -> None:
        self.columns: dict[str, dict[str, Column]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.left_out = 0
        self._count = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes one record of `trainlib.run.metric_writers.read`."""
        kind, step = record.get("kind", "train"), record["step"]
        if kind == ALERT:
            if len(self.alerts) < MOST_ALERTS:
                self.alerts.append(dict(record))
            else:
                self.left_out += 1
            return
        columns = self.columns.setdefault(kind, {})
        for name, value in record.items():
            if type(value) not in (float, int) or name == "step":
                continue
            column = columns.get(name)
            if column is None:
                if self._count == MOST_COLUMNS:
                    self.left_out += 1
                    continue
                self._count += 1
                column = columns[name] = Column()
            column.add(step, value)

    def of(self, kind: str) -> dict[str, Column]:
        """The columns of a kind; empty where no record has it."""
        return self.columns.get(kind, {})


@dataclasses.dataclass(frozen=True)
class Thinned:
    """A curve of a bounded number of points, each of a range of steps.

    Attributes:
      steps: int64 [P], the last step of each range.
      means: float64 [P], NaN where nothing is finite.
      low: float64 [P], the smallest finite value; equal to `means` where a point is one value.
      high: the same, the largest.
      bad: the first steps whose values are not finite.
      exact: whether every point is one value.
    """

    steps: np.ndarray
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bad: list[int]
    exact: bool


MOST_BAD = 50


def thin(column: Column, most: int) -> Thinned:
    """At most `most` points; exact where there are no more."""
    steps, values = column.steps, column.values
    finite = np.isfinite(values)
    bad = [int(step) for step in steps[~finite][:MOST_BAD]]
    if len(steps) <= most:
        shown = np.where(finite, values, np.nan)
        return Thinned(steps, shown, shown, shown, bad, True)
    starts = _starts(steps, most)
    ends = np.append(starts[1:], len(steps)) - 1
    counts = np.add.reduceat(finite.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    none = counts == 0
    means = np.where(none, np.nan, sums / np.maximum(1, counts))
    return Thinned(
        steps[ends], means, np.where(none, np.nan, low), np.where(none, np.nan, high), bad, False
    )


def _starts(steps: np.ndarray, most: int) -> np.ndarray:
    """Where ranges of equally many steps begin, as positions; no range is empty."""
    first, last = int(steps[0]), int(steps[-1])
    share = (steps - first) / max(1, last - first)
    # Files that were mended by hand may go back in steps: a range then lasts until the next one.
    number = np.maximum.accumulate(np.minimum((share * most).astype(np.int64), most - 1))
    return np.flatnonzero(np.append(True, np.diff(number) > 0))


def rounded(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """For JSON: so many significant digits, and None for what is not finite."""
    return [
        None if value != value or value in (np.inf, -np.inf) else _short(value, digits)
        for value in values.tolist()
    ]


def _short(value: float, digits: int) -> float | int:
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
