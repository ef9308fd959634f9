"""Seconds to the first step of `make train`, with an empty cache of programs and from a full one.

There is no peer in the same process: PyTorch runs without compiling and has its first step after a
few seconds. It is wall time, of the whole command, so the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import timing
from benchmarks.harness.goals import Goal, report

COLD, WARM = 20.0, 8.0  # seconds


def first_step(workdir: Path, programs: Path) -> float:
    """Seconds from the start of the command to the line that tells of the first step."""
    command = [sys.executable, "-u", "-m", "launch.train"]
    command += ["--config=configs/aa_resnet50.py:digits", f"--workdir={workdir}"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, f"--compile_cache={programs}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("first step after"):
                return time.monotonic() - started
    finally:
        process.kill()
        process.wait()
    raise SystemExit("The run ended before its first step:\n" + "".join(said))


def main() -> int:
    """Prints the seconds of both starts; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="starts of each kind")
    rounds = parser.parse_args().rounds
    print(timing.header())
    cold, warm = [], []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="first_step"))
        try:
            (folder / "programs").mkdir(mode=0o700)
            cold.append(first_step(folder / "cold", folder / "programs"))
            warm.append(first_step(folder / "warm", folder / "programs"))
        finally:
            shutil.rmtree(folder)
    times = {"cold": min(cold), "warm": min(warm), "20 s": COLD, "8 s": WARM}
    goals = [Goal("cold", "20 s", 1.0), Goal("warm", "8 s", 1.0)]
    return report("first step of make train, wall time", times, goals, "s")


if __name__ == "__main__":
    sys.exit(main())
