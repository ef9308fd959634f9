"""Which process of a run this one is: from flags, the `JAX_*` variables of the JobSet recipe,
Slurm, Open MPI or a TPU slice.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from trainlib.errors import ConfigError, one_of

KINDS = ("auto", "off", "flags", "environment", "slurm", "openmpi", "tpu")
HEARTBEAT = 15  # seconds without a sign of life after which a process is lost (JAX's own: 100)
START_TIMEOUT = 300  # seconds to wait for all processes to come
_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_GOOGLE = "0x1ae0"  # PCI vendor number of TPUs


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a run of several.

    Attributes:
      kind: what named the processes, one of KINDS.
      address: HOST:PORT of process 0.
      count: number of processes in the run.
      index: number of this process, from 0.
      local_devices: numbers of the devices of this host that it uses; None: all.
    """

    kind: str
    address: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that runs on many hosts."""
    group = parser.add_argument_group("many hosts (detected on TPU, Slurm and Open MPI)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", metavar="N", type=int, help="number of processes in the run")
    group.add_argument("--process", metavar="I", type=int, help="number of this process, from 0")
    group.add_argument(
        "--multihost",
        metavar="HOW",
        default="auto",
        help=f"how to find the processes: {', '.join(KINDS)}",
    )
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


def find(args: argparse.Namespace, env: Mapping[str, str]) -> Process | None:
    """The number and the coordinator of this process, or None when it is alone.

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
                "--multihost=off conflicts with --coordinator, --processes and --process; pass one "
                "or the other."
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
        process = next(filter(None, (look() for look in finders.values())), None)
    else:
        process = finders[args.multihost]()
        if process is None:
            raise ConfigError(
                f"--multihost={args.multihost}: nothing of the kind is there. Start the command "
                "through it, name the processes by --coordinator, --processes and --process, or "
                "leave --multihost out."
            )
    return None if process is None or process.count == 1 else _checked(process)


def _from_flags(coordinator: str | None, count: int | None, index: int | None) -> Process | None:
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
    return Process("flags", coordinator, count, index)


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


def _from_environment(env: Mapping[str, str]) -> Process | None:
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
    return Process("environment", env[address], _number(env, count, kind), _number(env, key, kind))


def _from_slurm(env: Mapping[str, str]) -> Process | None:
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
    return Process("slurm", f"{host}:{port}", count, index, (local,) if shared else None)


def first_host(nodes: str) -> str:
    """First name of a Slurm node list: `node[003-008,011],x1` -> `node003`."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def _from_openmpi(env: Mapping[str, str]) -> Process | None:
    """One process for each rank of `mpirun`, which itself runs beside rank 0."""
    if "OMPI_COMM_WORLD_SIZE" not in env:
        return None
    count = _number(env, "OMPI_COMM_WORLD_SIZE", "Open MPI")
    if count == 1:
        return None
    uri = env.get("OMPI_MCA_orte_hnp_uri", "")  # Open MPI 4; version 5 does not set it
    contact = re.search(r"tcp://([^,:]+)|tcp6://(\[[^,\]]+)", uri)
    if "JAX_COORDINATOR_ADDRESS" in env:
        address = env["JAX_COORDINATOR_ADDRESS"]
    elif contact:
        host = contact[1] or contact[2] + "]"
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
    return Process("openmpi", address, count, index, (local,) if shared else None)


def has_tpu(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a TPU is plugged into this machine."""
    return any(path.read_text().strip() == _GOOGLE for path in root.glob("*/vendor"))


def _from_tpu(env: Mapping[str, str], patience: float) -> Process | None:
    """JAX knows how TPU VMs and GKE describe a slice, and several slices."""
    if env.get("JAX_PLATFORMS", "tpu") != "tpu" or not has_tpu():
        return None
    from jax._src.clusters import ClusterEnv

    try:
        detected = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(patience)
        )
    except Exception as error:  # whatever the metadata server or a missing variable lead to
        raise ConfigError(
            f"A TPU is here, but not which hosts its slice has ({type(error).__name__}: {error}). "
            "Name the processes by --coordinator, --processes and --process, or say "
            "--multihost=off to use the chips of this host alone."
        ) from error
    address, count, index, _ = detected
    if address is None or count is None or index is None:
        return None
    return Process("tpu", address, count, index)


def _checked(process: Process) -> Process:
    host, _, port = process.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"The coordinator {process.address!r} is not HOST:PORT, for example 10.0.0.1:8476."
        )
    if not 0 <= process.index < process.count:
        raise ConfigError(
            f"--process={process.index} is outside 0..{process.count - 1}: this run has "
            f"{process.count} processes, numbered from 0."
        )
    return process
