"""The time of a step: predicted from the schedule of the compiled program where the compiler says
what operations take (TPUs), else a bound at an assumed share of the peak (GPUs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainlib.chips import DCN_BANDWIDTH, Target
from trainlib.planning.compile import Result
from trainlib.planning.profile.figures import Profile, Subject

USUAL_MFU = 0.5  # assumed for targets without a prediction
BOUNDS = {
    "arithmetic_at_peak": "arithmetic, peak",
    "arithmetic_at_mfu": "  at {assumed} of it",
    "memory": "memory",
    "links": "links",
    "between_slices": "between slices",
}


def is_predicted(target: Target) -> bool:
    """Whether the step time of a target is predicted, and not assumed."""
    return bool(target.chip.clock)


def step_time(target: Target, result: Result, mfu: float | None) -> dict[str, Any]:
    """What a step takes, and what that is made of.

    Args:
      target: that it was compiled for.
      result: of a program that fits.
      mfu: assumed share of the peak, in (0, 1], where nothing is predicted; None: `USUAL_MFU`.

    Returns:
      Seconds, as plain data: "seconds" of a step; "predicted", whether by a schedule; "bounds",
      below which no step can be. A prediction also has "sum" (one operation after the other),
      "at_bandwidth" (if what only streams ran at the bandwidth of the memory),
      "core" (of it the core computes), "waits" by what for, "made_of" by kind of operation,
      "passes", "hbm_bytes" and its share "of_bandwidth", "uncounted" operations, "compiler", and
      "assumptions", a sentence each. A bound has "assumed_mfu".
    """
    if is_predicted(target) and result.ledger is not None:
        return _predicted(target, result)
    bounds = _bounds(target, result)
    assumed = USUAL_MFU if mfu is None else mfu
    bounds["arithmetic_at_mfu"] = bounds["arithmetic_at_peak"] / assumed
    longest = max(value for name, value in bounds.items() if name != "arithmetic_at_peak")
    return {"seconds": longest, "predicted": False, "assumed_mfu": assumed, "bounds": bounds}


def _predicted(target: Target, result: Result) -> dict[str, Any]:
    assert result.ledger is not None
    ledger = result.ledger
    profile = Profile(ledger, Subject("", target.name))
    return {
        "seconds": profile.seconds,
        "predicted": True,
        "sum": ledger.seconds,
        "at_bandwidth": ledger.seconds_at_bandwidth,
        "core": ledger.schedule.core_seconds,
        "waits": dict(profile.waits),
        "exposed_communication": ledger.schedule.exposed_communication,
        "made_of": dict(profile.families),
        "passes": dict(profile.phases),
        "hbm_bytes": ledger.hbm_bytes,
        "of_bandwidth": profile.hbm_share,
        "uncounted": len(ledger.uncounted),
        "compiler": ledger.compiler,
        "assumptions": list(ledger.schedule.assumptions),
        "bounds": _bounds(target, result) | _of_schedule(ledger.schedule.bounds),
    }


def _of_schedule(bounds: Mapping[str, float]) -> dict[str, float]:
    """Bounds that the operations tell better than totals: all bytes, and the busiest link."""
    return {name: bounds[name] for name in ("memory", "links") if name in bounds}


def _bounds(target: Target, result: Result) -> dict[str, float]:
    """Arithmetic at the chip's peak, every byte through memory at its bandwidth, and every byte
    between devices over all links at once.
    """
    assert result.program is not None
    assert result.ledger is not None
    chip = target.chip
    totals = result.program.totals()
    slow = [one for one in totals if target.slices > 1 and "replica" in one.axes]
    fast = [one for one in totals if one not in slow]
    return {
        "arithmetic_at_peak": result.flops / target.devices / chip.flops,
        "memory": result.ledger.hbm_bytes / chip.hbm_bandwidth,
        "links": sum(one.wire_bytes for one in fast) / chip.ici_bandwidth,
        "between_slices": sum(one.wire_bytes for one in slow) / DCN_BANDWIDTH,
    }
