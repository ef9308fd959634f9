"""The fine-tuning tasks by name, and groups of them.

A new task is a `Benchmark` in the file of its kind, with its group; a new file of tasks is named
here once.
"""

from __future__ import annotations

from moe.tasks import question_answering, reasoning, summaries, superglue
from moe.tasks.task import Benchmark
from trainlib.errors import ConfigError, nearest

TASKS: dict[str, Benchmark] = {
    task.name: task
    for module in (superglue, question_answering, reasoning, summaries)
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


def task_names(source: str) -> list[str]:
    """The tasks that `task:NAMES` or `sample:NAMES` stands for, each once.

    Raises:
      ConfigError: no such task or group.
    """
    kind, _, listed = source.partition(":")
    names: list[str] = []
    for name in filter(None, (part.strip() for part in listed.split(","))):
        if name not in TASKS and name not in GROUPS:
            known = [*GROUPS, *TASKS]
            raise ConfigError(
                f"data.source={source!r}: there is no task '{name}'. {nearest(name, known)}Groups: "
                f"{', '.join(GROUPS)}; tasks: {', '.join(TASKS)}."
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
    return [
        task for task in map(TASKS.__getitem__, task_names(source)) if split in task.tfds_splits
    ]
