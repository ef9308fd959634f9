"""The CPU time that a step of a run takes, kept by a tracker: `writers.extra` is its `NAME`.

A run that shares its machine with others takes longer by the clock, and hardly more CPU time. A
median leaves out the stretches in which something was compiled, evaluated or saved. Each line of
the file has the start of the run, the step, and the CPU seconds of the process until then.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from trainlib.files import open_to_write

NAME = f"{__name__}:CpuClock"
FILE = "cpu.jsonl"  # in the workdir
EVERY = 10  # steps from one line to the next


class CpuClock:
    """Writes the CPU time of the process at every tenth training step."""

    def __init__(self, workdir: Path, config: dict[str, Any]):
        self._file = os.fdopen(open_to_write(workdir / FILE, append=True), "a")
        self._start = time.time_ns()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if "train/loss" in metrics and step % EVERY == 0:
            line = {"start": self._start, "step": step, "seconds": time.process_time()}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def seconds_a_step(workdir: Path) -> float:
    """The median CPU seconds of a step of a run, over stretches of ten; NaN where there is none."""
    file = workdir / FILE
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    stretches = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if before["start"] == after["start"] and before["step"] < after["step"]
    ]
    return statistics.median(stretches) if stretches else float("nan")
