"""Starts `jax.distributed` on all processes of a run, and compares what they were started with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.hosts import leave, rendezvous
from launch.hosts.find import HEARTBEAT, Process
from trainlib import commands
from trainlib.errors import ConfigError, PeerLost

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGES = ("launch", "configs", "vitattn", "moe", "trainlib")


def start(process: Process, patience: float, heartbeat: int = HEARTBEAT) -> None:
    """Meets the other processes and starts JAX on all.

    Args:
      process: this one, see `launch.hosts.find`.
      patience: seconds to wait for the others.
      heartbeat: seconds without a sign of life after which a process is lost.

    Raises:
      ConfigError: an address that cannot work.
      PeerLost: a process did not come.
    """
    import jax

    rendezvous.meet(process.address, process.count, process.index, patience=patience)
    leave.exit_76_when_jax_aborts()
    # Its handler would take SIGTERM away from `trainlib.run.interrupt`; `trainlib.run.peers` agrees
    # on the step instead.
    jax.config.update("jax_enable_preemption_service", False)
    host, _, port = process.address.rpartition(":")
    local = rendezvous.loopback(host)
    try:
        jax.distributed.initialize(
            process.address,
            process.count,
            process.index,
            local_device_ids=process.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=60,
            heartbeat_timeout_seconds=heartbeat,
            coordinator_bind_address=f"{local}:{port}" if local else None,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        raise PeerLost(f"jax.distributed did not start at {process.address}: {reason}") from error


def compare(config: ConfigDict) -> None:
    """Compares what the processes were started with, before anything is compiled.

    Raises:
      ConfigError: they differ; names the odd one. Or JAX finds no device here.
    """
    from trainlib.config import flatten
    from trainlib.run import peers

    facts = {f"--config.{key}": value for key, value in flatten(config).items()}
    peers.agree({"code": source_digest(), **versions(), **facts})
    here = devices()
    peers.agree({"devices": len(here), "device kind": here[0].device_kind})


def devices() -> list[Any]:
    """The devices of this process; starts them when it is the first to ask.

    Raises:
      ConfigError: JAX finds none.
    """
    import jax

    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # which one depends on the kind of device
        asked = os.environ.get("JAX_PLATFORMS")
        reason = (str(error).splitlines() or ["JAX does not say why"])[0][:300]
        raise ConfigError(
            f"JAX finds no device on {socket.gethostname()}"
            f"{f', where JAX_PLATFORMS={asked} asks for one' if asked else ''}: {reason}. Look at "
            f"the driver and at `{commands.name('doctor')} --multihost=off`, or unset "
            "JAX_PLATFORMS."
        ) from error


def source_digest(root: Path | None = None) -> str:
    """Digest of the Python files of this code base, whatever version control says of it."""
    root = root or Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions that all processes must share."""
    installed = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "libtpu"):
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
