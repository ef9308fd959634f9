"""One's own pairs as a data set to train on: `pairs:*` and `pairs:NAMES`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moe.pairs.files import PREFIX, holds_out, path_of, read, tasks_of
from moe.tasks.task import Bad, Benchmark, TextExample
from moe.tasks.task_reader import RATE_LIMIT, TEXT_VERSION, TaskReader, published
from moe.text.fingerprint import files_digest
from moe.text.reader import Kind


class PairsReader(TaskReader):
    """The training examples of one task of a file of pairs, tokenised."""

    def _tasks(self) -> list[Benchmark]:
        return tasks_of(self.config, self.name, self.split)

    def _files(self) -> tuple[Path, list[str]]:
        path, _ = path_of(self.config, self.split)
        return path.parent, [path.name]

    def _examples(self) -> Iterator[tuple[str, TextExample | Bad]]:
        # Rows whose task cannot be told are reported once, with the first task.
        first = tasks_of(self.config, self.config.source, self.split)[0].name
        name = self.name.removeprefix(PREFIX)
        return read(self.config, name, self.split, strays=name == first)

    def fingerprint(self) -> str | None:
        return files_digest(self.name, *self._files(), self.notes)


def _parts(config: ConfigDict, split: str) -> list[str]:
    return [PREFIX + task.name for task in tasks_of(config, config.source, published(split))]


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    path, _ = path_of(config, published(split))
    length = [config.encoder_length] if config.sentinels else []
    share = 0 if config.validation else config.holdout
    return [TEXT_VERSION, os.path.realpath(path), share, config.sentinels, *length]


KIND = Kind(
    "pairs:TASKS",
    make=PairsReader,
    deciding=_deciding,
    parts=_parts,
    holds_out=holds_out,
    at_first_use=True,
    most_examples=RATE_LIMIT,
)
