"""Compiles a configuration's train step for a pod that is not here: `python -m launch.compile
--config=configs/st_moe_32b.py --target=v5p-1024`.

It says, before anyone pays, whether the step fits, what it moves between devices and what time it
takes by the compiler's own account; on a machine without accelerators (extra aot). `--profile`
shows where the time and the bytes go, `--search` varies the configuration until it fits,
`--compare` shows what each value of one key costs, `--function` profiles a function of one's own.
`--json` prints all of it as data. Exit codes: 0 fits, 64 bad configuration or target, 70 does not
fit.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from configs.common import load
from launch import cli
from launch.planning import compare, function, plans, profile, search

GROUPINGS = ("layer", "op", "source")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vitattn-moe" / "plans"


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compiles, and prints the report."""
    parser = _parser()
    args, overrides = cli.parse(parser, argv)
    _check(parser, args, overrides)
    # Before JAX is imported: a machine's own accelerators are left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.all:
        return every()
    if args.function:
        return function.profile_function(args)
    if args.search:
        return search.search(args, overrides)
    if args.compare:
        return compare.compare(args, overrides)
    config = load.from_flags(args.config, overrides).config
    if args.profile:
        return profile.profile_plan(args, config)
    from trainlib.planning.report import to_text

    plan, target = plans.planned(config, args.target)
    plans.check_mfu(args.mfu, target)
    report = plans.compiled_report(plan, target, args.mfu)
    print(json.dumps(report) if args.json else to_text(report))
    return 0 if report["fits"] else plans.EXIT_DOES_NOT_FIT


def _parser() -> cli.Parser:
    parser = cli.command_parser("compile", "Plan a run: compile its train step for a named target.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=load.CONFIG_HELP)
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="v4-1024, v5e-16, v5p-1024, v6e-256, tpu7x-128, 2xv6e-256, v5p:4x4x12, gpu:h200x8; "
        f"default: the configuration's own, of a function {function.TARGET}",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        help="assumed share of the peak where no step time is predicted (GPUs), 0 to 1; 0.5",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="where the time and the bytes go, by layer; with --out also as a page",
    )
    parser.add_argument("--top", type=_rows, default=20, help="rows of a profile (%(default)s)")
    parser.add_argument(
        "--by",
        choices=GROUPINGS,
        help="what a row of a profile is; layer, or op for a function that names none",
    )
    cli.add_path(
        parser, "--out", metavar="DIR", help="write the profile as one HTML page in this directory"
    )
    parser.add_argument(
        "--function",
        metavar="MODULE:NAME",
        help="profile this function in place of a configuration, on one device",
    )
    parser.add_argument(
        "--shapes",
        metavar="ARGUMENTS",
        help="of the function: bf16[4096,4096],f32[],mask=pred[8,128],(s32[8],s32[8]),{w:f32[8]}",
    )
    parser.add_argument(
        "--search",
        nargs="?",
        const="all",
        metavar="WHAT",
        help="find the smallest slice, the largest batch, the cheapest remat that fits: "
        f"{', '.join(search.SEARCHES)} or all of them",
    )
    parser.add_argument(
        "--compare",
        metavar="KEY[=VALUE,VALUE]",
        help="one line for each value of a configuration key, by the time of a step; without "
        f"values all that the key lists. {', '.join(compare.COMPARED)} are short names",
    )
    cli.add_path(
        parser,
        "--cache",
        default=CACHE,
        help="where searches and comparisons keep reports (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--all", action="store_true", help="one line for each shipped configuration and its target"
    )
    return parser


def _rows(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of rows, 1 or more")
    return int(text)


def _check(parser: cli.Parser, args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Refuses flags that say nothing together."""
    if args.mfu is not None and not 0 < args.mfu <= 1:
        parser.error(f"--mfu={args.mfu} is a share of the peak: above 0, at most 1")
    modes = ("all", "function", "search", "compare", "profile")
    given = [f"--{name}" for name in modes if getattr(args, name)]
    if given[:1] == ["--function"]:
        given = [name for name in given if name != "--profile"]  # it is one
    if len(given) > 1:
        parser.error(f"{given[0]} conflicts with {given[1]}; pass one or the other")
    if not (args.profile or args.function):
        unused = {"--out": args.out, "--top": args.top != 20, "--by": args.by}
        for name, value in unused.items():
            if value:
                parser.error(f"{name} is about a profile; pass --profile as well")
    if args.shapes and not args.function:
        parser.error("--shapes are those of --function=MODULE:NAME; pass it as well")
    if args.function and (args.config or overrides or args.mfu is not None):
        other = "--config" if args.config or overrides else "--mfu"
        parser.error(f"--function is compiled without a configuration; leave {other} out")


def every() -> int:
    """Compiles each shipped configuration for the target it names; one line each."""
    from trainlib.planning.profile.figures import time
    from trainlib.planning.report import verdict
    from trainlib.run.progress import duration

    failed = 0
    for path in load.shipped():
        config = load.from_flags(str(path), {}).config
        if not config.target:
            print(f"{config.name}: names no target", flush=True)
            continue
        report = plans.compiled_report(*plans.planned(config, None))
        failed += not report["fits"] or bool(report["rematerialization_warnings"])
        warned = len(report["rematerialization_warnings"])
        notes = f", {warned} arrays copied to every device" if warned else ""
        step = f", a step of {time(report['step_time']['seconds'])}" if report["fits"] else ""
        took = f"compiled in {duration(report['compile_seconds'])}"
        print(f"{verdict(report)}{step}{notes}, {took}", flush=True)
    return plans.EXIT_DOES_NOT_FIT if failed else 0


if __name__ == "__main__":
    cli.run(main)
