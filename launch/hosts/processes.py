"""One program on many hosts: who takes part, the start of `jax.distributed`, and leaving in order.

`run(args, config, train)` is all that a command needs. In a run of one process it calls `train`.
Otherwise it finds the other processes (flags, `JAX_*` variables as in the JobSet recipe, Slurm,
Open MPI, TPU), meets them (`launch.hosts.rendezvous`), starts JAX on all, compares code, versions,
configuration and devices, and sees to it that none is left waiting for one that is gone: an error
in one ends all with its exit code, and the loss of one without a word ends the others with 76.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import os
import platform
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainlib.errors import (
    ConfigError,
    Interrupted,
    PeerLost,
    Preempted,
    UserError,
    one_of,
    run_command,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

KINDS = ("auto", "off", "flags", "environment", "slurm", "openmpi", "tpu")
HEARTBEAT = 15  # seconds without a sign of life after which a process is lost (JAX's own: 100)
START_TIMEOUT = 300  # seconds to wait for all processes to come
_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PACKAGES = ("launch", "configs", "vitattn", "moe", "trainlib")
_GOOGLE = "0x1ae0"  # PCI vendor number of TPUs


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place in a run.

    Attributes:
      kind: how it was found, one of KINDS.
      address: HOST:PORT of process 0.
      count: processes in all.
      index: this one.
      local_devices: numbers of the devices of this host that it uses; None: all.
    """

    kind: str
    address: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that runs on many hosts."""
    group = parser.add_argument_group("many hosts (found by itself on TPU, Slurm and Open MPI)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", metavar="N", type=int, help="processes in all")
    group.add_argument("--process", metavar="I", type=int, help="number of this one, from 0")
    group.add_argument("--multihost", metavar="HOW", default="auto", help=", ".join(KINDS))
    group.add_argument(
        "--start_timeout",
        metavar="SECONDS",
        type=float,
        default=START_TIMEOUT,
        help=f"how long to wait for the other processes (default {START_TIMEOUT})",
    )
    group.add_argument(
        "--heartbeat",
        metavar="SECONDS",
        type=int,
        default=HEARTBEAT,
        help=f"silence after which a process is lost (default {HEARTBEAT})",
    )


# ---------------------------------------------------------------- who takes part


def find(args: argparse.Namespace, env: Mapping[str, str]) -> Place | None:
    """This process's place, or None when it is alone.

    Args:
      args: parsed flags of `add_flags`.
      env: environment variables.

    Raises:
      ConfigError: flags or variables that say half of what is needed, or contradict each other.
    """
    for flag, value in (("--heartbeat", args.heartbeat), ("--start_timeout", args.start_timeout)):
        if value <= 0:
            raise ConfigError(f"{flag}={value:g} must be a number of seconds above 0.")
    if args.multihost not in KINDS:
        raise one_of("--multihost", args.multihost, KINDS)
    given = (args.coordinator, args.processes, args.process)
    if args.multihost == "off":
        if given != (None, None, None):
            raise ConfigError(
                "--multihost=off and --coordinator, --processes or --process: choose."
            )
        return None
    finders = {
        "flags": lambda: _from_flags(*given),
        "environment": lambda: _from_environment(env),
        "slurm": lambda: _from_slurm(env),
        "openmpi": lambda: _from_openmpi(env),
        "tpu": lambda: _from_tpu(env, args.start_timeout),
    }
    if args.multihost == "auto":
        found = next(filter(None, (look() for look in finders.values())), None)
    else:
        found = finders[args.multihost]()
        if found is None:
            raise ConfigError(
                f"--multihost={args.multihost}: nothing of the kind is there. Start the command "
                "through it, name the processes by --coordinator, --processes and --process, or "
                "leave --multihost out."
            )
    return None if found is None or found.count == 1 else _checked(found)


def _from_flags(coordinator: str | None, count: int | None, index: int | None) -> Place | None:
    flags = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [flag for flag, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return None
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} missing: a run of many processes that are named by flags needs "
            "--coordinator=HOST:PORT, --processes=N and, from 0 to N-1, --process=I on each."
        )
    assert coordinator is not None
    assert count is not None
    assert index is not None
    return Place("flags", coordinator, count, index)


def _number(env: Mapping[str, str], key: str, kind: str) -> int:
    try:
        return int(env[key])
    except KeyError:
        raise ConfigError(
            f"{kind} was found, but the variable {key} is not set: start the command through its "
            "launcher, or say --multihost=off to train with this process alone."
        ) from None
    except ValueError:
        raise ConfigError(f"{kind}: the variable {key}={env[key]!r} is not a number.") from None


def _from_environment(env: Mapping[str, str]) -> Place | None:
    """JAX's variable for the coordinator and two for count and number; an indexed Kubernetes job
    numbers its pods itself.
    """
    address, count, index = _ENVIRONMENT
    if count not in env:
        return None
    if address not in env:
        raise ConfigError(f"{count} is set and {address}=HOST:PORT is not: set both, or neither.")
    key = index if index in env or "JOB_COMPLETION_INDEX" not in env else "JOB_COMPLETION_INDEX"
    kind = "A run of many processes"
    return Place("environment", env[address], _number(env, count, kind), _number(env, key, kind))


def _from_slurm(env: Mapping[str, str]) -> Place | None:
    """One process for each task of an `srun` step; the first node of the step has process 0."""
    if "SLURM_STEP_ID" not in env or "SLURM_NTASKS" not in env:
        return None
    count = _number(env, "SLURM_NTASKS", "Slurm")
    if count == 1:
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    host = first_host(nodes)
    if not host:
        raise ConfigError("Slurm was found, but SLURM_STEP_NODELIST names no node: use srun.")
    # Jobs that share a node get different ports, all below what systems hand out themselves.
    port = 20_000 + _number(env, "SLURM_JOB_ID", "Slurm") % 10_000
    local = _number(env, "SLURM_LOCALID", "Slurm")
    tasks = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    shared = tasks is not None and int(tasks.group()) > 1
    index = _number(env, "SLURM_PROCID", "Slurm")
    return Place("slurm", f"{host}:{port}", count, index, (local,) if shared else None)


def first_host(nodes: str) -> str:
    """First name of a Slurm node list: `node[003-008,011],x1` -> `node003`."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _from_openmpi(env: Mapping[str, str]) -> Place | None:
    """One process for each rank of `mpirun`, which itself runs beside rank 0."""
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    count = _number(env, "OMPI_COMM_WORLD_SIZE", "Open MPI")
    if count == 1:
        return None
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")  # Open MPI 4; version 5 tells nobody
    found = re.search(r"tcp://([^,:]+)|tcp6://(\[[^,\]]+)", uri)
    if "JAX_COORDINATOR_ADDRESS" in env:
        address = env["JAX_COORDINATOR_ADDRESS"]
    elif found:
        host = found[1] or found[2] + "]"
        job = re.match(r"\d+", uri)  # a multiple of 4096
        address = f"{host}:{20_000 + int(job[0] if job else 0) // 4096 % 10_000}"
    else:
        raise ConfigError(
            "Open MPI was found, but not where its first rank runs: pass its name on by `mpirun -x "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT`."
        )
    local = _number(env, "OMPI_COMM_WORLD_LOCAL_RANK", "Open MPI")
    shared = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")) > 1
    index = _number(env, "OMPI_COMM_WORLD_RANK", "Open MPI")
    return Place("openmpi", address, count, index, (local,) if shared else None)


def has_tpu(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a TPU is plugged into this machine."""
    return any(path.read_text().strip() == _GOOGLE for path in root.glob("*/vendor"))


def _from_tpu(env: Mapping[str, str], patience: float) -> Place | None:
    """JAX knows how TPU VMs and GKE describe a slice, and several slices."""
    if env.get("JAX_PLATFORMS", "tpu") != "tpu" or not has_tpu():
        return None
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(patience)
        )
    except Exception as error:  # whatever the metadata server or a missing variable lead to
        raise ConfigError(
            f"A TPU is here, but not which hosts its slice has ({type(error).__name__}: {error}). "
            "Name the processes by --coordinator, --processes and --process, or say "
            "--multihost=off to use the chips of this host alone."
        ) from error
    address, count, index, _ = found
    if address is None or count is None or index is None:
        return None
    return Place("tpu", address, count, index)


def _checked(place: Place) -> Place:
    host, _, port = place.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"The coordinator {place.address!r} is not HOST:PORT, for example 10.0.0.1:8476."
        )
    if not 0 <= place.index < place.count:
        raise ConfigError(
            f"--process={place.index} is outside 0..{place.count - 1}: this run has {place.count} "
            "processes, numbered from 0."
        )
    return place


# ---------------------------------------------------------------- start


def start(place: Place, patience: float, heartbeat: int = HEARTBEAT) -> None:
    """Meets the other processes and starts JAX on all.

    Args:
      place: of this process.
      patience: seconds to wait for the others.
      heartbeat: seconds without a sign of life after which a process is lost.

    Raises:
      ConfigError: an address that cannot work.
      PeerLost: a process did not come.
    """
    import jax

    from launch.hosts import rendezvous

    rendezvous.meet(place.address, place.count, place.index, patience=patience)
    _exit_76_when_jax_aborts()
    # Its handler would take SIGTERM away from `trainlib.run.interrupt`; `trainlib.run.peers` agrees
    # on the step instead.
    jax.config.update("jax_enable_preemption_service", False)
    host, _, port = place.address.rpartition(":")
    local = rendezvous.loopback(host)
    try:
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=60,
            heartbeat_timeout_seconds=heartbeat,
            coordinator_bind_address=f"{local}:{port}" if local else None,
        )
    except RuntimeError as error:
        raise PeerLost(
            f"jax.distributed did not start at {place.address}: {str(error).splitlines()[0][:300]}"
        ) from error


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
            "the driver and at `python -m launch.doctor --multihost=off`, or unset JAX_PLATFORMS."
        ) from error


def source_digest(root: Path | None = None) -> str:
    """Digest of the Python files of this code base, whatever version control says of it."""
    root = root or Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions that all processes must share."""
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "libtpu"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


_LOST = (
    b"error: This process was aborted; what stands above says why. With many hosts it is as a rule "
    b"the loss of another\nprocess: killed, its machine gone, or silent for too long. Start the "
    b"same command on all hosts again: it goes on\nfrom the last checkpoint.\n"
)


def _leave_lost(number: int) -> None:
    del number
    os.write(2, _LOST)
    os._exit(PeerLost.exit_code)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_leave_lost)  # must outlive the process


def _exit_76_when_jax_aborts() -> None:
    """JAX answers the loss of a process by abort() in a thread of its own (exit -6), and offers no
    other way; a handler of Python's `signal` module would never run there.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(int(signal.SIGABRT), ctypes.cast(_handler, ctypes.c_void_p))


# ---------------------------------------------------------------- run and leave


def run(args: argparse.Namespace, config: ConfigDict, train: Callable[[], int]) -> int:
    """Calls `train` on all processes of the run; does not return where one of several failed.

    Args:
      args: parsed flags of `add_flags` and of `cli.parser`.
      config: the resolved configuration, which all processes must share.
      train: trains and returns the exit code.
    """
    from trainlib.run import peers, watchdog

    # The meeting keeps its own time, and names who is missing; the rest is the watchdog's.
    meeting = args.start_timeout + watchdog.LIMITS["connecting"]
    least: Any = config.get("stuck_after", 0.0)  # `launch.doctor` may have no configuration
    with watchdog.watching(least, peers.tell, watchdog.LIMITS | {"connecting": meeting}):
        watchdog.enter("connecting", "the meeting of the hosts")
        place = find(args, os.environ)
        if place is not None:
            return _run_together(place, args, config, train)
        watchdog.enter("starting", _START)
        return train()


_START = "the start of the run"


def _run_together(
    place: Place, args: argparse.Namespace, config: ConfigDict, train: Callable[[], int]
) -> int:
    from trainlib.run import peers, watchdog

    start(place, args.start_timeout, args.heartbeat)
    watchdog.enter("connecting", "the comparison of the hosts and their devices")
    with peers.linked() as link:
        assert link is not None
        try:
            compare(config)
            watchdog.enter("starting", _START)
            return train()
        except Preempted:  # on all processes at the same step
            raise
        except BaseException as error:
            _leave(error, link, args)


# How collectives and the coordination service say that the other side does not answer.
_BROKEN = r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection (closed|reset|refused)"


def _leave(error: BaseException, link: Any, args: argparse.Namespace) -> NoReturn:
    """Ends this process after an error, at once: leaving `jax.distributed` in order would wait for
    processes that wait for this one.
    """

    def again() -> NoReturn:
        raise error

    if isinstance(error, UserError | Interrupted):
        link.tell(str(error), error.exit_code)
        code = run_command(again, debug=args.debug)
    else:
        lost = re.search(_BROKEN, str(error)) is not None
        if lost:
            # Often the first sign that another process is gone. JAX or that process says so soon,
            # and this one then ends in `_leave_lost` or in `trainlib.run.peers`.
            time.sleep(args.heartbeat + 5)
        traceback.print_exception(error)
        code = PeerLost.exit_code if lost else 1
        link.tell(f"{type(error).__name__}: {str(error)[:300]}", code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
