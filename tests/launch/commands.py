"""Runs real commands in processes of their own, with a compilation cache between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.compiler import flags

ROOT = Path(__file__).resolve().parents[2]

# The published network at a width and depth that compile in seconds; everything else is as shipped.
TINY = (
    "--config=configs/aa_resnet50.py:digits",
    "--config.model.blocks=1,1,1,1",
    "--config.model.width=0.25",
    "--config.model.attention.num_heads=2",
    "--config.model.attention.min_key_depth=4",
    "--config.batch_size=32",
    "--config.schedule.warmup_steps=2",
    "--config.checkpoint.every=5",
    "--config.eval_every=0",
)


# A sparse encoder-decoder that compiles in seconds; the text is real.
TINY_MOE = (
    "--config=configs/st_moe_tiny.py",
    *(f"--config.model.{key}=32" for key in ("d_model", "d_ff")),
    *(f"--config.model.{key}=1" for key in ("encoder_blocks", "decoder_blocks", "sparse_period")),
    *("--config.model.num_heads=2", "--config.model.head_dim=16", "--config.model.vocab_size=384"),
    *("--config.model.dropout=0.1", "--config.routing.jitter=0.01"),  # every step draws
    *("--config.routing.num_experts=2", "--config.data.encoder_length=48"),
    *("--config.data.decoder_length=24", "--config.data.workers=0", "--config.batch_size=8"),
    *("--config.eval_every=0", "--config.eval_batches=2", "--config.checkpoint.every=3"),
)


def environment(cache: Path, devices: int = 1, **extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return env | extra


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"launch.{name}", *arguments]


def run(name: str, *arguments: str, cache: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        env=environment(cache, **extra),
        capture_output=True,
        text=True,
        timeout=1200,
    )


def stop_after(
    steps: int, number: signal.Signals, *arguments: str, cache: Path, workdir: Path
) -> subprocess.CompletedProcess[str]:
    """Starts a training and sends it a signal when `steps` steps stand in its metrics."""
    process = subprocess.Popen(
        command("train", *arguments, f"--workdir={workdir}"),
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 1200
    while len(losses(workdir)) < steps:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no step {steps}: {process.communicate()}")
        time.sleep(0.02)
    process.send_signal(number)
    out, error = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def killed(
    moment: str, step: int, *arguments: str, cache: Path, workdir: Path
) -> list[tuple[int, float]]:
    """Trains until the save of `step` comes to `moment`, and then dies; returns the losses."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.faults", moment, str(step), "--"]
        + [*arguments, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return losses(workdir)


def records(workdir: Path, kind: str) -> list[dict]:
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in found if record["kind"] == kind]


def losses(workdir: Path) -> list[tuple[int, float]]:
    """(step, loss) as written, which reads back bit for bit."""
    return [(record["step"], record["loss"]) for record in records(workdir, "train")]
