"""The doctor's checks of the machine: memory within the limits of a container, disk and devices."""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.report import FAILED, MACHINE, NOTE, OK, Finding
from launch.hosts import find, start
from trainlib.chips import container_limits, usable_cores
from trainlib.errors import ConfigError
from trainlib.files import create

GIB = 2**30


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Host memory that is free, within the limits of a container, and shared memory for workers."""
    cores = usable_cores()
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():  # a Mac
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        text = f"{total / GIB:.1f} GiB in all, {cores} cores; this system does not say what is free"
        yield Finding("host memory", NOTE, text)
        return
    kib = {m[0]: int(m[1]) for m in re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.M)}
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    for limit, used in container_limits(root):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    text = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}, {cores} cores"
    state = FAILED if free < GIB else NOTE if free < 4 * GIB else OK
    yield Finding("host memory", state, text, MACHINE)
    folder = root / "dev/shm"
    shared = shutil.disk_usage(folder) if folder.exists() else None
    if shared is None or shared.free < GIB // 4:
        size = "none" if shared is None else f"{shared.free / GIB:.2f} GiB free"
        text = f"{size}: data workers need more (docker run --shm-size=8g), or data.workers=0"
        yield Finding("/dev/shm", NOTE, text)


def disk(workdir: Path, need: int = 0, probe: int = 32 * 2**20) -> Finding:
    """Free space where the run would live, and how fast `probe` bytes are really written.

    Args:
      workdir: need not be there.
      need: bytes of checkpoints to come, those already there included; 0: unknown.
      probe: bytes.
    """
    folder = workdir.absolute()
    while not folder.is_dir():
        folder = folder.parent
    path = folder / f".doctor.{socket.gethostname()}.{os.getpid()}"
    before = time.monotonic()
    try:
        with os.fdopen(create(path), "wb") as file:
            file.write(bytes(probe))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.monotonic() - before
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}"
        return Finding("disk", FAILED, text, MACHINE)
    finally:
        path.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.0f} GiB free in {folder}, writes {probe / 1e6 / seconds:,.0f} MB/s"
    there = sum(p.stat().st_size for p in (workdir / "checkpoints").rglob("*") if p.is_file())
    missing = max(0, need - there)
    if need:
        text += f"; the checkpoints of this configuration take {need / GIB:,.1f} GiB"
        text += f", {there / GIB:,.1f} of them are there" if there else ""
    if missing > free:
        text += f": {math.ceil((missing - free) / GIB):,} GiB too few (checkpoint.keep)"
    state = FAILED if free < max(GIB, missing) else NOTE if free < 10 * GIB else OK
    return Finding("disk", state, text, MACHINE)


def devices() -> Finding:
    """What JAX sees; a machine with an accelerator that JAX does not use is a failure."""
    import jax

    there = "a TPU" if find.has_tpu() else "a GPU" if nvidia() else ""
    try:
        start.devices()
    except ConfigError as error:
        code = MACHINE if there else error.exit_code
        return Finding("devices", FAILED, str(error), code, broken=True)
    first, count = jax.devices()[0], jax.device_count()
    text = f"{count} x {first.device_kind}, {jax.local_device_count()} of them here"
    if jax.process_count() > 1:
        text += f", {jax.process_count()} processes"
    stats = first.memory_stats() if first.process_index == jax.process_index() else None
    if stats and "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / GIB:.1f} GiB each"
    if first.platform == "cpu" and there:
        text += f"; {there} is in this machine and JAX does not use it"
        return Finding("devices", FAILED, text, MACHINE)
    return Finding("devices", OK, text)


def nvidia() -> list[tuple[str, str]]:
    """(name, driver version) of each GPU that the driver knows; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    pairs = (line.split(", ") for line in done.stdout.splitlines() if ", " in line)
    return [(name, driver) for name, driver in pairs]
