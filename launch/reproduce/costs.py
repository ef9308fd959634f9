"""What the paper's scale costs: each configuration compiled for its pod, and the chip hours of it
by the predicted time of a step.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.planning import plans
from launch.reproduce.experiment import Experiment, Setting
from trainlib.errors import ConfigError

if TYPE_CHECKING:
    from trainlib.chips import Target
    from trainlib.step.plan import Plan

COLUMNS = ("row", "configuration", "target", "fits", "a step", "steps", "chip hours", "days")


def price(
    experiment: Experiment, target: str | None, cache: Path, settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """Compiles every row for its pod, and says what each would take.

    Args:
      experiment: whose rows.
      target: a pod in place of those that the configurations name; None for these.
      cache: where reports are kept; a row that other tables have too is compiled once.
      settings: the rows.

    Returns:
      A row each: row, flags, target, chips, fits, step_seconds, steps, chip_hours, days; the last
      four None where the step does not fit.

    Raises:
      ConfigError: a target, mesh or value that cannot work, before anything is compiled.
    """
    planned = [(setting, *_planned(setting, target)) for setting in settings]
    report_of = plans.cached_reports(Namespace(cache=cache, mfu=None))
    return [_priced(setting, plan, report_of(plan, where)) for setting, plan, where in planned]


def _planned(setting: Setting, target: str | None) -> tuple[Plan[Any], Target]:
    config = setting.load()
    if getattr(config, "sweep", ""):
        from moe import sweep

        sweep.settle(config)
    try:
        return plans.planned(config, target)
    except ConfigError as error:
        raise ConfigError(f"{setting.row} ({setting.flags}): {error}") from error


def _priced(setting: Setting, plan: Plan[Any], report: dict[str, Any]) -> dict[str, Any]:
    seconds = report["step_time"]["seconds"] if report["fits"] else None
    hours = None if seconds is None else seconds * plan.config.steps / 3600
    return {
        "row": setting.row,
        "flags": setting.flags,
        "target": report["target"],
        "chips": report["chips"],
        "fits": report["fits"],
        "step_seconds": seconds,
        "steps": plan.config.steps,
        "chip_hours": None if hours is None else hours * report["chips"],
        "days": None if hours is None else hours / 24,
    }


def lines(experiment: Experiment, rows: Sequence[dict[str, Any]], as_json: bool) -> Iterator[str]:
    """The prices as text, or as one line of JSON."""
    if as_json:
        yield json.dumps(list(rows))
        return
    exhibit = experiment.exhibit
    yield f"{exhibit.name} of arXiv {exhibit.paper.arxiv}: {exhibit.title}"
    if experiment.needs:
        yield f"needs {experiment.needs}"
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        texts = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield "  ".join(texts).rstrip()
    known = [row["chip_hours"] for row in rows if row["chip_hours"] is not None]
    yield (
        f"{sum(known):,.0f} chip hours in all, by the time of a step that the compiler expects "
        "times the steps; data, evaluation and checkpoints are not in it, and nothing was run"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from trainlib.planning.profile.figures import time

    fits = row["fits"]
    return (
        row["row"],
        row["flags"].replace("--config=", "", 1),
        row["target"],
        "yes" if fits else "no",
        time(row["step_seconds"]) if fits else "-",
        f"{row['steps']:,}",
        f"{row['chip_hours']:,.0f}" if fits else "-",
        f"{row['days']:.1f}" if fits else "-",
    )
