"""The fine-tuning tasks by name, and groups of them.

A new task is a `Benchmark` in the file of its kind, with its group; a new file of tasks is named
here once. A `Benchmark` in a module of one's own is named MODULE:NAME in `data.source`.
"""

from __future__ import annotations

import dataclasses

from moe.tasks import grammar, question_answering, reasoning, summaries, superglue
from moe.tasks.task import Benchmark
from trainlib import extension
from trainlib.errors import ConfigError, nearest

TASKS: dict[str, Benchmark] = {
    task.name: task
    for module in (superglue, question_answering, reasoning, summaries, grammar)
    for task in module.TASKS
}
# Their mean is the score of SuperGLUE; DPR is trained on beside them.
SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")


def _groups() -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for name, task in TASKS.items():
        if task.group:
            groups[task.group] = (*groups.get(task.group, ()), name)
    return groups | {"all": tuple(TASKS)}


GROUPS = _groups()


def benchmark(name: str) -> Benchmark:
    """The task of a name in `TASKS`, or of MODULE:NAME, which is then its name.

    Raises:
      ConfigError: a task of one's own that cannot be imported.
    """
    if name in TASKS:
        return TASKS[name]
    task = extension.load(name, "data.source", Benchmark, "a moe.tasks.task.Benchmark")
    return dataclasses.replace(task, name=name)


def task_names(source: str) -> list[str]:
    """The tasks that `task:NAMES` or `sample:NAMES` stands for, each once; see `benchmark`.

    Raises:
      ConfigError: no such task or group.
    """
    kind, _, listed = source.partition(":")
    names: list[str] = []
    for name in filter(None, (part.strip() for part in listed.split(","))):
        if name not in TASKS and name not in GROUPS and not extension.is_reference(name):
            known = [*GROUPS, *TASKS]
            raise ConfigError(
                f"data.source={source!r}: there is no task '{name}'. {nearest(name, known)}Groups: "
                f"{', '.join(GROUPS)}; tasks: {', '.join(TASKS)}, or MODULE:NAME of your own."
            )
        names += GROUPS.get(name, (name,))
    if not names:
        raise ConfigError(
            f"data.source={source!r} names no task: {kind}:superglue, or {kind}:boolq,cb. Groups: "
            f"{', '.join(GROUPS)}; tasks: {', '.join(TASKS)}."
        )
    return list(dict.fromkeys(names))


def tasks_of(source: str, split: str) -> list[Benchmark]:
    """The tasks of a source that publish this split."""
    return [task for task in map(benchmark, task_names(source)) if split in task.tfds_splits]
