"""The doctor's checks of installed software: Python, packages, and what an accelerator needs."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from launch.doctor import machine
from launch.doctor.report import FAILED, NOTE, OK, Finding
from launch.hosts import find
from trainlib import commands

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def python_version(version: str | None = None) -> Finding:
    """Python: 3.11, 3.12 and 3.13 are tested."""
    version = version or platform.python_version()
    minor = tuple(int(part) for part in version.split(".")[:2])
    state = FAILED if minor < (3, 11) else OK if minor <= (3, 13) else NOTE
    return Finding("python", state, f"{version}; tested 3.11 to 3.13, lowest 3.11")


def tested_versions(text: str, python: tuple[int, int]) -> dict[str, str]:
    """Package -> version of a constraints file, for one Python."""
    versions = {}
    for name, version, sign, bound in re.findall(
        r'^([\w.-]+)==([^;\s]+)(?:; python_version (<|>=) "3\.(\d+)")?$', text, re.M
    ):
        if not sign or (python < (3, int(bound))) == (sign == "<"):
            versions[name.lower()] = version
    return versions


def lowest_versions() -> dict[str, str]:
    """Package -> lowest version that this package says it works with."""
    try:
        needed = metadata.requires("vitattn-moe") or []
    except metadata.PackageNotFoundError:
        return {}
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)$", line) for line in needed)
    return {bound[1].lower(): bound[2] for bound in bounds if bound}


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def packages() -> Iterator[Finding]:
    """The libraries that decide numbers and files."""
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    python = int(platform.python_version_tuple()[0]), int(platform.python_version_tuple()[1])
    tested = tested_versions(constraints.read_text() if constraints.exists() else "", python)
    lowest, installed = lowest_versions(), {}
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILED, f"not installed: {commands.install()}")
            continue
        installed[name] = version
        yield compared(name, version, tested.get(name, ""), lowest.get(name, ""))
    if {"jax", "jaxlib"} <= installed.keys() and installed["jax"] != installed["jaxlib"]:
        text = f"jax {installed['jax']} with jaxlib {installed['jaxlib']}"
        yield Finding("jax and jaxlib", FAILED, f"{text}: install the same version of both")


def importable() -> list[Finding]:
    """Checks that jax imports; silent on success."""
    importlib.import_module("jax")
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
    versions = {
        distribution.metadata["Name"].lower().replace("_", "-"): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    if "libtpu" in versions:
        wanted = _libtpu_of_jax() if "jax" in versions else ""
        fits = versions["libtpu"].startswith(wanted)
        text = f"{versions['libtpu']}; jax {versions.get('jax')} wants {wanted or 'any'}"
        yield Finding("libtpu", OK if fits else FAILED, text + (".*" if wanted else ""))
    plugins = {n: v for n, v in versions.items() if re.fullmatch(r"jax-cuda\d+-(plugin|pjrt)", n)}
    for name, version in sorted(plugins.items()):
        jaxlib = versions.get("jaxlib")
        same, text = version == jaxlib, f"{version}; jaxlib is {jaxlib}"
        yield Finding(name, OK if same else FAILED, text)
    gpus = machine.nvidia()
    if gpus:
        yield Finding("NVIDIA driver", OK, f"{gpus[0][1]}, {len(gpus)} x {gpus[0][0]}")
    if gpus and not plugins:
        yield Finding("CUDA for jax", FAILED, f"not installed: {commands.install('cuda')}")
    if find.has_tpu() and "libtpu" not in versions:
        yield Finding("libtpu", FAILED, f"a TPU is here, libtpu is not: {commands.install('tpu')}")


def _libtpu_of_jax() -> str:
    """Version of libtpu that the installed jax pins, without its last part; "" for none."""
    for line in metadata.requires("jax") or []:
        if pin := re.match(r"libtpu==([\d.]+)\.\*", line):
            return pin[1]
    return ""
