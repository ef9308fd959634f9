"""Many runs in one folder, each a workdir of its own: what is finished stays, none is mixed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from configs.common import load
from trainlib.config import differences, flatten
from trainlib.errors import ConfigError

Train = Callable[[ConfigDict, Path], int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its kind and seed, what is trained, and where."""

    kind: str
    seed: int
    config: ConfigDict
    workdir: Path


def check(runs: Iterable[Run]) -> None:
    """Refuses runs whose workdirs hold something else, before any of them is trained.

    Raises:
      ConfigError: a workdir holds a run of another configuration; names the keys.
    """
    for run in runs:
        if any((run.workdir / name).exists() for name in ("config.json", "summary.json")):
            _compare(run)


def complete(runs: Iterable[Run], train: Train) -> None:
    """Trains what is not trained yet, or goes on with it."""
    for run in runs:
        if not (run.workdir / "summary.json").exists():
            train(run.config, run.workdir)


def _compare(run: Run) -> None:
    stored = load.of_workdir(run.workdir, {})
    changes = differences(flatten(stored), flatten(run.config))
    if changes:
        lines = "; ".join(
            f"{key}: {old!r} there, {new!r} asked for" for key, (old, new) in changes.items()
        )
        raise ConfigError(
            f"{run.workdir} holds a run of another configuration ({lines}), which is not compared "
            "with the others. Give an empty folder with --runs=DIR, set these keys as they are "
            "there, or remove that run to make it again."
        )
