"""Fine-tuning tasks as data sets to train on: `task:NAMES` and `sample:NAMES`."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.tasks.records import published_folder, read, sample_digest
from moe.tasks.registry import benchmark, task_names, tasks_of
from moe.tasks.task import TRAIN, VALIDATION, Bad, Benchmark, TextExample
from moe.text.fingerprint import files_digest
from moe.text.reader import Document, Kind
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib import paths
from trainlib.errors import DataError

# Changes when the text of a task does: what was tokenised before is then tokenised again.
TEXT_VERSION = 4
RATE_LIMIT = 65_536  # examples of a task that count for its share (ST-MoE, section 6.1)


def check_labels(tasks: Iterable[Benchmark], vocabulary: Vocabulary) -> None:
    """Refuses a vocabulary that has no words for the classes of tasks.

    Raises:
      DataError: names the task, the word and the vocabulary.
    """
    for task in tasks:
        ids = {word: tuple(vocabulary.encode(word).tolist()) for word in task.labels}
        for word, encoded in ids.items():
            same = [other for other in ids if other != word and ids[other] == encoded]
            if UNKNOWN in encoded or not encoded or same:
                what = f"cannot tell from '{same[0]}'" if same else "cannot encode"
                raise DataError(
                    f"{task.name} has the label '{word}', which the vocabulary {vocabulary.name} "
                    f"{what}. Use --config.data.vocabulary=bytes, or a SentencePiece model of the "
                    "language of the labels."
                )


def encode(
    text: str, target: str, vocabulary: Vocabulary, length: int, sentinels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of one example, without EOS: (inputs, targets), int32.

    With sentinels, the inputs end with as many and the targets begin with them (ST-MoE, section
    4.5); inputs are then cut so that these stay.

    Args:
      text: the input.
      target: the answer.
      vocabulary: the vocabulary.
      length: most tokens of the encoder, EOS included.
      sentinels: how many.
    """
    marks = (vocabulary.size - 1 - np.arange(sentinels)).astype(np.int32)
    inputs = vocabulary.encode(text)
    if sentinels:
        inputs = np.concatenate([inputs[: length - 1 - sentinels], marks])
    return inputs, np.concatenate([marks, vocabulary.encode(target)])


class TaskReader:
    """The training examples of one task, tokenised; a document is an example with one target."""

    features = ("inputs", "targets")
    most_shards = 64
    passed_over = ()

    def __init__(self, config: ConfigDict, source: str, split: str, vocabulary: Vocabulary):
        self.name, self.config, self.vocabulary = source, config, vocabulary
        self.split = published(split)
        self.notes: Path | None = None  # see `files_digest`
        check_labels(self._tasks(), vocabulary)

    def _tasks(self) -> list[Benchmark]:
        return tasks_of(self.name, self.split)

    def _examples(self) -> Iterator[tuple[str, TextExample | Bad]]:
        """(file and position, example or why there is none) of every record of the split."""
        return read(self.config, self.name, self.split)

    def _files(self) -> tuple[Path, list[str]]:
        """A folder, and the files of this split in it."""
        (name,) = task_names(self.name)
        folder = published_folder(benchmark(name), self.config, self.name)
        if folder is None:
            return Path(), []
        file = folder / benchmark(name).files[self.split]
        files = [file] if file.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
        return folder, [p.relative_to(folder).as_posix() for p in files]

    @property
    def size_bytes(self) -> int:
        folder, names = self._files()
        return sum((folder / name).stat().st_size for name in names)

    def fingerprint(self) -> str | None:
        if self.name.startswith("sample:"):
            return sample_digest(self.name)
        return files_digest(self.name, *self._files(), self.notes) or self.split

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for number, (where, example) in enumerate(self._examples()):
            if number % shards != shard:
                continue
            if isinstance(example, Bad):
                yield Document(where, {}, str(example))
                continue
            for target in example.targets:
                ids = self._ids(example, target)
                lost = example.choices and UNKNOWN in ids["targets"]
                reason = f"has the label {target!r}, which the vocabulary cannot encode"
                yield Document(where, ids, reason if lost else "")

    def _ids(self, example: TextExample, target: str) -> dict[str, np.ndarray]:
        pair = encode(
            example.inputs,
            target,
            self.vocabulary,
            self.config.encoder_length,
            self.config.sentinels,
        )
        return dict(zip(self.features, pair, strict=True))


def published(split: str) -> str:
    """The published split that "train" or "holdout" is."""
    return TRAIN if split == "train" else VALIDATION


def _parts(config: ConfigDict, split: str) -> list[str]:
    kind = config.source.partition(":")[0]
    return [f"{kind}:{task.name}" for task in tasks_of(config.source, published(split))]


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    folder = os.path.realpath(paths.resolve(config.dir, "data.dir")) if config.dir else ""
    length = [config.encoder_length] if config.sentinels else []
    sample = [sample_digest(source)] if source.startswith("sample:") else []
    return [TEXT_VERSION, folder, config.sentinels, *length, *sample]


_kind = functools.partial(
    Kind,
    make=TaskReader,
    deciding=_deciding,
    parts=_parts,
    at_first_use=True,
    most_examples=RATE_LIMIT,
)
TASK, SAMPLE = _kind("task:NAMES"), _kind("sample:NAMES")
