"""Compiles a configuration's train step for a pod that is not here: `python -m launch.compile
--config=configs/st_moe_32b.py --target=v5p-1024`.

It says, before anyone pays, whether the step fits, what it moves between devices and what it can
reach at best; on a machine without accelerators (extra aot). `--json` prints all of it as data.
Exit codes: 0 fits, 64 bad configuration or target, 70 does not fit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXIT_DOES_NOT_FIT = 70


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compiles, and prints the report."""
    parser = cli.parser("launch.compile", "Plan a run: compile its train step for a named target.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=cli.CONFIG_HELP)
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="v4-1024, v5e-16, v5p-1024, v6e-256, tpu7x-128, 2xv6e-256, v5p:4x4x12, gpu:h200x8; "
        "default: the configuration's own",
    )
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed share of peak, 0 to 1")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, overrides = cli.parse(parser, argv)
    if not 0 < args.mfu <= 1:
        parser.error(f"--mfu={args.mfu} is a share of the peak: above 0, at most 1")
    config = cli.load(args.config, overrides).config
    report = compiled_report(config, args.target or config.target, args.mfu)
    from trainlib.plan_report import to_text

    print(json.dumps(report) if args.json else to_text(report))
    return 0 if report["fits"] else EXIT_DOES_NOT_FIT


def compiled_report(config: ConfigDict, name: str, mfu: float = 0.5) -> dict[str, Any]:
    """Compiles a configuration for a target and says what comes of it.

    Raises:
      ConfigError: a target, mesh or value that cannot work.
    """
    # Before JAX is imported: a machine's own accelerators are left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from trainlib import aot, plan_report, targets

    target = targets.target(name)
    mesh = aot.mesh(config, target)
    plan = cli.family_module(config, "plan").make(config, mesh)
    facts = cli.family_module(config, "describe").describe(config)
    if sys.stderr.isatty():
        print(f"compiling {config.name} for {target.name} ...", file=sys.stderr, flush=True)
    return plan_report.make_report(plan, target, facts, aot.compile_plan(plan), mfu)


if __name__ == "__main__":
    cli.run(main)
