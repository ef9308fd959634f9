"""What `launch.doctor` finds out about a machine without JAX: memory, within the limits of a
container, and the disk.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from trainlib.errors import ConfigError, StorageError
from trainlib.files import create

OK, NOTE, FAILED = "ok", "note", "FAILED"
GIB = 2**30
MACHINE = StorageError.exit_code  # exit code of a disk, memory or device that fails


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      name: of the check.
      state: OK, NOTE (works, but look at it) or FAILED.
      text: one line with figures.
      code: exit code that a failure means.
      broken: whether the check itself failed or did not end, and what builds on it is left out.
    """

    name: str
    state: str
    text: str
    code: int = ConfigError.exit_code
    broken: bool = False


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Host memory that is free, within the limits of a container, and shared memory for workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = root / "proc/meminfo"
    if not told.exists():  # a Mac
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        text = f"{total / GIB:.1f} GiB in all, {cores} cores; this system does not say what is free"
        yield Finding("host memory", NOTE, text)
        return
    kib = {m[0]: int(m[1]) for m in re.findall(r"^(\w+):\s+(\d+) kB", told.read_text(), re.M)}
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    for limit, used in container_limits(root):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    text = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}, {cores} cores"
    state = FAILED if free < GIB else NOTE if free < 4 * GIB else OK
    yield Finding("host memory", state, text, MACHINE)
    place = root / "dev/shm"
    shared = shutil.disk_usage(place) if place.exists() else None
    if shared is None or shared.free < GIB // 4:
        size = "none" if shared is None else f"{shared.free / GIB:.2f} GiB free"
        text = f"{size}: data workers need more (docker run --shm-size=8g), or data.workers=0"
        yield Finding("/dev/shm", NOTE, text)


def container_limits(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every control group around this process that limits memory.

    What is used is taken as Docker and Kubernetes do: without file pages that could be dropped.
    """
    groups = root / "sys/fs/cgroup"
    own = root / "proc/self/cgroup"
    lines = [line.split(":", 2) for line in own.read_text().splitlines()] if own.exists() else []
    # Version 2: one tree, "0::/path". Version 1: a tree for each controller, "4:memory:/path".
    v2 = groups, "memory.max", "memory.current", "inactive_file"
    v1 = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    for top, limit, used, cache in (v2, v1):
        key = "memory" if top != groups else ""
        below = [path for _, names, path in lines if names == key] or ["/"]
        folder = top / below[0].lstrip("/")
        # In a container the path may be the one outside, which is not there; the top always is.
        for place in dict.fromkeys([folder, *folder.parents]):
            if place.is_relative_to(top) and (place / limit).exists():
                bound = (place / limit).read_text().strip()
                if bound.isdigit():
                    stat = re.search(rf"^{cache} (\d+)$", (place / "memory.stat").read_text(), re.M)
                    taken = int((place / used).read_text()) - (int(stat[1]) if stat else 0)
                    yield int(bound), taken


def disk(workdir: Path, need: int = 0, probe: int = 32 * 2**20) -> Finding:
    """Free space where the run would live, and how fast `probe` bytes are really written.

    Args:
      workdir: need not be there.
      need: bytes of checkpoints to come, those already there included; 0: unknown.
      probe: bytes.
    """
    place = workdir.absolute()
    while not place.is_dir():
        place = place.parent
    path = place / f".doctor.{socket.gethostname()}.{os.getpid()}"
    began = time.monotonic()
    try:
        with os.fdopen(create(path), "wb") as file:
            file.write(bytes(probe))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.monotonic() - began
    except OSError as error:
        text = f"{place} cannot be written: {error.strerror}"
        return Finding("disk", FAILED, text, MACHINE)
    finally:
        path.unlink(missing_ok=True)
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.0f} GiB free in {place}, writes {probe / 1e6 / seconds:,.0f} MB/s"
    there = sum(p.stat().st_size for p in (workdir / "checkpoints").rglob("*") if p.is_file())
    missing = max(0, need - there)
    if need:
        text += f"; the checkpoints of this configuration take {need / GIB:,.1f} GiB"
        text += f", {there / GIB:,.1f} of them are there" if there else ""
    if missing > free:
        text += f": {math.ceil((missing - free) / GIB):,} GiB too few (checkpoint.keep)"
    state = FAILED if free < max(GIB, missing) else NOTE if free < 10 * GIB else OK
    return Finding("disk", state, text, MACHINE)
