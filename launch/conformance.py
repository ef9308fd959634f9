"""Says whether a router is right: `python -m launch.conformance --adapter=NAME`.

360 cases from files (logits, masks and settings; slots, gates, drops, losses and gradients) are
given to a router, and its answers are compared: right, by another convention, or a bug, by name
where it is known. NAME is a router of this package (`moe`) or of another that is installed, or
MODULE:NAME of your own adapter; docs/router_conformance.md writes one. Exit code 1 when there is a
bug, 64 when the router answers none of the cases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from launch import cli
from trainlib.errors import ConfigError

ADAPTERS = ("moe", "transformers_switch", "transformers_mixtral", "st_moe_pytorch")
FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Parses the command line, runs the cases and prints the verdicts."""
    parser = cli.command_parser("conformance", "Say whether a router is right, case by case.")
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help=f"the router: {', '.join(ADAPTERS)}, or MODULE:NAME of your own",
    )
    parser.add_argument(
        "--only", metavar="THEME,...", default="", help="files of cases, such as top2,padding"
    )
    cli.add_path(parser, "--cases", metavar="DIR", help="files of cases of your own")
    parser.add_argument("--json", action="store_true", help="print JSON, with every finding")
    args, overrides = cli.parse(parser, argv)
    if overrides:
        raise ConfigError(f"{parser.prog} reads no configuration, and so no --config.KEY=VALUE.")
    if not args.adapter:
        parser.error(f"name a router, --adapter={'|'.join(ADAPTERS)}|MODULE:NAME")
    from moe.conformance import cases, report, verdict
    from moe.conformance.adapters import known
    from moe.conformance.readings import BUG

    only = [theme.strip() for theme in args.only.split(",") if theme.strip()]
    asked = cases.load(only, args.cases or cases.FOLDER)
    adapter = known.load(args.adapter)
    findings = verdict.judge(adapter, asked)
    if not any(finding.outcome in verdict.JUDGED for finding in findings):
        raise ConfigError(report.nothing(adapter.name, findings))
    if args.json:
        print(json.dumps(report.as_data(adapter.name, findings)))
    else:
        print(report.text(adapter.name, findings))
    return FAILED if any(f.outcome == BUG for f in findings) else 0


if __name__ == "__main__":
    cli.run(main)
