"""The first decoding of a process, compilation included, against `transformers`.

Each run is a process of its own, for what is compiled stays in it. Time is that of the first call
of `moe.generate`, and of `generate`, for the job of the row on decoding, without imports and
weights: once with an empty cache of programs on the disk and once with the one that this left
behind. A library user has the cache by `trainlib.compile_cache.enable()`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import goals, timing

FIRST, SECOND = 1.30, 1.0
_MARK = "SECONDS "


def _measured(options: argparse.Namespace) -> None:
    """In a process of its own: prints the CPU time of both first calls."""
    timing.pin_one_thread()
    import numpy as np

    import moe
    from benchmarks.harness import t5_pair
    from trainlib import compile_cache

    compile_cache.enable(options.programs)
    sizes = t5_pair.TINY if options.tiny else t5_pair.SMALL
    both = t5_pair.pair(sizes)
    words = t5_pair.inputs(sizes, 8, 64)
    start = time.process_time()
    found = np.asarray(moe.generate(both.ours, words, max_length=options.length).tokens)  # pyright: ignore[reportArgumentType]
    middle = time.process_time()
    expected = both.generate(words, options.length)
    end = time.process_time()
    if not np.array_equal(found, expected):
        sys.exit(f"ours and transformers differ\n{found}\n{expected}")
    print(_MARK + json.dumps([middle - start, end - middle]))


def main() -> int:
    """Prints the row; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="words of an answer")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, for tests")
    parser.add_argument("--programs", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.programs:
        _measured(options)
        return 0
    timing.need_peers("torch", "transformers")
    print(timing.header(("jax", "jaxlib", "torch", "transformers")))
    times: dict[str, float] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("ours, empty cache", "ours, from the cache"):
                ours, theirs = _run(f"{folder}/programs")
                times[name] = min(times.get(name, ours), ours)
                times["transformers"] = min(times.get("transformers", theirs), theirs)
    limits = [
        goals.Goal("ours, empty cache", "transformers", FIRST),
        goals.Goal("ours, from the cache", "transformers", SECOND),
    ]
    title = f"first greedy decoding of T5 v1.1 {'tiny' if options.tiny else 'small'}, batch 8"
    return goals.report(title, times, limits, unit="s")


def _run(programs: str) -> list[float]:
    """CPU seconds of (ours, theirs) in a process of its own."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, *sys.argv[1:]]
    run = subprocess.run(
        [*command, f"--programs={programs}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith(_MARK)]
    if run.returncode or not lines:
        sys.exit(f"A run ended with {run.returncode}:\n{run.stdout}")
    return json.loads(lines[0].removeprefix(_MARK))


if __name__ == "__main__":
    sys.exit(main())
