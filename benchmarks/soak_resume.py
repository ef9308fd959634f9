"""Faults of every kind, at random, and whether each resumed run is still the unbroken one.

    python -m benchmarks.soak_resume [--faults=25] [--family=vitattn|moe] [--seed=0]

For each family a tiny model is trained once without a fault. Then runs of the same configuration
are killed (anywhere, and at each moment of a save), stopped and paused; steps rot or are joined by
half-copied ones; the disk fills up. After every fault the same command starts again, and its losses
must be those of the unbroken run, bit for bit. The last line counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.faults import MOMENTS

ROOT = Path(__file__).resolve().parents[1]
EVERY = 10  # steps between checkpoints
STEPS = 120
COMMON = (f"--config.checkpoint.every={EVERY}", f"--config.steps={STEPS}", "--config.eval_every=0")
TINY = {
    "vitattn": (
        "--config=configs/aa_resnet50.py:digits",
        *("--config.model.blocks=1,1,1,1", "--config.model.width=0.25", "--config.batch_size=8"),
        *("--config.model.attention.num_heads=2", "--config.model.attention.min_key_depth=4"),
    ),
    "moe": (
        "--config=configs/st_moe_tiny.py",
        *("--config.model.d_model=32", "--config.model.d_ff=32", "--config.model.num_heads=2"),
        *("--config.model.head_dim=16", "--config.model.vocab_size=384"),
        *("--config.model.encoder_blocks=1", "--config.model.decoder_blocks=1"),
        *("--config.model.sparse_period=1", "--config.routing.num_experts=2"),
        *("--config.model.dropout=0.1", "--config.routing.jitter=0.01"),
        *("--config.data.encoder_length=48", "--config.data.decoder_length=24"),
        *("--config.batch_size=8", "--config.eval_batches=2", "--config.data.workers=0"),
    ),
}


class Runs:
    """Trainings of one family below one directory, with a compilation cache between them."""

    def __init__(self, family: str, folder: Path):
        self.folder, self.started = folder, 0
        self.arguments = [*TINY[family], *COMMON]
        if family == "moe":
            self.arguments.append(f"--config.data.cache={folder / 'tokens'}")
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(
        self, workdir: Path, *words: str, before: Callable[[], None] | None = None
    ) -> subprocess.Popen:
        """Starts a training; `words` come before its own arguments, in place of launch.train."""
        words = words or ("launch.train",)
        self.started += 1
        return subprocess.Popen(
            [sys.executable, "-m", *words, *self.arguments, f"--workdir={workdir}"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"errors{self.started}.txt").open("w"),
            preexec_fn=before,
        )


def losses(workdir: Path) -> list[tuple[int, str]]:
    """(step, loss as written) of the whole lines of the metrics; what is written reads back bit for
    bit.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(one["step"], repr(one["loss"])) for one in records if one["kind"] == "train"]


def steps(workdir: Path) -> list[int]:
    """Steps with a manifest, ascending."""
    manifests = (workdir / "checkpoints").glob("[0-9]*/manifest.json")
    return sorted(int(path.parent.name) for path in manifests if path.parent.name.isdecimal())


def reached(process: subprocess.Popen, workdir: Path, step: int) -> bool:
    """Waits until a run that has just started has written `step`; False when it ended before."""
    started, config = time.time(), workdir / "config.json"
    while process.poll() is None:
        fresh = config.exists() and config.stat().st_mtime > started
        if fresh and losses(workdir)[-1:] >= [(step, "")]:
            return True
        time.sleep(0.02)
    return False


def signalled(runs: Runs, workdir: Path, draw: random.Random, number: signal.Signals) -> str:
    """A signal at a random step of the run that starts now."""
    process = runs.start(workdir)
    first = (steps(workdir) or [0])[-1]
    step = first + draw.randint(1, 3 * EVERY)
    if reached(process, workdir, step):
        time.sleep(draw.random() * 0.3)
        process.send_signal(number)
    return f"at step {step}: exit code {process.wait()}"


def kill(runs: Runs, workdir: Path, draw: random.Random) -> str:
    return signalled(runs, workdir, draw, signal.SIGKILL)


def stop(runs: Runs, workdir: Path, draw: random.Random) -> str:
    return signalled(runs, workdir, draw, signal.SIGTERM)


def pause(runs: Runs, workdir: Path, draw: random.Random) -> str:
    """Stopped for a second, then killed."""
    process = runs.start(workdir)
    first = (steps(workdir) or [0])[-1]
    if reached(process, workdir, first + draw.randint(1, EVERY)):
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        time.sleep(draw.random())
        process.kill()
    return f"exit code {process.wait()}"


def kill_in_save(runs: Runs, workdir: Path, draw: random.Random) -> str:
    """At a moment of one of the next two saves."""
    moment = draw.choice(list(MOMENTS))
    step = ((steps(workdir) or [0])[-1] // EVERY + draw.choice((1, 2))) * EVERY
    process = runs.start(workdir, "benchmarks.harness.faults", moment, str(step), "--")
    return f"{moment} of {step}: exit code {process.wait()}"


def rot(runs: Runs, workdir: Path, draw: random.Random) -> str:
    """One bit of the newest step flips while nothing runs."""
    there = steps(workdir)
    files = [p for p in (workdir / "checkpoints" / str(there[-1])).rglob("*") if p.is_file()]
    path = draw.choices(files, [p.stat().st_size for p in files])[0]
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path.relative_to(workdir)}"


def half_copy(runs: Runs, workdir: Path, draw: random.Random) -> str:
    """A step that somebody's copy left unfinished appears."""
    there = steps(workdir)
    target = workdir / "checkpoints" / str(there[-1] + EVERY)
    if not target.exists():
        shutil.copytree(workdir / "checkpoints" / str(there[-1]), target)
        (target / "manifest.json").unlink()
    return str(target.relative_to(workdir))


def full_disk(runs: Runs, workdir: Path, draw: random.Random) -> str:
    """No file may grow past a few kilobytes: saves fail until the run gives up."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    return f"exit code {runs.start(workdir, before=limit).wait()}"


FAULTS = (kill, kill, kill_in_save, kill_in_save, stop, pause, full_disk, rot, half_copy)


def soak(family: str, faults: int, seed: int, folder: Path) -> tuple[int, int]:
    """Returns (faults, wrong resumes)."""
    runs, draw, wrong = Runs(family, folder), random.Random(seed), 0
    unbroken = folder / "unbroken"
    if runs.start(unbroken).wait():
        raise SystemExit((folder / "errors1.txt").read_text())
    expected = losses(unbroken)
    round_number = 0
    workdir = folder / "run0"
    for number in range(1, faults + 1):
        # One whole step has to stay beside one that rots.
        fault = draw.choice(FAULTS if len(steps(workdir)) > 1 else FAULTS[:-2])
        what = fault(runs, workdir, draw)
        finished = (losses(workdir) or [(0, "")])[-1][0] >= STEPS
        if finished or number == faults:
            code = runs.start(workdir).wait()
            good = code == 0 and losses(workdir) == expected
        else:
            good = losses(workdir) == expected[: len(losses(workdir))]
        wrong += not good
        print(
            f"{family} {number:3d} {fault.__name__:12s} {what}; "
            f"{len(losses(workdir))} steps {'equal' if good else 'DIFFERENT'}",
            flush=True,
        )
        if finished:
            shutil.rmtree(workdir)
            round_number += 1
            workdir = folder / f"run{round_number}"
    return faults, wrong


def main() -> int:
    """Prints a line for each fault, and the counts on the last line; 1 when a resume was wrong."""
    parser = argparse.ArgumentParser(description="Random faults against exact resumes.")
    parser.add_argument("--faults", type=int, default=25, help="of each family")
    parser.add_argument("--family", choices=list(TINY), help="one family alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = wrong = 0
    for family in [options.family] if options.family else list(TINY):
        folder = Path(tempfile.mkdtemp(prefix="soak"))
        try:
            counts = soak(family, options.faults, options.seed, folder)
        finally:
            shutil.rmtree(folder)
        faults, wrong = faults + counts[0], wrong + counts[1]
    print(f"{faults} faults, {wrong} wrong resumes")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
