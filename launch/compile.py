"""Compiles a configuration's train step for a pod that is not here: `python -m launch.compile
--config=configs/st_moe_32b.py --target=v5p-1024`.

It says, before anyone pays, whether the step fits, what it moves between devices and what it can
reach at best; on a machine without accelerators (extra aot). `--search` varies the configuration
until it fits, `--compare` shows what each value of one key costs. `--json` prints all of it as
data. Exit codes: 0 fits, 64 bad configuration or target, 70 does not fit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import cli, families

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from trainlib.chips import Target
    from trainlib.planning.search import Question
    from trainlib.step.plan import Plan

EXIT_DOES_NOT_FIT = 70
SEARCHES = ("slice", "batch", "remat")
COMPARED = {  # short name -> key, and its values where none are given
    "remat": ("model.remat", "none,dots,minimal,offload,exchange,full"),
    "decoder_remat": ("model.decoder_remat", "none,dots,minimal,offload,exchange,full"),
    "sharding": ("sharding", "replicated,zero,fsdp"),
    "optimizer": ("optimizer.name", "adafactor,adamw"),
    "microbatches": ("microbatches", "1,2,4"),
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vitattn-moe" / "plans"


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compiles, and prints the report."""
    parser = cli.command_parser("compile", "Plan a run: compile its train step for a named target.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=load.CONFIG_HELP)
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="v4-1024, v5e-16, v5p-1024, v6e-256, tpu7x-128, 2xv6e-256, v5p:4x4x12, gpu:h200x8; "
        "default: the configuration's own",
    )
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed share of peak, 0 to 1")
    parser.add_argument(
        "--search",
        nargs="?",
        const="all",
        metavar="WHAT",
        help="find the smallest slice, the largest batch, the cheapest remat that fits: "
        f"{', '.join(SEARCHES)} or all of them",
    )
    parser.add_argument(
        "--compare",
        metavar="KEY=VALUE,VALUE",
        help="one line for each value of a configuration key: memory, arithmetic, traffic and step "
        f"bound; {', '.join(COMPARED)} name the usual ones",
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
    args, overrides = cli.parse(parser, argv)
    if not 0 < args.mfu <= 1:
        parser.error(f"--mfu={args.mfu} is a share of the peak: above 0, at most 1")
    # Before JAX is imported: a machine's own accelerators are left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.all:
        return every()
    if args.search and args.compare:
        parser.error("--search conflicts with --compare; pass one or the other")
    if args.search:
        return search(args, overrides)
    if args.compare:
        return compare(args, overrides)
    config = load.from_flags(args.config, overrides).config
    report = compiled_report(*planned(config, args.target), mfu=args.mfu)
    from trainlib.planning.report import to_text

    print(json.dumps(report) if args.json else to_text(report))
    return 0 if report["fits"] else EXIT_DOES_NOT_FIT


def planned(config: ConfigDict, name: str | None) -> tuple[Plan[Any], Target]:
    """The plan of a configuration on the mesh of a target, its own where none is named.

    Raises:
      ConfigError: a target, mesh or value that cannot work.
    """
    from trainlib import chips
    from trainlib.errors import ConfigError
    from trainlib.planning.compile import mesh

    if not (name or config.target):
        raise ConfigError(
            "--target is missing, and this configuration names none of its own: the pod to compile "
            "for, such as --target=v5e-16 (see --help)."
        )
    target = chips.target(name or config.target)
    return families.of(config).plan.make(config, mesh(config, target)), target


def compiled_report(plan: Plan[Any], target: Target, mfu: float = 0.5) -> dict[str, Any]:
    """Compiles a plan and says what comes of it, see `trainlib.planning.report`."""
    from trainlib.planning.compile import compile_plan
    from trainlib.planning.report import make_report
    from trainlib.step.step import compile_train

    family = families.of(plan.config)
    facts = family.describe.describe(plan.config)
    _progress(f"compiling {plan.config.name} for {target.name} ...")
    train_step = compile_train(family.objective.make_loss(plan), plan)
    result = compile_plan(plan, train_step, family.plan.abstract_batch(plan), target)
    report = make_report(plan, target, facts, result, mfu)
    _progress("")
    return report


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def every() -> int:
    """Compiles each shipped configuration for the target it names; one line each."""
    from trainlib.planning.report import verdict
    from trainlib.run.progress import duration

    failed = 0
    for path in load.shipped():
        config = load.from_flags(str(path), {}).config
        if not config.target:
            print(f"{config.name}: names no target", flush=True)
            continue
        report = compiled_report(*planned(config, None))
        failed += not report["fits"] or bool(report["rematerialization_warnings"])
        warned = len(report["rematerialization_warnings"])
        notes = f", {warned} arrays copied to every device" if warned else ""
        print(f"{verdict(report)}{notes}, {duration(report['compile_seconds'])}", flush=True)
    return EXIT_DOES_NOT_FIT if failed else 0


def search(args: Any, overrides: dict[str, str]) -> int:
    """Runs the searches and prints every question, every answer and the report of the last one.

    Raises:
      ConfigError: there is no such search, or no variation of the configuration can work.
    """
    from trainlib import chips
    from trainlib.errors import ConfigError, one_of
    from trainlib.planning.report import to_text, verdict
    from trainlib.planning.search import Search

    if args.search not in (*SEARCHES, "all"):
        raise one_of("--search", args.search, (*SEARCHES, "all"))
    config = load.from_flags(args.config, overrides).config
    possible = [name for name in SEARCHES if name != "remat" or "remat" in config.model]
    if args.search not in (*possible, "all"):
        raise ConfigError(
            f"--search=remat: {config.name} keeps everything for its backward pass, there is no "
            f"policy to choose. Search for: {', '.join(possible)}."
        )
    report_of = cached_reports(args)

    def plan_of(question: Question) -> tuple[Plan[Any], Target]:
        changed = {key: str(value) for key, value in question.overrides.items()}
        return planned(load.from_flags(args.config, overrides | changed).config, question.target)

    def compiled(question: Question) -> dict[str, Any]:
        return report_of(*plan_of(question))

    def say(question: Question, report: dict[str, Any]) -> None:
        if not args.json:
            print(f"  {question}: {verdict(report).partition(': ')[2]}", flush=True)

    target = chips.target(args.target or config.target or "none")
    asked = Search(compiled, plan_of, say)
    parts = config.microbatches * target.devices
    searches = {
        "slice": lambda: asked.smallest_slice(target),
        "batch": lambda: asked.largest_batch(target, config.batch_size, parts),
        "remat": lambda: asked.cheapest_remat(target),
    }
    reports: dict[str, dict[str, Any] | None] = {}
    for name in possible if args.search == "all" else (args.search,):
        if not args.json:
            print(f"search for the {TITLES[name]}")
        answer = searches[name]()
        reports[name] = answer.report
        if not args.json:
            print(f"  -> {answer.question or 'nothing fits'}\n")
    if args.json:
        print(json.dumps(reports))
    elif len(reports) == 1 and answer.report:
        print(to_text(answer.report))
    return 0 if all(reports.values()) else EXIT_DOES_NOT_FIT


def cached_reports(args: Any) -> Callable[[Plan, Target], dict[str, Any]]:
    """`compiled_report` that keeps its answers in `--cache`, by all that they depend on."""
    from launch.hosts.start import source_digest, versions
    from trainlib.config import flatten
    from trainlib.planning.search import Cache

    cache = Cache(args.cache)
    flags = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    code = {"code": source_digest(), **versions(), **flags}

    def report(plan: Plan[Any], target: Target) -> dict[str, Any]:
        key = [flatten(plan.config), target.name, args.mfu, code]
        return cache.get(key, lambda: compiled_report(plan, target, args.mfu))

    return report


def compare(args: Any, overrides: dict[str, str]) -> int:
    """Compiles one variation after the other and prints a line for each; 70 when none fits.

    Raises:
      ConfigError: there is no such key, or a value of it cannot work.
    """
    from trainlib.errors import ConfigError, nearest
    from trainlib.planning.report import columns

    name, _, values = args.compare.partition("=")
    key, usual = COMPARED.get(name, (name, ""))
    if not all(options := (values or usual).split(",")):
        raise ConfigError(
            f"--compare={args.compare} names no values. {nearest(name, COMPARED)}Write --compare="
            f"KEY=VALUE,VALUE with any key of the configuration, or one of {', '.join(COMPARED)}."
        )
    # All are looked at before the first is compiled, which takes minutes.
    plans = [
        planned(load.from_flags(args.config, overrides | {key: value}).config, args.target)
        for value in options
    ]
    report_of, reports = cached_reports(args), {}
    if not args.json:
        print(f"{plans[0][0].config.name} on {plans[0][1].name}\n{columns(key)}")
    for value, (plan, target) in zip(options, plans, strict=True):
        reports[value] = report_of(plan, target)
        if not args.json:
            print(columns(value, reports[value]), flush=True)
    if args.json:
        print(json.dumps(reports))
    return 0 if any(report["fits"] for report in reports.values()) else EXIT_DOES_NOT_FIT


TITLES = {
    "slice": "smallest slice",
    "batch": "largest batch",
    "remat": "cheapest way to recompute",
}


if __name__ == "__main__":
    cli.run(main)
