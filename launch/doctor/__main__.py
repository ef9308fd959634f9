"""Examines a machine, or all machines of a pod, before a run is paid for: `launch.doctor`.

Versions against those that were tested, devices, memory, disk (against the checkpoints that
`--config` keeps), `--config`'s data and divisions, and ten seconds of matrix products and
all-reduces with figures. Started on all hosts like a training (`--coordinator`, Slurm, TPU), it
also compares them with each other. Exit code: 0, or that of the first check that failed: 64
software or configuration, 65 data, 74 the machine (disk, memory, devices); none that asks to be
started again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import cli
from launch.doctor import configuration, machine, measure, software
from launch.doctor.report import Finding, Report, guarded
from launch.hosts.find import add_flags
from launch.hosts.run import run_on_all_hosts
from trainlib import compile_cache

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: Sequence[str]) -> int:
    """Parses the command line, runs every check, prints one line each."""
    parser = cli.command_parser("doctor", "Examine this machine, or all machines of a pod.")
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help=f"also checked: {load.CONFIG_HELP}"
    )
    cli.add_path(
        parser,
        "--workdir",
        metavar="DIR",
        default=Path("."),
        help="directory of the run, whose disk is checked",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long to measure (default 10)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser)
    args, overrides = cli.parse(parser, argv)
    report = Report(args.json)
    report.add(guarded("python", software.python_version))
    report.add(guarded("packages", software.packages))
    report.add(guarded("accelerators", software.accelerator_software))
    report.add(guarded("host memory", machine.memory))
    # What follows needs JAX; where it cannot be imported, nothing could be said to other hosts.
    if not report.add(guarded("jax", software.importable)):
        return report.close()
    from ml_collections import ConfigDict

    config = load.from_flags(args.config, overrides).config if args.config else ConfigDict()

    def examine() -> int:
        compile_cache.enable(args.compile_cache)
        for findings in checks(args, config):
            report.add(findings)
        return report.close()

    return run_on_all_hosts(args, config, examine)


def checks(args: Any, config: ConfigDict) -> Iterator[list[Finding]]:
    """The checks that need JAX, in order."""
    plans: list[Any] = []
    findings = guarded("devices", machine.devices)
    yield findings
    working = not any(finding.broken for finding in findings)
    if args.config and working:
        yield guarded("configuration", lambda: configuration.planned(config, plans))
    if args.config:
        yield guarded("data", lambda: configuration.data(config))
    need = sum(configuration.checkpoint_bytes(plan) for plan in plans)
    yield guarded("disk", lambda: machine.disk(args.workdir, need))
    if working:
        yield guarded("matrix products", lambda: measure.products(args.seconds / 2))
        yield guarded("all-reduce", lambda: measure.all_reduce(args.seconds / 2))


if __name__ == "__main__":
    cli.run(main)
