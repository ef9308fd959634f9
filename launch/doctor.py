"""Examines a machine, or all machines of a pod, before a run is paid for: `launch.doctor`.

Versions against those that were tested, devices, memory, disk, `--config`'s data and divisions, and
ten seconds of matrix products and all-reduces with figures. Started on all hosts like a training
(`--coordinator`, Slurm, TPU), it also compares them with each other. Exit code: 0, or that of the
first check that failed: 64 software or configuration, 65 data, 74 the machine (disk, memory,
devices); none that asks to be started again.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata as metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import cli, multihost
from trainlib.errors import (
    ConfigError,
    DataError,
    StorageError,
    UserError,
)

OK, NOTE, FAILED = "ok", "note", "FAILED"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
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
    """

    name: str
    state: str
    text: str
    code: int = ConfigError.exit_code


def main(argv: Sequence[str]) -> int:
    """Parses the command line, runs every check, prints one line each."""
    parser = cli.parser("launch.doctor", "Examine this machine, or all machines of a pod.")
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help=f"also checked: {cli.CONFIG_HELP}"
    )
    parser.add_argument("--workdir", metavar="DIR", type=Path, default=Path("."), help="its disk")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    multihost.add_flags(parser)
    args, overrides = cli.parse(parser, argv)
    from ml_collections import ConfigDict

    config = cli.load(args.config, overrides).config if args.config else ConfigDict()
    return multihost.run(args, config, lambda: examine(args, config))


def examine(args: Any, config: Any) -> int:
    """Runs and prints the checks; returns the exit code."""
    found = []
    for finding in checks(args, config):
        found.append(finding)
        if not args.json:
            print(f"{finding.state:<7} {finding.name:<16} {finding.text}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    failed = [finding for finding in found if finding.state == FAILED]
    if not args.json:
        names = ", ".join(finding.name for finding in failed)
        print(f"\n{f'To repair: {names}.' if failed else 'Ready.'}")
    return failed[0].code if failed else 0


def checks(args: Any, config: Any) -> Iterator[Finding]:
    """All checks, in order; each is one finding or several."""
    yield python_version()
    yield from packages()
    yield from accelerator_software()
    yield from memory()
    yield disk(args.workdir)
    yield devices()
    if args.config:
        yield guarded("configuration", lambda: configuration(config))
        yield guarded("data", lambda: data(config))
    yield guarded("matrix products", lambda: products(args.seconds / 2))
    yield guarded("all-reduce", lambda: all_reduce(args.seconds / 2))


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check whose errors are findings."""
    try:
        return check()
    except UserError as error:
        return Finding(name, FAILED, " ".join(str(error).split()), error.exit_code)
    except RuntimeError as error:  # what JAX raises when a device does not work
        text = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        return Finding(name, FAILED, text, MACHINE)


# ---------------------------------------------------------------- software


def python_version(version: str | None = None) -> Finding:
    """Python: 3.11 and 3.12 are tested."""
    version = version or platform.python_version()
    minor = tuple(int(part) for part in version.split(".")[:2])
    state = FAILED if minor < (3, 11) else OK if minor <= (3, 12) else NOTE
    return Finding("python", state, f"{version}; tested 3.11 and 3.12, lowest 3.11")


def tested_versions(text: str, python: tuple[int, int]) -> dict[str, str]:
    """Package -> version of a constraints file, for one Python."""
    found = {}
    for name, version, sign, bound in re.findall(
        r'^([\w.-]+)==([^;\s]+)(?:; python_version (<|>=) "3\.(\d+)")?$', text, re.M
    ):
        if not sign or (python < (3, int(bound))) == (sign == "<"):
            found[name.lower()] = version
    return found


def lowest_versions() -> dict[str, str]:
    """Package -> lowest version that this package says it works with."""
    try:
        needed = metadata.requires("vitattn-moe") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)>=([\w.]+)$", line) for line in needed)
    return {match[1].lower(): match[2] for match in found if match}


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def packages() -> Iterator[Finding]:
    """The libraries that decide numbers and files."""
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    python = int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1])
    tested = tested_versions(constraints.read_text() if constraints.exists() else "", python)
    lowest = lowest_versions()
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILED, "not installed: pip install -c constraints.txt -e .")
            continue
        yield compared(name, version, tested.get(name, ""), lowest.get(name, ""))
    if metadata.version("jax") != metadata.version("jaxlib"):
        text = f"jax {metadata.version('jax')} with jaxlib {metadata.version('jaxlib')}"
        yield Finding("jax and jaxlib", FAILED, f"{text}: install the same version of both")


def compared(name: str, version: str, tested: str, lowest: str) -> Finding:
    """A package's version against the tested and the lowest one ("" for unknown)."""
    if lowest and _order(version) < _order(lowest):
        return Finding(name, FAILED, f"{version} is older than {lowest}, the lowest that works")
    if version == tested or not tested:
        return Finding(name, OK, f"{version}{', tested' if tested else ''}")
    return Finding(name, NOTE, f"{version}; the tests ran with {tested}")


def accelerator_software() -> Iterator[Finding]:
    """libtpu as jax pins it, the CUDA plug-ins of jaxlib's version, the NVIDIA driver."""
    versions = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in
                metadata.distributions() if d.metadata["Name"]}  # fmt: skip
    if "libtpu" in versions:
        wanted = next(
            (m[1] for line in metadata.requires("jax") or []
             if (m := re.match(r"libtpu==([\d.]+)\.\*", line))), "",
        )  # fmt: skip
        fits = versions["libtpu"].startswith(wanted)
        text = f"{versions['libtpu']}; jax {versions['jax']} wants {wanted or 'any'}"
        yield Finding("libtpu", OK if fits else FAILED, text + (".*" if wanted else ""))
    plugins = {n: v for n, v in versions.items() if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", n)}
    for name, version in sorted(plugins.items()):
        same = version == versions["jaxlib"]
        text = f"{version}; jaxlib is {versions['jaxlib']}"
        yield Finding(name, OK if same else FAILED, text)
    gpus = nvidia()
    if gpus:
        yield Finding("NVIDIA driver", OK, f"{gpus[0][1]}, {len(gpus)} x {gpus[0][0]}")
    if gpus and not plugins:
        yield Finding("CUDA for jax", FAILED, "not installed: pip install -e '.[cuda]'")
    if multihost.has_tpu() and "libtpu" not in versions:
        yield Finding("libtpu", FAILED, "a TPU is here, libtpu is not: pip install -e '.[tpu]'")


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


# ---------------------------------------------------------------- the machine


def memory() -> Iterator[Finding]:
    """Host memory that is free, within the limits of a container, and shared memory for workers."""
    text = Path("/proc/meminfo").read_text()
    kib = {m[0]: int(m[1]) for m in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (bound := limit.read_text().strip()).isdigit():
        free, total = min(free, int(bound)), min(total, int(bound))
    text = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}, {len(os.sched_getaffinity(0))} cores"
    state = FAILED if free < GIB else NOTE if free < 4 * GIB else OK
    yield Finding("host memory", state, text, MACHINE)
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").exists() else None
    if shared is None or shared.free < GIB // 4:
        size = "none" if shared is None else f"{shared.free / GIB:.2f} GiB free"
        text = f"{size}: data workers need more (docker run --shm-size=8g), or data.workers=0"
        yield Finding("/dev/shm", NOTE, text)


def disk(workdir: Path, probe: int = 32 * 2**20) -> Finding:
    """Free space where the run would live, and how fast `probe` bytes are really written."""
    place = workdir.absolute()
    while not place.exists():
        place = place.parent
    path = place / f".doctor.{os.getpid()}"
    began = time.monotonic()
    try:
        with open(path, "wb") as file:
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
    state = FAILED if free < GIB else NOTE if free < 10 * GIB else OK
    return Finding("disk", state, text, MACHINE)


def devices() -> Finding:
    """What JAX sees; a machine with an accelerator that JAX does not use is a failure."""
    import jax

    found = jax.devices()
    kind, platform_name = found[0].device_kind, found[0].platform
    text = f"{len(found)} x {kind}, {jax.local_device_count()} of them here"
    if jax.process_count() > 1:
        text += f", {jax.process_count()} processes"
    stats = found[0].memory_stats() if found[0].process_index == jax.process_index() else None
    if stats and "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / GIB:.1f} GiB each"
    unused = "a TPU" if multihost.has_tpu() else "a GPU" if nvidia() else ""
    if platform_name == "cpu" and unused:
        text += f"; {unused} is in this machine and JAX does not use it"
        return Finding("devices", FAILED, text, MACHINE)
    return Finding("devices", OK, text)


# ---------------------------------------------------------------- what would be trained


def configuration(config: Any) -> Finding:
    """Batch, mesh and weights on the devices that are here."""
    plan = cli.family_module(config, "plan").make(config)
    text = f"{config.name}: {plan.abstract.param_count:,} parameters, mesh {dict(plan.mesh.shape)}"
    return Finding("configuration", OK, f"{text}, batch {config.batch_size}")


def data(config: Any) -> Finding:
    """The training split can be opened."""
    began = time.monotonic()
    source = cli.family_module(config, "data").make_source(config.data, "train")
    seconds = time.monotonic() - began
    text = f"{config.data.source}: {len(source):,} training records, opened in {seconds:.1f} s"
    return Finding("data", OK, text, DataError.exit_code)


# ---------------------------------------------------------------- measured


def _timed(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call: the least of as many as fit into `seconds`, after one that compiles.

    Several processes must call equally often whatever their clocks say: ten times.
    """
    import jax

    jax.block_until_ready(run())
    together = jax.process_count() > 1
    best, calls, end = float("inf"), 0, time.monotonic() + seconds
    while calls < 10 if together else calls == 0 or time.monotonic() < end:
        began = time.monotonic()
        jax.block_until_ready(run())
        best, calls = min(best, time.monotonic() - began), calls + 1
    return best


def products(seconds: float) -> Finding:
    """Speed of bf16 matrix products (f32 on a CPU) on one device, against its peak."""
    import jax
    import jax.numpy as jnp

    from trainlib import targets

    device = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    size, repeats = (1024, 1) if on_cpu else (8192, 8)
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    x = jax.device_put(jnp.ones((size, size), dtype), device)

    @jax.jit
    def multiply(x):
        y = x
        for _ in range(repeats):
            y = (x @ y) / size  # of ones: ones again
        return y

    value = float(multiply(x)[0, 0])
    rate = 2 * size**3 * repeats / _timed(lambda: multiply(x), seconds)
    chip = targets.chip_of(device.device_kind)
    text = f"{rate / 1e12:,.3g} TFLOP/s, {size} x {size}, {jnp.dtype(dtype).name}"
    if chip is not None:
        text += f", {100 * rate / chip.flops:.0f} % of its peak"
    if value != 1.0:
        return Finding("matrix products", FAILED, f"{text}: wrong result", MACHINE)
    slow = chip is not None and rate < 0.4 * chip.flops
    return Finding("matrix products", NOTE if slow else OK, text)


def all_reduce(seconds: float) -> Finding:
    """Speed of a sum over all devices, in bytes that each one sends and receives."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from trainlib.mesh import make_mesh

    mesh = make_mesh()
    count = mesh.size
    if count == 1:
        return Finding("all-reduce", OK, "one device, nothing to add up")
    cells = 2**20 if jax.devices()[0].platform == "cpu" else 2**26
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    values = jax.make_array_from_callback(
        (count, cells), split, lambda index: np.ones((1, cells), np.float32)
    )
    total = jax.jit(lambda x: jnp.sum(x, axis=0), in_shardings=split, out_shardings=whole)
    value = float(np.asarray(total(values).addressable_data(0))[0])
    moved = 2 * (count - 1) / count * 4 * cells
    rate = moved / _timed(lambda: total(values), seconds)
    text = f"{rate / 1e9:,.3g} GB/s over {count} devices, {4 * cells / 2**20:.0f} MiB"
    if value != count:
        return Finding("all-reduce", FAILED, f"{text}: wrong result", MACHINE)
    return Finding("all-reduce", OK, text)


if __name__ == "__main__":
    cli.run(main)
