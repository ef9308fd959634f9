"""Runs as training leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainlib.run.metric_writers import Writers


def make(workdir: Path, steps: int = 30, done: int = 30, loss: float = 1.0, **config: Any) -> Path:
    """A run of the vision family whose loss falls from step to step, evaluated every ten steps."""
    workdir.mkdir(parents=True)
    base = {"family": "vitattn", "name": "small", "steps": steps, "seed": 0, "batch_size": 8}
    (workdir / "config.json").write_text(json.dumps(base | config))
    writers = Writers(workdir, tensorboard=False)
    for step in range(1, done + 1):
        writers.write(step, "train", {"loss": loss + 1 / step, "router/encoder.1/load_0": 1.0})
        if step % 10 == 0:
            top1 = 0.9 - abs(step - 20) / 100 - loss / 10  # best at 20
            writers.write(step, "eval", {"loss": loss, "top1": top1, "examples": 5})
            writers.write(step, "goodput", {"examples_per_second": 1000.0 * loss})
    writers.close()
    return workdir
