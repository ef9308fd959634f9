"""How fast a run was, and what its time went to, from one record of goodput to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.reporting.metrics import Metrics
from trainlib.run.goodput import OTHERS

PARTS = ("steps", *OTHERS)
MOST_INTERVALS = 200


def intervals(metrics: Metrics, batch_size: int) -> dict[str, Any] | None:
    """The intervals between records, a resumed run counted on.

    Args:
      metrics: of a run.
      batch_size: examples in a step.

    Returns:
      clock: [[step, seconds that the run had taken until then]], from [0, 0] on, or from the step
        before which nobody measured time;
      parts: [[seconds of each of `PARTS`]], one list an interval;
      rate: examples per second of steps, None where no step was made; mfu: the same, None where
        the chip is unknown; starts: seconds at which the run was started.
      None where no record says how long the run took.
    """
    records = _records(metrics)
    if not records:
        return None
    clock, parts, rates, mfus, starts = [[_begin(metrics, records[0][0]), 0.0]], [], [], [], [0.0]
    before: Mapping[str, float] | None = None
    for step, record in records:
        if before is not None and _is_another_session(before, record):
            before = None
            starts.append(clock[-1][1])
        spent = [_seconds(record, part) - _seconds(before, part) for part in PARTS]
        spent = [max(0.0, seconds) for seconds in spent]
        seconds = record["seconds"] - (before["seconds"] if before else 0.0)
        examples = batch_size * (step - clock[-1][0])
        stepping = spent[0] + spent[1]
        rate = examples / stepping if stepping > 0 and examples > 0 else None
        average = record.get("examples_per_second", 0.0)
        clock.append([step, clock[-1][1] + max(0.0, seconds)])
        parts.append(spent)
        rates.append(rate)
        mfus.append(
            rate * record["mfu"] / average if rate and average and "mfu" in record else None
        )
        before = record
    return _thinned({"clock": clock, "parts": parts, "rate": rates, "mfu": mfus, "starts": starts})


def _records(metrics: Metrics) -> list[tuple[int, dict[str, float]]]:
    """(step, name -> value) of the records that can be read as time going by."""
    columns = metrics.of("goodput")
    found: dict[int, dict[str, float]] = {}
    for name, column in columns.items():
        for step, value in zip(column.steps.tolist(), column.values.tolist(), strict=True):
            if 0 <= value < 1e12:  # not NaN
                found.setdefault(step, {})[name] = value
    return [(step, found[step]) for step in sorted(found) if found[step].get("seconds", 0) > 0]


def _begin(metrics: Metrics, first: int) -> int:
    """The step from which time is known: that of the last record before, which does not say it."""
    column = metrics.of("goodput").get("steps")
    return max((step for step in column.steps.tolist() if step < first), default=0) if column else 0


def _seconds(record: Mapping[str, float] | None, part: str) -> float:
    return 0.0 if record is None else record.get(part, 0.0) * record["seconds"]


def _is_another_session(before: Mapping[str, float], record: Mapping[str, float]) -> bool:
    """Whether a run was started again between two records: its clock goes back, or it took
    another time to start, which does not change within a session.
    """
    was, now = (_seconds(one, "start") for one in (before, record))
    return record["seconds"] < before["seconds"] or abs(now - was) > 1e-6 * max(was, now)


def _thinned(found: dict[str, Any]) -> dict[str, Any]:
    """At most `MOST_INTERVALS` intervals, neighbours put together."""
    count = len(found["parts"])
    size = -(-count // MOST_INTERVALS)
    groups = [range(first, min(first + size, count)) for first in range(0, count, size)]

    def mean(values: Sequence[float | None], group: range) -> float | None:
        weights = [found["parts"][i][0] + found["parts"][i][1] for i in group]
        known = [
            (values[i], w) for i, w in zip(group, weights, strict=True) if values[i] is not None
        ]
        total = sum(w for _, w in known)
        return _short(sum((v or 0.0) * w for v, w in known) / total) if total else None

    clock = [found["clock"][0]] + [found["clock"][group[-1] + 1] for group in groups]
    columns = [list(zip(*(found["parts"][i] for i in group), strict=True)) for group in groups]
    return {
        "clock": [[step, _short(seconds)] for step, seconds in clock],
        "parts": [[_short(sum(part)) for part in column] for column in columns],
        "rate": [mean(found["rate"], group) for group in groups],
        "mfu": [mean(found["mfu"], group) for group in groups],
        "starts": [_short(seconds) for seconds in found["starts"][:MOST_INTERVALS]],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
