"""A row of a benchmark: our time over a peer's, the goal beside it, and whether it is met.

times = timing.fastest({"ours": ours, "torch": peer}, rounds)
return goals.report("ResNet-50 step", times, [Goal("ours", "torch", 0.95, aim=0.85)])
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Goal:
    """The time of one candidate is at most so many times that of another.

    Attributes:
      ours: name of a candidate.
      peer: name of the candidate, or floor, that it is compared with.
      most: largest ratio that meets the goal.
      aim: the ratio hoped for; it decides nothing.
    """

    ours: str
    peer: str
    most: float
    aim: float | None = None


def report(title: str, times: Mapping[str, float], goals: Sequence[Goal], unit: str = "ms") -> int:
    """Prints every time, then every ratio with its goal, as lines and as one line of JSON.

    Args:
      title: what was done, with its sizes.
      times: candidate -> time (or another cost, of which less is better).
      goals: those of this row.
      unit: of the times.

    Returns:
      The exit code: 0, or 1 if a goal is missed or a candidate is missing.
    """
    print(f"\n{title}")
    wide = max((len(name) for name in times), default=0)
    for name, time in times.items():
        print(f"  {name:{wide}} {time:12.4g} {unit}")
    rows = []
    for goal in goals:
        row = {"ours": goal.ours, "peer": goal.peer, "ratio": None, **_limits(goal), "met": False}
        if goal.ours in times and goal.peer in times:
            row["ratio"] = round(times[goal.ours] / times[goal.peer], 4)
            row["met"] = row["ratio"] <= goal.most
        rows.append(row)
    for row in rows:
        ratio = "not measured" if row["ratio"] is None else f"{row['ratio']:.3f}"
        aim = f", aim {row['aim']:.2f}" if "aim" in row else ""
        verdict = "met" if row["met"] else "MISSED"
        print(
            f"ratio {row['ours']} / {row['peer']}: {ratio} (goal {row['goal']:.2f}{aim}) {verdict}"
        )
    print(
        "RATIOS " + json.dumps({"title": title, "unit": unit, "times": dict(times), "rows": rows})
    )
    return 0 if all(row["met"] for row in rows) else 1


def _limits(goal: Goal) -> dict[str, float]:
    return {"goal": goal.most} | ({} if goal.aim is None else {"aim": goal.aim})
