"""Accelerators by their usual names: what a chip can do, and how chips make a slice.

A target is one slice or several equal ones, `v5p-1024`, `4xv6e-256`, `v4:8x8x8`, or GPUs,
`gpu:h200x8`. The number in a TPU name counts what Google counts for that generation: cores for v4,
v5p and tpu7x (two in each chip), chips for v5e and v6e. So v4-1024 and v5p-1024 have 512 chips.

Sources, read 2026-11: cloud.google.com/tpu/docs v4, v5e, v5p, v6e and tpu7x (peak compute, HBM
capacity and bandwidth, bidirectional interconnect bandwidth, of which half goes each way); for the
interconnect of v4, six links of 50 GB/s, arXiv 2304.01433, table 4; NVIDIA's data sheets of H100
SXM and H200 SXM (dense bf16 without sparsity, NVLink 900 GB/s in both directions).

The clock of v4 is published (arXiv 2304.01433, table 4). Those of the others are derived: the peak
over what the matrix units of a device do in a cycle, 4 units of 128 x 128 for v5e, twice that for
the two cores of v5p, 4 of 256 x 256 for v6e and for half a tpu7x. At these clocks the compiler's
estimates of a product of 4096 x 4096 x 4096 are 83 to 97 % of the peak.

Products of 8-bit integers have twice the peak on v5e, v5p and v6e, those of 8-bit floats on tpu7x,
and on these GPUs both have (the same pages). For the others libtpu 0.0.42 estimates no more than
the bf16 peak: int8 on v4 and tpu7x, fp8 on v5e, v5p and v6e.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from trainlib.errors import ConfigError, nearest

GIB = 2**30
MOST_DEVICES = 2**20  # a bound on what a name can ask for


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of JAX can do; a device is a chip, but for tpu7x, where it is half of one.

    Attributes:
      name: generation, as in names of targets.
      kinds: what JAX calls the device (`Device.device_kind`).
      flops: peak bf16 FLOP/s, multiply-add = 2.
      hbm_bytes: nominal memory.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that leave the device over all its fast links together, one way.
      cores_named: how many of what a target's number counts one device is.
      per_chip: devices in a chip.
      clock: cycles a second of a TPU's core, in which its compiler counts; 0 for GPUs.
      int8: its peak for products of integers of 8 bits or fewer over that for bf16.
      fp8: likewise for floats of 8 bits.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    cores_named: int = 1
    per_chip: int = 1
    clock: float = 0.0
    int8: int = 1
    fp8: int = 1

    def peak(self, narrow: str) -> float:
        """FLOP/s of products of "int8" or "fp8", and of all others, ""."""
        return self.flops * {"int8": self.int8, "fp8": self.fp8}.get(narrow, 1)


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1200e9, 300e9, 2, 1, 1.05e9),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, 1, 1, 1.5e9, 2),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, 2, 1, 1.75e9, 2),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, 1, 1, 1.75e9, 2),
        Chip("tpu7x", ("TPU7x",), 2307e12 / 2, 96 * GIB, 7380e9 / 2, 600e9 / 2, 1, 2, 2.2e9, 1, 2),
        Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9, int8=2, fp8=2),
        Chip("h200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, int8=2, fp8=2),
    )
}
GPUS = ("h100", "h200")
DCN_BANDWIDTH = 50e9 / 8  # bytes/s of one chip between slices: v5p's 50 Gbit/s

# Chips of the usual slices; a name with another count needs its topology, `v5p:4x4x12`.
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    *("8x16x16", "16x16x16", "16x16x24"),
)
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {
    "v4": _CUBES[:-2],
    "v5e": _SQUARES,
    "v5p": _CUBES,
    "v6e": _SQUARES,
    "tpu7x": ("1x1x1", *_CUBES),
}
_ALIASES = {"v5litepod": "v5e", "v5": "v5p", "v7x": "tpu7x", "trillium": "v6e", "ironwood": "tpu7x"}


def _size(topology: str) -> int:
    return math.prod(int(side) for side in topology.split("x"))


@dataclasses.dataclass(frozen=True)
class Target:
    """A named set of devices.

    Attributes:
      name: as it was asked for.
      chip: what each device can do.
      topology: chips of one slice along each axis of its torus, "8x8x8"; "" for GPUs.
      slices: how many of them.
      devices: JAX devices, all slices together.
    """

    name: str
    chip: Chip
    topology: str
    slices: int
    devices: int

    @property
    def platform(self) -> str:
        """What XLA calls it."""
        return "cuda" if self.chip.name in GPUS else "tpu"

    @property
    def chips(self) -> int:
        """Chips, all slices together."""
        return self.devices // self.chip.per_chip


def usual(generation: str) -> dict[str, str]:
    """Usual name -> topology of one generation."""
    chip = CHIPS[generation]
    return {
        f"{generation}-{_size(t) * chip.cores_named * chip.per_chip}": t for t in SLICES[generation]
    }


def names() -> list[str]:
    """All usual names of single slices."""
    return [*(name for generation in SLICES for name in usual(generation))]


def _gpus(name: str) -> Target:
    match = re.fullmatch(r"gpu:(\w+?)x(\d+)", name)
    if not match or match[1] not in GPUS or not int(match[2]):
        options = [f"gpu:{gpu}x8" for gpu in GPUS]
        raise ConfigError(
            f"--target={name} names no GPUs. {nearest(name, options)}Write the kind and how many: "
            f"{', '.join(options)}; kinds: {', '.join(GPUS)}."
        )
    return Target(name, CHIPS[match[1]], "", 1, int(match[2]))


def target(name: str) -> Target:
    """The target of a name.

    Args:
      name: `v5p-1024`; `v5p:8x8x8` by topology; `2xv5p-1024` or `v5p-1024x2` for two slices;
        `gpu:h200x8`.

    Raises:
      ConfigError: an unknown name; lists the nearest and all of that generation.
    """
    text = name.strip().lower()
    if text.startswith("gpu:"):
        return _gpus(text)
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(-\d+|:\d+(?:x\d+)*)(?:x(\d+))?", text)
    if ":" in text:  # the sides of a topology and the number of slices would look alike
        match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*?)(:\d+(?:x\d+)*)()", text)
    generation = _ALIASES.get(match[2], match[2]) if match else ""
    if not match or generation not in SLICES or (match[1] and match[4]):
        raise _unknown(name, names())
    slices = int(match[1] or match[4] or 1)
    known, part = usual(generation), f"{generation}{match[3]}"
    topology = match[3][1:] if match[3][0] == ":" else known.get(part, "")
    sides = len(SLICES[generation][0].split("x"))
    if not topology or len(topology.split("x")) != sides or not _size(topology) or not slices:
        options = [f"{generation}:{t}" for t in SLICES[generation]] if ":" in text else list(known)
        raise _unknown(name, options)
    chip = CHIPS[generation]
    return Target(name, chip, topology, slices, slices * _size(topology) * chip.per_chip)


def _unknown(name: str, options: list[str]) -> ConfigError:
    shown = ", ".join(options)
    return ConfigError(
        f"--target={name} is not known. {nearest(name, options)}Known: {shown}; any slice by its "
        "topology, v5p:4x4x12; several equal ones, 2xv5p-1024; GPUs, gpu:h200x8. The numbers of "
        "v4, v5p and tpu7x count cores, two a chip."
    )


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls `kind` (`jax.devices()[0].device_kind`); None if it is not listed."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def reaches_all(kind: str, devices: int) -> bool:
    """Whether every chip of a slice reaches every other without help of software.

    On larger slices of v5e libtpu 0.0.42 has neither ragged nor asynchronous all-to-alls ("not
    supported in limited ICI routing settings").

    Args:
      kind: what JAX calls the chip.
      devices: of the slice.
    """
    chip = chip_of(kind)
    return chip is None or chip.name != "v5e" or devices <= 16


def usable_cores() -> int:
    """CPU cores that this process may use; all of the machine where the system knows no other, as
    on a Mac.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def container_limits(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every control group around this process that limits memory.

    What is used is taken as Docker and Kubernetes do: without file pages that could be dropped.
    """
    groups = root / "sys/fs/cgroup"
    listing = root / "proc/self/cgroup"
    text = listing.read_text() if listing.exists() else ""
    lines = [line.split(":", 2) for line in text.splitlines()]
    # Version 2: one tree, "0::/path". Version 1: a tree for each controller, "4:memory:/path".
    v2 = groups, "memory.max", "memory.current", "inactive_file"
    v1 = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    for top, limit, used, cache in (v2, v1):
        key = "memory" if top != groups else ""
        below = [path for _, names, path in lines if names == key] or ["/"]
        folder = top / below[0].lstrip("/")
        # In a container the path may be the one outside, which is not there; the top always is.
        for group in dict.fromkeys([folder, *folder.parents]):
            if group.is_relative_to(top) and (group / limit).exists():
                bound = (group / limit).read_text().strip()
                if bound.isdigit():
                    stat = re.search(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.M)
                    taken = int((group / used).read_text()) - (int(stat[1]) if stat else 0)
                    yield int(bound), taken
