"""A run of a sparse model as training leaves it, without training: routers, goodput over a resume,
alerts, checkpoints, origins, samples.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from launch.reporting.samples import digest
from trainlib.checkpoint import manifest
from trainlib.report import samples
from trainlib.run.metric_writers import Writers

EVIL = "</script><img src=x onerror=alert(1)>"
LAYERS, EXPERTS = ("decoder.3", "encoder.3", "encoder.11"), 4
CONFIG = {
    "family": "moe",
    "name": "small",
    "steps": 100,
    "seed": 0,
    "batch_size": 8,
    "schedule.learning_rate": 0.25,
}


def make(workdir: Path, *, steps: int = 100, faster: float = 1.0, **config: Any) -> Path:
    """Writes the run; a larger `faster` lets its loss fall faster."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(CONFIG | {"steps": steps} | config))
    origin = dict.fromkeys(CONFIG, "small.py") | {"seed": "default", "steps": "command line"}
    (workdir / "config_origin.json").write_text(json.dumps(origin))
    writers = Writers(workdir, tensorboard=False)
    for step in range(1, steps + 1):
        writers.write(step, "train", train_values(step, steps, faster))
        if step % (steps // 5) == 0:
            accuracy = 0.5 + 0.4 * step / steps
            writers.write(step, "eval", {"accuracy": accuracy, "cross_entropy": 2 - accuracy})
            writers.write(step, "goodput", goodput(step, steps))
    alert = {"alert": "dead_expert", "where": "decoder.3", "value": 0.0, "bound": 0.01}
    words = {"text": "Expert 1 is sent nothing.", "advice": "Raise routing.balance_loss."}
    writers.write(steps * 4 // 5, "alert", alert | words)
    writers.close()
    for step in (steps // 2, steps):
        checkpoint(workdir / "checkpoints" / str(step), step)
    return workdir


def train_values(step: int, steps: int, faster: float) -> dict[str, float]:
    """What a step measures; the loss of one is not a number, and an expert dies on the way."""
    at = step / steps
    values = {"loss": 1 + 5 * math.exp(-4 * faster * at), "grad_norm": 1.0 + 0.1 * (step % 3)}
    values |= {"learning_rate": 0.25, "skipped": 0.0}
    if step == steps // 4:
        values["loss"] = math.nan
    for layer in LAYERS:
        shares = [0.4, 0.3, 0.2, 0.1] if at < 0.7 or layer != "decoder.3" else [0.6, 0, 0.2, 0.2]
        values |= {f"router/{layer}/load_{n}": share for n, share in enumerate(shares)}
        values[f"router/{layer}/dropped_choices"] = 0.1 * at
        values[f"router/{layer}/nonfinite"] = 0.0
    return values


def goodput(step: int, steps: int) -> dict[str, float]:
    """Ten seconds of start and a tenth of a second a step; started again after two fifths."""
    again = step > steps * 2 // 5
    since = step - (steps * 2 // 5 if again else 0)
    start = 12.0 if again else 10.0
    seconds = start + 0.1 * since
    shares = {"steps": 0.1 * since / seconds, "start": start / seconds}
    rest = dict.fromkeys(("input_wait", "checkpoint_stall", "evaluation"), 0.0)
    return {**shares, **rest, "seconds": seconds, "examples_per_second": 80.0, "mfu": 0.5}


def checkpoint(path: Path, step: int) -> None:
    """A step directory that a manifest describes."""
    path.mkdir(parents=True)
    (path / "data").write_bytes(b"0" * 1000)
    leaf = manifest.Leaf((2, 3), "float32", "0123456789abcdef")
    meta = {"platform": {"devices": 8, "kind": "TPU v5e"}, "versions": {"jax": "0.10.2"}}
    found = manifest.Manifest(
        step, {"params/embed": leaf}, {"data": 1000}, {}, meta, {"accuracy": 0.5 + step / 4_000}
    )
    manifest.write(path, found)


def answers(workdir: Path, step: int, title: str = "copa 3") -> None:
    """A sample of each kind: a picture with shares, and an answer beside its truth."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    picture = samples.Picture("the input", file.getvalue())
    seen = samples.Sample("image 7", True, shares=(("cat", 0.75),), pictures=(picture,))
    compared = (samples.Compared("answer", "True", "False", False),)
    read = samples.Sample(title, False, (("input", "A text."),), compared)
    weights = digest(manifest.read(workdir / "checkpoints" / str(step)))
    samples.write(workdir, samples.Samples(step, "Held-out examples.", (seen, read), weights, 48))
