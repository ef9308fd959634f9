"""Examines a machine, or all machines of a pod, before a run is paid for: `launch.doctor`.

Versions against those that were tested, devices, memory, disk (against the checkpoints that
`--config` keeps), `--config`'s data and divisions, and ten seconds of matrix products and
all-reduces with figures. Started on all hosts like a training (`--coordinator`, Slurm, TPU), it
also compares them with each other. Exit code: 0, or that of the first check that failed: 64
software or configuration, 65 data, 74 the machine (disk, memory, devices); none that asks to be
started again.
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
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.common import load
from launch import cli
from launch.hosts import processes as multihost
from launch.machine import FAILED, GIB, MACHINE, NOTE, OK, Finding, disk, memory
from trainlib.errors import ConfigError, DataError, PeerLost, UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PATIENCE = 180.0  # seconds for one check; a TPU slice may take a minute to start
INSTALL = "pip install -c constraints.txt -e ."


def main(argv: Sequence[str]) -> int:
    """Parses the command line, runs every check, prints one line each."""
    parser = cli.parser("launch.doctor", "Examine this machine, or all machines of a pod.")
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help=f"also checked: {load.CONFIG_HELP}"
    )
    cli.add_path(parser, "--workdir", metavar="DIR", default=Path("."), help="its disk")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    multihost.add_flags(parser)
    args, overrides = cli.parse(parser, argv)
    report = Report(args.json)
    report.add(guarded("python", python_version))
    report.add(guarded("packages", packages))
    report.add(guarded("accelerators", accelerator_software))
    report.add(guarded("host memory", memory))
    # What follows needs JAX; where it cannot be imported, nothing could be said to other hosts.
    if not report.add(guarded("jax", importable)):
        return report.close()
    from ml_collections import ConfigDict

    config = load.from_flags(args.config, overrides).config if args.config else ConfigDict()

    def examine() -> int:
        for findings in checks(args, config):
            report.add(findings)
        return report.close()

    return multihost.run(args, config, examine)


class Report:
    """Prints findings as they come, or all at the end as JSON."""

    def __init__(self, as_json: bool):
        self._json = as_json
        self._found: list[Finding] = []

    def add(self, findings: Iterable[Finding]) -> bool:
        """Takes the findings of a check; returns whether it could be carried out."""
        new = list(findings)
        self._found += new
        for finding in () if self._json else new:
            print(f"{finding.state:<7} {finding.name:<16} {finding.text}", flush=True)
        return not any(finding.broken for finding in new)

    def close(self) -> int:
        """Prints what is left and returns the exit code; ends the process itself where a check
        still hangs, for nothing would end that one.
        """
        failed = [finding for finding in self._found if finding.state == FAILED]
        if self._json:
            print(json.dumps([dataclasses.asdict(finding) for finding in self._found]))
        else:
            names = ", ".join(dict.fromkeys(finding.name for finding in failed))
            print(f"\n{f'To repair: {names}.' if failed else 'Ready.'}")
        code = failed[0].code if failed else 0
        if any(thread.name == _CHECK for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(code)
        return code


def checks(args: Any, config: Any) -> Iterator[list[Finding]]:
    """The checks that need JAX, in order."""
    plans: list[Any] = []
    found = guarded("devices", devices)
    yield found
    working = not any(finding.broken for finding in found)
    if args.config and working:
        yield guarded("configuration", lambda: configuration(config, plans))
    if args.config:
        yield guarded("data", lambda: data(config))
    need = sum(kept_bytes(plan) for plan in plans)
    yield guarded("disk", lambda: disk(args.workdir, need))
    if working:
        yield guarded("matrix products", lambda: products(args.seconds / 2))
        yield guarded("all-reduce", lambda: all_reduce(args.seconds / 2))


_CHECK = "check"  # name of the threads that checks run in


def guarded(
    name: str, check: Callable[[], Finding | Iterable[Finding]], patience: float = PATIENCE
) -> list[Finding]:
    """What a check finds; that it fails, or does not end within `patience` seconds, is a finding
    as well.
    """
    found: list[Finding] = []

    def failed(text: str, code: int) -> None:
        found.append(Finding(name, FAILED, " ".join(text.split())[:1000], code, broken=True))

    def work() -> None:
        try:
            made = check()
            for finding in [made] if isinstance(made, Finding) else made:
                found.append(finding)
        except PeerLost as error:
            failed(str(error), MACHINE)
        except UserError as error:
            failed(str(error), error.exit_code)
        except ImportError as error:
            failed(f"{error}; install again: {INSTALL}", ConfigError.exit_code)
        except Exception as error:  # above all what JAX raises when a device does not work
            lines = str(error).splitlines() or ["no reason given"]
            failed(f"{type(error).__name__}: {lines[0][:300]}", MACHINE)

    thread = threading.Thread(target=work, name=_CHECK, daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        text = f"no answer within {patience:.0f} s"
        return [*found, Finding(name, FAILED, text, MACHINE, broken=True)]
    return found


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
    lowest, found = lowest_versions(), {}
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILED, f"not installed: {INSTALL}")
            continue
        found[name] = version
        yield compared(name, version, tested.get(name, ""), lowest.get(name, ""))
    if {"jax", "jaxlib"} <= found.keys() and found["jax"] != found["jaxlib"]:
        text = f"jax {found['jax']} with jaxlib {found['jaxlib']}"
        yield Finding("jax and jaxlib", FAILED, f"{text}: install the same version of both")


def importable() -> list[Finding]:
    """JAX can be loaded; nothing is said where it can."""
    import jax

    del jax
    return []


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
        needed = metadata.requires("jax") if "jax" in versions else None
        wanted = next(
            (m[1] for line in needed or []
             if (m := re.match(r"libtpu==([\d.]+)\.\*", line))), "",
        )  # fmt: skip
        fits = versions["libtpu"].startswith(wanted)
        text = f"{versions['libtpu']}; jax {versions.get('jax')} wants {wanted or 'any'}"
        yield Finding("libtpu", OK if fits else FAILED, text + (".*" if wanted else ""))
    plugins = {n: v for n, v in versions.items() if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", n)}
    for name, version in sorted(plugins.items()):
        jaxlib = versions.get("jaxlib")
        same, text = version == jaxlib, f"{version}; jaxlib is {jaxlib}"
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


# ---------------------------------------------------------------- devices


def devices() -> Finding:
    """What JAX sees; a machine with an accelerator that JAX does not use is a failure."""
    import jax

    there = "a TPU" if multihost.has_tpu() else "a GPU" if nvidia() else ""
    try:
        multihost.devices()
    except ConfigError as error:
        code = MACHINE if there else error.exit_code
        return Finding("devices", FAILED, str(error), code, broken=True)
    found = jax.devices()
    kind, platform_name = found[0].device_kind, found[0].platform
    text = f"{len(found)} x {kind}, {jax.local_device_count()} of them here"
    if jax.process_count() > 1:
        text += f", {jax.process_count()} processes"
    stats = found[0].memory_stats() if found[0].process_index == jax.process_index() else None
    if stats and "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / GIB:.1f} GiB each"
    if platform_name == "cpu" and there:
        text += f"; {there} is in this machine and JAX does not use it"
        return Finding("devices", FAILED, text, MACHINE)
    return Finding("devices", OK, text)


# ---------------------------------------------------------------- what would be trained


def configuration(config: Any, plans: list[Any]) -> Finding:
    """Batch, mesh and weights on the devices that are here; the plan is added to `plans`."""
    plan = cli.family_module(config, "plan").make(config)
    plans.append(plan)
    text = f"{config.name}: {plan.abstract.param_count:,} parameters, mesh {dict(plan.mesh.shape)}"
    return Finding("configuration", OK, f"{text}, batch {config.batch_size}")


def kept_bytes(plan: Any) -> int:
    """Bytes of all checkpoints that a run keeps, while it writes one more."""
    from trainlib.step.train_state import whole_bytes

    kept = plan.config.checkpoint
    return (kept.keep + 1 + bool(kept.best)) * whole_bytes(plan.abstract_state())


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

    from trainlib import chips as targets

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

    from trainlib.sharding.mesh import make_mesh

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
