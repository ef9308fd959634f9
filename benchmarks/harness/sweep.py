"""Many runs in one folder, each a workdir of its own: what is finished stays, none is mixed in."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from configs.common import load
from launch import cli
from launch.reproduce.runs import COST, cpu_seconds, read_cost
from trainlib import compile_cache
from trainlib.config import differences, flatten
from trainlib.errors import ConfigError, one_of
from trainlib.files import write_atomically
from trainlib.run.summary import read_summary

Train = Callable[[ConfigDict, Path], int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its kind and seed, what is trained, and where."""

    kind: str
    seed: int
    config: ConfigDict
    workdir: Path


def add_flags(parser: cli.Parser, folder: str, seeds: int = 3) -> None:
    """Adds `--runs`, which `folder` stands for, and `--seeds`, which are so many."""
    cli.add_path(parser, "--runs", default=folder, metavar="DIR", help="where the runs are kept")
    help = f"of each kind ({seeds})"
    parser.add_argument("--seeds", default=seeds, type=cli.seeds, metavar="N", help=help)


def named(flag: str, text: str, known: Collection[str]) -> list[str]:
    """The names in a list with commas.

    Raises:
      ConfigError: one of them is not known.
    """
    names = text.split(",")
    for name in names:
        if name not in known:
            raise one_of(flag, name, known)
    return names


def check(runs: Iterable[Run]) -> None:
    """Refuses runs whose workdirs hold something else, before any of them is trained.

    Raises:
      ConfigError: a workdir holds a run of another configuration; names the keys.
      DataError: the summary of a finished run is damaged.
    """
    for run in runs:
        read_summary(run.workdir)
        if any((run.workdir / name).exists() for name in ("config.json", "summary.json")):
            _compare(run)


def complete(runs: Iterable[Run], train: Train) -> None:
    """Trains what is not trained yet, or goes on with it; a kind is compiled for its first seed."""
    compile_cache.enable()
    for run in runs:
        if not finished(run):
            train(run.config, run.workdir)


def planned(
    name: str, folder: Path, kind: str, seed: int, overrides: Mapping[str, str], label: str = ""
) -> Run:
    """One kind with one seed, and its workdir.

    Args:
      name: of the configuration, with its variant after a colon.
      folder: where the workdir lies.
      kind: what the run counts as.
      seed: of its weights and its data.
      overrides: key -> value, as on a command line.
      label: what the workdir is called by; "" for the kind.
    """
    config = load.from_flags(name, {**overrides, "seed": str(seed)}).config
    # The budget is part of the name: a run is never prolonged past the end of its schedule.
    workdir = folder / f"{label or kind}_{config.steps}_steps_seed{seed}"
    return Run(kind, seed, config, workdir)


def finished(run: Run) -> bool:
    """Whether it was trained to its end."""
    return (run.workdir / "summary.json").exists()


def costed(train: Train) -> Train:
    """Trains, and adds what that cost to `COST` in the workdir: of a run that was stopped and went
    on, the sum. What was done before a kill is not in it.
    """

    def counted(config: ConfigDict, workdir: Path) -> int:
        wall, cpu = time.monotonic(), cpu_seconds()
        try:
            return train(config, workdir)
        finally:
            if workdir.is_dir():
                used = {
                    "wall_seconds": time.monotonic() - wall,
                    "cpu_seconds": cpu_seconds() - cpu,
                }
                before = read_cost(workdir)
                total = {name: before.get(name, 0.0) + value for name, value in used.items()}
                write_atomically(workdir / COST, json.dumps(total) + "\n")

    return counted


def cost(run: Run) -> dict[str, float]:
    """`wall_seconds` and `cpu_seconds` of a run that `costed` trained; empty of others."""
    return read_cost(run.workdir)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, with columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _compare(run: Run) -> None:
    stored = load.of_workdir(run.workdir, {})
    changes = differences(flatten(stored), flatten(run.config))
    changes.pop("writers.extra", None)  # trackers do not change a run, and are not read back
    if changes:
        lines = "; ".join(
            f"{key}: {old!r} there, {new!r} asked for" for key, (old, new) in changes.items()
        )
        raise ConfigError(
            f"{run.workdir} holds a run of another configuration ({lines}), which is not compared "
            "with the others. Give an empty folder with --runs=DIR, set these keys as they are "
            "there, or remove that run to make it again."
        )
