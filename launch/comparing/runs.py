"""Finds runs, and reads of each what a comparison shows. Reads nothing but JSON."""

from __future__ import annotations

import contextlib
import glob
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainlib.errors import ConfigError, UserError, shown

CONFIG = "config.json"
MOST_RUNS = 100
# They tell runs apart and explain nothing, or are shown elsewhere.
LEFT_OUT = ("name", "published.")


def find(given: Sequence[Path]) -> list[Path]:
    """The workdirs that arguments mean: directories of runs, folders of such directories, and
    patterns such as `runs/aa_*`.

    Raises:
      ConfigError: one of them means nothing, or there are too many.
    """
    found: list[Path] = []
    for path in given:
        if (path / CONFIG).is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
            found += inside or [path]  # one without a run is reported as it is
        else:
            pattern = str(path)
            matches = [Path(name) for name in sorted(glob.glob(pattern))]
            folders = [p for p in matches if (p / CONFIG).is_file()]
            if not folders:
                raise ConfigError(
                    f"{shown(pattern)} is no directory, and as a pattern it matches no run."
                )
            found += folders
    unique = list({os.path.realpath(path): path for path in found}.values())
    if len(unique) > MOST_RUNS:
        raise ConfigError(f"{len(unique):,} runs are too many to compare: at most {MOST_RUNS}.")
    return unique


Each = Callable[[dict[str, Any]], None]  # takes a record of the metrics


def read(
    workdir: Path, report: Callable[[Path, Each], dict[str, Any]], each: Each = lambda _: None
) -> dict[str, Any]:
    """What a comparison shows of one run, whose metrics are read once.

    Args:
      workdir: of the run.
      report: its facts; gives every record to what it is given.
      each: is given every record as well.

    Returns:
      The facts of `report`, and: workdir, config (dotted key -> value), best_eval (metric -> value,
      step), parameters (None where no checkpoint says it), time (text of the summary of a finished
      run, or ""). Of a run that cannot be read: workdir and error.
    """
    from trainlib.config import read_json

    best: dict[str, dict[str, float]] = {}

    def take(record: dict[str, Any]) -> None:
        _better(best, record)
        each(record)

    try:
        facts = report(workdir, take)
        config = read_json(workdir / CONFIG)
    except UserError as error:
        return {"workdir": str(workdir), "error": str(error)}
    return {
        "workdir": str(workdir),
        **facts,
        "config": config,
        "best_eval": best,
        "parameters": _parameters(workdir / "checkpoints", facts["checkpoints"]),
        "time": _time(workdir / "summary.json"),
    }


def _better(best: dict[str, dict[str, float]], record: Mapping[str, Any]) -> None:
    """Notes what is the best so far: metric of the evaluations -> its best value and the step."""
    from trainlib.checkpoint.manifest import larger_is_better

    if record.get("kind") != "eval":
        return
    for name, value in record.items():
        if isinstance(value, bool | str) or value is None or not math.isfinite(value):
            continue
        sign = 1 if larger_is_better(name) else -1
        if name != "step" and (name not in best or sign * value > sign * best[name]["value"]):
            best[name] = {"value": value, "step": record["step"]}


def _parameters(folder: Path, steps: Sequence[int]) -> int | None:
    """How many weights the newest readable checkpoint has."""
    from trainlib.checkpoint import manifest

    for step in reversed(steps):
        with contextlib.suppress(*manifest.NOT_READ, OSError):
            leaves = manifest.read(folder / str(step)).leaves
            return sum(math.prod(x.shape) for n, x in leaves.items() if n.startswith("params/"))
    return None


def _time(path: Path) -> str:
    from trainlib.untrusted_files import read_json

    if not path.is_file():
        return ""
    with contextlib.suppress(UserError):
        rows = read_json(path, error=ConfigError).get("rows")
        text = rows.get("time") if isinstance(rows, dict) else ""
        return text.partition(" for ")[0] if isinstance(text, str) else ""
    return ""


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Configuration keys that all readable runs have, and not with one value: key -> the value of
    each run, None where a run cannot be read.
    """
    configs = [run.get("config") for run in runs]
    readable = [config for config in configs if config is not None]
    if len(readable) < 2:
        return {}
    common = set.intersection(*(set(config) for config in readable))
    return {
        key: [None if config is None else config[key] for config in configs]
        for key in sorted(common)
        if not key.startswith(LEFT_OUT)
        and any(config[key] != readable[0][key] for config in readable)
    }


def labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the workdirs, with as much of their paths as tells them apart."""
    paths = [Path(os.path.abspath(run["workdir"])) for run in runs]
    for parts in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
