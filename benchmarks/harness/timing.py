"""CPU-time ratios on a machine that others use too.

Wall time on a shared machine measures the neighbours. So candidates are timed by the CPU time of
this process, pinned to one core with one thread, in interleaved rounds, and the minimum of the
rounds counts. A number of another process or another day is not comparable; only ratios are
reported as results.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata

from trainlib.step import heap

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def need_peers(*packages: str) -> None:
    """Ends the program if one of these packages is not installed, before anything is measured."""
    absent = [name for name in packages if not importlib.util.find_spec(name)]
    if absent:
        raise SystemExit(
            f"This row compares with peers that are not installed: {', '.join(absent)}. In a "
            "checkout, install them by: pip install -c constraints.txt -e '.[bench]'"
        )


def pin_one_thread(core: int | None = None, *, kept: bool = True) -> int:
    """Pins this process to one core. Call it before jax, torch or numpy start their threads.

    Args:
      core: the core to use; None takes the last one that the process may run on.
      kept: that what is freed stays in the heap, as in our trainings (`trainlib.step.heap`), of all
        candidates. Functions that others call in programs of their own are measured without.

    Returns:
      The core.
    """
    if kept:
        heap.one_heap()
        heap.keep_freed()
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    if not hasattr(os, "sched_setaffinity"):
        return -1
    core = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})
    return core


def header(packages: tuple[str, ...] = ("jax", "jaxlib", "flax", "numpy")) -> str:
    """Device, versions and date, as every benchmark prints them first."""
    import jax

    device, count = jax.devices()[0], jax.device_count()
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    return "\n".join(
        [
            f"device   {count} x {device.device_kind} ({device.platform}), {cpu_name()}",
            f"versions python {platform.python_version()}, " + ", ".join(versions),
            f"date     {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        ]
    )


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def fastest(
    candidates: Mapping[str, Callable[[], object]], rounds: int = 7, in_a_row: int = 1
) -> dict[str, float]:
    """Least CPU time of one call of each candidate, in milliseconds.

    Each candidate must wait for its own result. One untimed call comes first (compilation); then
    the rounds interleave the candidates, so that a slow spell of the machine meets all of them.

    Args:
      candidates: name -> what is timed.
      rounds: how often each has its turn.
      in_a_row: calls of a turn, each timed by itself. With 1, a candidate of large arrays pays for
        the memory that the one before it left in pieces: up to a third of a train step.
    """
    for run in candidates.values():
        run()
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in (pair for pair in candidates.items() for _ in range(in_a_row)):
            start = time.process_time()
            run()
            best[name] = min(best[name], (time.process_time() - start) * 1e3)
    return best
