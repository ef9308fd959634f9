"""Reproduces tables and figures of the papers: `python -m launch.reproduce`.

No argument: all tables and figures, with what each needs, how it is reproduced, and what was run.
`--paper=st_moe --table=5 --scale=tiny --workdir=DIR` trains a variant for a laptop and writes
published cells beside ours; a stopped one goes on. `--scale=full` prints the commands of the
paper's scale; with `--plan` each is compiled for its pod, and priced in chip hours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import cli
from trainlib import commands, compile_cache
from trainlib.errors import ConfigError, one_of

if TYPE_CHECKING:
    from launch.reproduce.experiment import Experiment, Setting

SCALES = ("tiny", "full")


def main(argv: Sequence[str]) -> int:
    """Parses the command line, lists, trains, or prices."""
    parser = _parser()
    args, overrides = cli.parse(parser, argv)
    _check(parser, args, overrides)
    if args.plan:  # before JAX is imported: a machine's own accelerators are left alone
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from launch.reproduce import catalog

    if args.table is None and args.figure is None:
        return _list(catalog.of_paper(args.paper), args)
    kind = "table" if args.table is not None else "figure"
    experiment = catalog.find(args.paper, kind, getattr(args, kind))
    if args.scale is None:
        return _list([experiment], args)
    _check_scale(experiment, args.scale)
    if args.scale == "tiny":
        return _run(experiment, args)
    return _price(experiment, args) if args.plan else _print_commands(experiment, args)


def _parser() -> cli.Parser:
    parser = cli.command_parser("reproduce", "Reproduce tables and figures of the papers.")
    add = parser.add_argument
    add("--paper", metavar="aa|sasa|st_moe", help="which paper; its arXiv id does as well")
    add("--table", metavar="N", help="a table of it")
    add("--figure", metavar="N", help="a figure of it")
    add(
        "--scale",
        metavar="tiny|full",
        help="tiny: train a variant for a laptop; full: print the commands of the paper's scale",
    )
    add(
        "--plan",
        action="store_true",
        help="compile each configuration of --scale=full for its pod, and print its chip hours",
    )
    add("--target", metavar="NAME", help="a pod to plan for, in place of those that they name")
    add("--rows", metavar="PATTERN", help="rows that have this in their name")
    add("--seeds", type=cli.seeds, metavar="N", help="seeds of each tiny run (1)")
    cli.add_path(
        parser, "--workdir", metavar="DIR", help="where tiny runs, tables and pictures are kept"
    )
    cli.add_path(parser, "--cache", metavar="DIR", help="where --plan keeps reports")
    add("--json", action="store_true", help="print JSON")
    return parser


def _check(parser: cli.Parser, args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Refuses flags that say nothing together, and those that would not be looked at."""
    if overrides:
        parser.error(
            f"--config.{next(iter(overrides))}: an experiment sets its own keys; train the "
            "configurations that it names by themselves to change one"
        )
    chosen = [name for name in ("table", "figure") if getattr(args, name) is not None]
    if len(chosen) == 2:
        parser.error("--table conflicts with --figure; pass one or the other")
    if chosen and not args.paper:
        parser.error(f"--{chosen[0]} is one of a paper; pass --paper as well")
    if args.scale is not None and args.scale not in SCALES:
        raise one_of("--scale", args.scale, SCALES)
    if args.scale and not chosen:
        parser.error("--scale is that of one experiment; pass --table or --figure as well")
    if args.plan and args.scale != "full":
        parser.error("--plan is about the paper's scale; pass --scale=full as well")
    if args.target is not None and not args.plan:
        parser.error("--target is a pod to plan for; pass --plan as well")
    if args.cache is not None and not args.plan:
        parser.error("--cache is where plans are kept; pass --plan as well")
    if args.rows is not None and args.scale is None:
        parser.error("--rows chooses what is run or printed; pass --scale as well")
    if args.scale == "tiny" and args.workdir is None:
        parser.error("--workdir is missing: where the runs and the table are kept")
    if args.scale == "full" and args.workdir is not None:
        parser.error("--workdir keeps tiny runs, and --scale=full runs nothing; leave it out")
    if args.seeds is not None and args.workdir is None:
        parser.error("--seeds counts the tiny runs in a --workdir; pass that as well")


def _check_scale(experiment: Experiment, scale: str) -> None:
    if scale in experiment.scales:
        return
    paper, name = experiment.key
    why = f": {experiment.note}" if experiment.note else ""
    there = ", ".join(f"--scale={other}" for other in experiment.scales)
    raise ConfigError(
        f"--scale={scale}: {name} of {paper} has no such variant{why}. "
        + (f"There is {there}." if there else "It has no other either.")
    )


def _list(experiments: Sequence[Experiment], args: argparse.Namespace) -> int:
    from launch.reproduce import listing

    folder, seeds = None if args.workdir is None else args.workdir / "runs", args.seeds or 1
    if args.json:
        print(json.dumps([listing.facts(e, folder, seeds) for e in experiments]))
        return 0
    for line in listing.lines(experiments, folder, seeds):
        print(line)
    print(
        f"\nRun one: {commands.name('reproduce')} --paper=aa --table=7 --scale=tiny --workdir=DIR"
    )
    return 0


def _chosen(
    experiment: Experiment, settings: Sequence[Setting], pattern: str | None
) -> Sequence[Setting]:
    """The settings whose row has the pattern in its name; all for None.

    Raises:
      ConfigError: there is none.
    """
    if pattern is None:
        return settings
    found = [setting for setting in settings if pattern.lower() in setting.row.lower()]
    if not found:
        rows = "; ".join(setting.row for setting in settings)
        raise ConfigError(
            f"--rows={pattern}: no row of {experiment.exhibit.name} has this in its name: {rows}."
        )
    return found


def _run(experiment: Experiment, args: argparse.Namespace) -> int:
    """Trains what is not trained yet, and writes what came of it."""
    from launch.reproduce import outcome, runs

    if not experiment.tiny and (args.rows is not None or args.seeds is not None):
        flag = "rows" if args.rows is not None else "seeds"
        raise ConfigError(
            f"--{flag}: {experiment.exhibit.name} is computed as a whole and trains nothing; leave "
            "the flag out."
        )
    chosen, seeds = _chosen(experiment, experiment.tiny, args.rows), args.seeds or 1
    outcome.check_folder(experiment, args.workdir)
    if experiment.tiny:
        compile_cache.enable(args.compile_cache)
    folder: Path = args.workdir / "runs"
    # Runs print how they go, and of --json standard output holds nothing else.
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        _train(chosen, seeds, folder)
    # Rows that were trained before stay in the table, whatever --rows says.
    found = runs.records(experiment.tiny, seeds, folder)
    result = outcome.outcome(experiment, found)
    whole = len(found) == seeds * len(experiment.tiny)
    command = _command(experiment, args.seeds, None if whole else args.rows)
    files = outcome.write(result, experiment, args.workdir, command)
    print(json.dumps(result) if args.json else "\n" + outcome.to_text(result, command))
    for path in () if args.json else files:
        print(path, flush=True)
    return 0


def _train(settings: Sequence[Setting], seeds: int, folder: Path) -> None:
    from launch.reproduce import runs

    for record in runs.records(settings, seeds, folder):
        record.read()  # what is damaged is said before hours of training
    todo = [(setting, seed) for seed in range(seeds) for setting in settings]
    for place, (setting, seed) in enumerate(todo, start=1):
        state = "is there" if runs.finished(setting, seed, folder) else setting.flags
        print(f"\n[{place}/{len(todo)}] {setting.row}, seed {seed}: {state}", flush=True)
        runs.train(setting, seed, folder)


def _command(experiment: Experiment, seeds: int | None, rows: str | None) -> str:
    """What makes a table again."""
    paper, name = experiment.key
    kind, number = name.split()
    given = f" --rows={shlex.quote(rows)}" if rows is not None else ""
    given += f" --seeds={seeds or 1}" if experiment.tiny else ""
    start = f"{commands.name('reproduce')} --paper={paper} --{kind}={number} --scale=tiny"
    return f"{start}{given} --workdir=DIR"


def _print_commands(experiment: Experiment, args: argparse.Namespace) -> int:
    from launch.reproduce import listing

    settings = _chosen(experiment, experiment.full, args.rows)
    typed = [(setting.row, listing.full_command(setting)) for setting in settings]
    if args.json:
        print(json.dumps(dict(typed)))
        return 0
    print(f"# {experiment.exhibit.source}: {experiment.exhibit.title}")
    print(f"# needs {experiment.needs}; on every host of a pod, see --plan")
    for row, command in typed:
        print(f"# {row}\n{command}")
    return 0


def _price(experiment: Experiment, args: argparse.Namespace) -> int:
    from launch.compile import CACHE
    from launch.reproduce import costs

    settings = _chosen(experiment, experiment.full, args.rows)
    rows = costs.price(experiment, args.target, args.cache or CACHE, settings)
    for line in costs.lines(experiment, rows, args.json):
        print(line)
    return 0


if __name__ == "__main__":
    cli.run(main, saves=True)
