"""The files of pairs that a configuration names, as tasks with splits.

`data.train`, `data.validation` and `data.test` are files; where there is no validation file, the
share `data.holdout` of the rows of `data.train` is the split. `data.source=pairs:*` reads all tasks
that the rows name, `pairs:NAMES` some of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.pairs.example import example_of, task_of
from moe.pairs.rows import rows_of
from moe.pairs.survey import Survey, key_of, survey
from moe.tasks.task import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Bad,
    Benchmark,
    TextExample,
    no_answer,
)
from trainlib import paths
from trainlib.errors import ConfigError, DataError, nearest, shown

PREFIX = "pairs:"
ALL = "*"


def is_pairs(source: str) -> bool:
    """Whether a `data.source` is of this kind."""
    return source.startswith(PREFIX)


def holds_out(config: ConfigDict) -> bool:
    """Whether there is a validation split; `config` is the `data` section, as everywhere here."""
    return bool(config.validation) or config.holdout > 0


def check_unused(config: ConfigDict) -> None:
    """Refuses files of pairs that nothing would read.

    Raises:
      ConfigError: names the key.
    """
    given = [name for name in SPLITS if config[name]]
    if given and not is_pairs(config.source) and not config.source.startswith("mixture"):
        raise ConfigError(
            f"data.{given[0]} is a file of pairs, and data.source={shown(config.source)} reads "
            "none. Use --config=finetune_pairs, or set --config.data.source=pairs:* with "
            "--config.task=finetune."
        )


def path_of(config: ConfigDict, split: str) -> tuple[Path, str]:
    """The file of a split, and the key that names it.

    Raises:
      ConfigError: no key does.
    """
    name = TRAIN if split == VALIDATION and not config.validation else split
    if not config[name]:
        raise ConfigError(
            f"data.{name} names no file. Give a file of rows with inputs and targets: "
            f"--config.data.{name}=FILE.jsonl (or .csv, .tsv, .parquet)."
        )
    return paths.resolve(config[name], f"data.{name}"), f"data.{name}"


def _surveyed(config: ConfigDict, split: str) -> Survey:
    return survey(*path_of(config, split))


def _is_shared(config: ConfigDict, split: str) -> bool:
    """Whether the file of a split holds two splits."""
    return split != TEST and not config.validation and config.holdout > 0


def tasks_of(config: ConfigDict, source: str, split: str) -> list[Benchmark]:
    """The tasks of which a split has rows, in the order of their first rows; none for a split that
    has no file.

    Args:
      config: the `data` section of a configuration.
      source: `pairs:NAMES`.
      split: of `moe.tasks.task.SPLITS`.

    Raises:
      ConfigError: no task is named, none of a name is there, or there is no training file.
      DataError: see `survey`.
    """
    if not source.partition(":")[2].strip(" ,"):
        raise ConfigError(
            f"data.source={source!r} names no task: pairs:* reads all of the file, pairs:NAMES "
            "those that its rows name so."
        )
    if (split == TEST and not config.test) or (split == VALIDATION and not holds_out(config)):
        return []
    surveyed = _surveyed(config, split)
    names = _chosen(config, source, list(surveyed.tasks))
    shared = _is_shared(config, split) and split == VALIDATION
    return [
        _benchmark(name, surveyed)
        for name in surveyed.tasks
        if name in names and (surveyed.tasks[name].divisible or not shared)
    ]


def _benchmark(name: str, surveyed: Survey) -> Benchmark:
    facts = surveyed.tasks[name]
    classed = facts.with_choices == facts.rows
    return Benchmark(
        name=name,
        metric="accuracy" if classed else "exact_match,f1",
        text=_no_record,
        records=_no_record,
        folders=(),
        files={},
        tfds="",
        tfds_splits=dict.fromkeys(SPLITS, ""),
        labels=facts.choices if facts.same_choices else (),
        answer="targets",
    )


def _no_record(row: object) -> Any:
    raise AssertionError("rows of pairs become examples in moe.pairs")


def _chosen(config: ConfigDict, source: str, there: list[str]) -> set[str]:
    """The tasks that NAMES stands for.

    Raises:
      ConfigError: no file has one of them.
    """
    names = [name.strip() for name in source.removeprefix(PREFIX).split(",") if name.strip()]
    if names == [ALL]:
        return set(there)
    if set(names) <= set(there):
        return set(names)
    known = list(dict.fromkeys([*there, *_surveyed(config, TRAIN).tasks]))
    for name in names:
        if name not in known:
            raise ConfigError(
                f"data.source={shown(source)}: no row of data.train names the task {shown(name)!r}."
                f" {nearest(name, known)}Tasks: {', '.join(known[:20])}; pairs:* reads all."
            )
    return set(names)


def read(
    config: ConfigDict, name: str, split: str, *, strays: bool = False
) -> Iterator[tuple[str, TextExample | Bad]]:
    """(file and position, example or why there is none) of the rows of one task in a split.

    Args:
      config: the `data` section of a configuration.
      name: of the task.
      split: of `moe.tasks.task.SPLITS`.
      strays: also gives the rows of which not even the task can be told.

    Raises:
      ConfigError, DataError: see `path_of` and `rows_of`.
    """
    path, key = path_of(config, split)
    shared = _is_shared(config, split)
    limit = survey(path, key).tasks[name].limit(config.holdout) if shared else 0
    for number, (position, row) in enumerate(rows_of(path, key), start=1):
        where = f"{shown(path)} {position}"
        task = ""
        try:
            if isinstance(row, Bad):
                raise row
            task = task_of(row)
            if task != name:
                continue
            example = example_of(row, number)
            if split != TEST and not example.known:
                raise no_answer(row, "targets")
        except Bad as error:
            # Of a divided file, what cannot be read counts as training.
            if (task == name or strays) and not (shared and split == VALIDATION):
                yield where, error
            continue
        if shared and (key_of(name, example.inputs) < limit) != (split == VALIDATION):
            continue
        yield where, dataclasses.replace(example, where=where)


def described(config: ConfigDict, split: str) -> str:
    """Which rows a split has, in words."""
    shared = ", what is held out" if split == VALIDATION else ", but what is held out"
    path, _ = path_of(config, split)
    return f"{shown(path)}{shared if _is_shared(config, split) else ''}"


def notes(config: ConfigDict) -> list[str]:
    """What a user should know of the files before a run, a line each: rows on both sides, rows that
    repeat, fields that are not read, what is held out.
    """
    train = _surveyed(config, TRAIN)
    lines = train.notes("data.train")
    if config.validation:
        lines += _surveyed(config, VALIDATION).notes("data.validation")
    elif config.holdout:
        lines.append(_divided(config, train))
    return [*lines, *(f"leak     {line}" for line in leaks(config))]


def _divided(config: ConfigDict, train: Survey) -> str:
    whole = [name for name, facts in train.tasks.items() if not facts.divisible]
    lacking = f"; nothing of {', '.join(whole[:5])}, which has one input" if whole else ""
    return (
        f"held out {train.held_out(config.holdout):,} of {len(train.keys):,} rows of data.train, "
        f"by their inputs (data.holdout={config.holdout:g}){lacking}"
    )


def leaks(config: ConfigDict) -> list[str]:
    """A line for each file that is scored and has questions of the training file."""
    lines = []
    for split in (VALIDATION, TEST):
        if not config[split] or not config.train:
            continue
        with contextlib.suppress(DataError):  # a machine that only evaluates may lack a file
            asked, learned = _surveyed(config, split).keys, _surveyed(config, TRAIN).keys
            both = int(np.isin(asked, learned).sum())
            if both:
                lines.append(
                    f"{both:,} of {len(asked):,} rows of data.{split} have inputs that "
                    "data.train has too: scores on them tell nothing of new ones"
                )
    return lines
