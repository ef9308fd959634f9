"""How much of a run's time and of its chips went into training.

MFU, model FLOPs utilisation (arXiv 2204.02311, appendix B): FLOPs that the model needs, over the
time that steps took, over the peak of the chips. What is recomputed to save memory does not count.
Goodput: the share of the wall clock that steps took, without waiting for data; the rest is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainlib import chips as targets
from trainlib.run.progress import Progress

TRAIN_FLOPS = 3  # a backward pass is two products for each one forward
OTHERS = {  # share -> what `Progress.spent` calls it
    "input_wait": "waiting for data",
    "checkpoint_stall": "saving",
    "evaluation": "evaluating",
    "start": "starting",
}


def peak_rate(forward_flops: Callable[[], float], devices: Sequence[Any]) -> float | None:
    """Examples per second at which the devices would run at their peak; None for unknown chips.

    Args:
      forward_flops: -> FLOPs of one example forward, multiply-add = 2; only asked for known chips.
      devices: all devices of the mesh.
    """
    chip = targets.chip_of(devices[0].device_kind)
    if chip is None:
        return None
    return chip.flops * len(devices) / (TRAIN_FLOPS * forward_flops())


def shares(spent: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Shares of a run's time, 0 to 1, that sum to 1: `steps`, and those of OTHERS.

    Args:
      spent: seconds of all but steps, from `Progress.spent`.
      seconds: the whole run so far.
    """
    parts = {name: spent.get(word, 0.0) / seconds for name, word in OTHERS.items()}
    return {"steps": max(0.0, 1.0 - sum(parts.values())), **parts}


def values(progress: Progress) -> dict[str, float]:
    """Figures for the metrics: throughput and MFU over the run (where known), the shares, and the
    seconds since this start of the run, of which they are shares.
    """
    speed, seconds = progress.average(), progress.seconds()
    found = shares(progress.spent(), seconds) | {"seconds": seconds}
    if speed.examples_per_second is not None:
        found["examples_per_second"] = speed.examples_per_second
    if speed.mfu is not None:
        found["mfu"] = speed.mfu
    return found


def rows(progress: Progress, devices: Sequence[Any]) -> dict[str, str]:
    """Rows of the summary of a run."""
    kind = devices[0].device_kind
    chip, mfu = targets.chip_of(kind), progress.average().mfu
    if chip is None:
        told = f"unknown: no peak figure for a {kind} (trainlib/chips.py)"
    elif mfu is None:
        told = "unknown: fewer than two steps"
    else:
        told = f"{percent(mfu, 1)} of {len(devices)} x {chip.flops / 1e12:,.0f} TFLOP/s ({kind})"
    return {"MFU": told, "time went to": phrase(shares(progress.spent(), progress.seconds()))}


_LARGEST = 1e4  # no share that anything measured is larger


def percent(share: Any, digits: int = 0) -> str:
    """A share in words; "unknown" where it is none, as files of others may hold."""
    known = isinstance(share, int | float) and 0 <= share < _LARGEST  # not for NaN
    return f"{100 * share:.{digits}f} %" if known else "unknown"


def phrase(parts: Mapping[str, float]) -> str:
    """Shares as words: `steps 82 %, data 1 %, saves 2 %, evaluation 3 %, start 12 %`."""
    words = {"input_wait": "data", "checkpoint_stall": "saves"}
    names = ("steps", *OTHERS)
    return ", ".join(f"{words.get(name, name)} {percent(parts.get(name, 0.0))}" for name in names)
