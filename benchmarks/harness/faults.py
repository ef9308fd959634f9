"""Runs a training that dies by SIGKILL at a chosen moment of a save.

    python -m benchmarks.harness.faults MOMENT STEP -- --config=... --workdir=...

The moment is seen from outside, by Python's audit events for files: nothing in the product knows of
faults.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

TEMPORARY = r"/{step}\.orbax-checkpoint-tmp"
# Moment -> event and the path that it is about.
MOMENTS = {
    "before_tmp": ("os.mkdir", TEMPORARY),
    "mid_shard": ("open", TEMPORARY),
    "before_rename": ("os.rename", TEMPORARY),
    "after_rename": ("open", r"/{step}/manifest\.json\.tmp"),
    "before_manifest": ("os.rename", r"/{step}/manifest\.json\.tmp"),
    "during_gc": ("shutil.rmtree", r"/\d+\.removing"),
}


def die_at(moment: str, step: int) -> None:
    """Kills this process, without any cleaning up, when the save of `step` comes to `moment`."""
    wanted, pattern = MOMENTS[moment]
    path = re.compile(pattern.format(step=step))

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == wanted and path.search(str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def main(arguments: list[str]) -> int:
    """Arms the fault and trains."""
    moment, step, _, *rest = arguments
    die_at(moment, int(step))
    from launch import train

    return train.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
