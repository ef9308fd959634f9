"""What verifying checkpoints costs: digests against the save that they guard.

    python -m benchmarks.checkpoint [--megabytes=1024]

CPU time and wall time in one process, interleaved, the least of several rounds. A save is timed
from its call to the finished manifest. The last line is the ratio and its target.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from trainlib.checkpoint import digest
from trainlib.checkpoint.checkpoints import Checkpoints, to_flat
from trainlib.step.train_state import TrainState

TARGET = 0.05  # digest time over save time
LEAF_MEGABYTES = 64


def state_of(megabytes: int) -> TrainState:
    """A state of f32 noise, which does not compress, in leaves of 64 MB."""
    count, rows = max(1, megabytes // LEAF_MEGABYTES), LEAF_MEGABYTES * 256
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(lambda key: jax.random.normal(key, (rows, 1024)))
    return TrainState(
        step=jnp.int32(1),
        params={f"leaf{i}": draw(key) for i, key in enumerate(keys)},
        model_state={},
        opt_state=(),
        ema={},
        skipped=jnp.zeros(2, jnp.int32),
    )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(megabytes: int, rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Part -> least (wall, CPU) seconds of all rounds."""
    state = jax.block_until_ready(state_of(megabytes))
    flat = to_flat(state)
    digest.fingerprints(flat)  # compiles
    best: dict[str, tuple[float, float]] = {}
    for number in range(1, rounds + 1):
        checkpoints = Checkpoints(folder, keep=1)

        def save(number: int = number, checkpoints: Checkpoints = checkpoints) -> None:
            checkpoints.save(number, state, {})
            checkpoints.wait()

        seconds_of = {
            "digest": timed(lambda: digest.fingerprints(flat)),
            "save": timed(save),
            "restore": timed(lambda n=number, c=checkpoints: c.restore(n, state)),
        }
        checkpoints.close()
        for part, seconds in seconds_of.items():
            old = best.get(part, seconds)
            best[part] = (min(old[0], seconds[0]), min(old[1], seconds[1]))
    return best


def main() -> None:
    """Prints a table, and the ratio of the digest to the save on the last line."""
    parser = argparse.ArgumentParser(description="The cost of verified checkpoints.")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint"))
    try:
        best = measure(options.megabytes, options.rounds, folder)
    finally:
        shutil.rmtree(folder)
    gigabytes = options.megabytes / 1024
    for part, (wall, cpu) in best.items():
        print(f"{part:8s} {wall / gigabytes:6.2f} s/GB  CPU {cpu / gigabytes:6.2f} s/GB")
    wall, cpu = (best["digest"][i] / best["save"][i] for i in (0, 1))
    print(f"digest / save: {wall:.3f} (CPU time {cpu:.3f}), target <= {TARGET}")


if __name__ == "__main__":
    main()
