"""Format, loss mask, decoding, labels and metrics fit together: samples are learned by heart."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe.tasks import registry

ROOT = Path(__file__).resolve().parents[3]
CLASSIFICATION = ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc", "dpr")


def command(module, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu"
    }
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_sample_mixture_is_learned(tmp_path):
    """At least 99 % on what was trained on, in every classification task and every figure of it, by
    words that the model writes itself; minutes on 2 cores.
    """
    workdir, cache = f"--workdir={tmp_path / 'run'}", f"--config.data.cache={tmp_path / 'cache'}"
    command("train", "--config=configs/st_moe_superglue.py:sample", workdir, cache)
    found = command("evaluate", workdir, "--config.evaluation.split=train", "--json")
    scores = json.loads(found.splitlines()[-1])
    for task in CLASSIFICATION:
        figures = {n: v for n, v in scores.items() if n.startswith(f"score/{task}/")}
        assert figures, task
        assert min(figures.values()) >= 99, (task, figures)
    assert not math.isnan(scores["score/superglue"])
    assert set(CLASSIFICATION) | {"record"} == set(registry.GROUPS["superglue"])
