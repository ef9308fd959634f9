"""What there is: every table and figure with what it needs, how it is reproduced, what was run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.reproduce.experiment import Experiment, Setting
from launch.reproduce.runs import finished
from trainlib import commands


def facts(experiment: Experiment, folder: Path | None, seeds: int) -> dict[str, Any]:
    """An experiment as plain data.

    Args:
      experiment: which.
      folder: where tiny runs lie; None where nobody asked for them.
      seeds: how many of each.

    Returns:
      The published exhibit (`Exhibit.facts`) and scales, needs, full (row -> flags of `train`),
      tiny (the same), tiny_is, cpu_minutes, computed_is, done, note, and with a folder finished and
      runs, numbers of tiny runs.
    """
    tiny = experiment.tiny
    more = {}
    if folder is not None:
        runs = [(setting, seed) for setting in tiny for seed in range(seeds)]
        more = {"finished": sum(finished(*run, folder) for run in runs), "runs": len(runs)}
    return {
        **experiment.exhibit.facts(),
        "scales": list(experiment.scales),
        "needs": experiment.needs,
        "full": {setting.row: setting.flags for setting in experiment.full},
        "tiny": {setting.row: setting.flags for setting in tiny},
        "tiny_is": experiment.tiny_is,
        "cpu_minutes": experiment.minutes,
        "computed_is": experiment.computed_is,
        "done": experiment.done,
        "note": experiment.note,
        **more,
    }


def lines(experiments: Sequence[Experiment], folder: Path | None, seeds: int) -> Iterator[str]:
    """The list as text, a paragraph a paper and a few lines an exhibit."""
    paper = None
    for experiment in experiments:
        exhibit = experiment.exhibit
        if exhibit.paper != paper:
            paper = exhibit.paper
            yield f"\n{paper.name}: {paper.title} (arXiv {paper.arxiv})"
        yield f"  {exhibit.name:<10} {exhibit.title}"
        yield from (f"             {line}" for line in _details(experiment, folder, seeds))


def _details(experiment: Experiment, folder: Path | None, seeds: int) -> Iterator[str]:
    found = facts(experiment, folder, seeds)
    if experiment.needs:
        yield f"needs: {experiment.needs}"
    if experiment.full:
        configs = dict.fromkeys(setting.config for setting in experiment.full)
        yield f"full:  {len(experiment.full)} runs of {_few(list(configs))}"
    if experiment.tiny:
        done = f"; {found['finished']} of {found['runs']} finished here" if "runs" in found else ""
        minutes = f"about {experiment.minutes:g} CPU minutes"
        yield f"tiny:  {len(experiment.tiny)} runs, {minutes}{done}"
    if experiment.compute is not None:
        yield f"tiny:  computed: {experiment.computed_is}"
    if experiment.done:
        yield f"run:   {experiment.done}"
    elif experiment.full:
        yield "run:   nothing at the paper's scale"
    if experiment.note:
        yield f"note:  {experiment.note}"


def _few(names: Sequence[str]) -> str:
    most = 5
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def full_command(setting: Setting) -> str:
    """What one types on the pod of a row, at the paper's scale."""
    return f"{commands.name('train')} {setting.flags} --workdir=DIR"
