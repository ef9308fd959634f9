"""Fine-tuning tasks by name, read from TFDS, from the published files, or from embedded samples.

`task:NAMES` reads `data.dir`: the directory that holds the folders of the published archives
(`BoolQ/train.jsonl`, ..), or a TFDS data directory. `sample:NAMES` reads a few examples of each
task that come with this package, in the same files; they show that everything fits together and are
no benchmark. NAMES are tasks and groups of tasks, with commas between.

All three kinds of source become the same records before a task turns them into text. Only TFDS
needs TensorFlow, and only where the set is not stored as ArrayRecord.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moe.tasks import question_answering, reasoning, superglue
from moe.tasks import summaries as summarise
from moe.tasks.task import TEST, TRAIN, VALIDATION, Bad, Benchmark, Note, Record, TextExample
from moe.text.fingerprint import files_digest
from moe.text.readers import Document
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib import paths
from trainlib.data import tfds_files
from trainlib.errors import ConfigError, DataError, nearest

KINDS = ("task", "sample")
TASKS: dict[str, Benchmark] = {
    task.name: task
    for module in (superglue, question_answering, reasoning, summarise)
    for task in module.TASKS
}
SUPERGLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
GROUPS: dict[str, tuple[str, ...]] = {
    "superglue": (*SUPERGLUE, "dpr"),
    "diagnostics": ("axb", "axg"),
    "summaries": ("xsum", "cnn_dailymail"),
    "closed_book": ("trivia_qa", "natural_questions", "web_questions"),
    "arc": ("arc_easy", "arc_challenge"),
    "anli": ("anli_r1", "anli_r2", "anli_r3"),
    "squad": ("squad_v1", "squad_v2"),
    "all": tuple(TASKS),
}
TEXT_VERSION = 4  # changes when a task's text does: what was tokenised before is then made again
RATE_LIMIT = 65_536  # examples of a task that count for its share (ST-MoE, section 6.1)

_SAMPLES = Path(__file__).parent / "samples"
_SHOWN = 20  # unusable records that an error lists


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


def load(config: Any, source: str, split: str) -> list[TextExample]:
    """All examples of one task, in their order, for evaluation.

    Args:
      config: the `data` part of a configuration.
      source: `task:NAME` or `sample:NAME`, one task.
      split: "train", "validation" or "test".

    Raises:
      DataError: the data is not there, or some of it cannot be used: a score over the rest would
        be no score of the task.
    """
    found, bad = [], []
    for where, example in read(config, source, split):
        if isinstance(example, Bad):
            bad.append(f"{where} {example}")
        else:
            found.append(example)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} records of {source} ({split}) cannot be used: {'; '.join(bad[:_SHOWN])}"
            f"{more}. Repair them: a score without them would be no score of this task."
        )
    if not found:
        raise DataError(f"{source} has no examples in its split '{split}'.")
    return found


def read(config: Any, source: str, split: str) -> Iterator[tuple[str, TextExample | Bad]]:
    """(place, example or why there is none) of every record of one task."""
    (name,) = task_names(source)
    task, seen = TASKS[name], {}
    for where, record in _records(task, config, source, split):
        try:
            if isinstance(record, Bad):
                raise record
            example = task.text(record)
            if split != TEST and not example.known:
                raise Bad(
                    f"has no answer in the field '{task.answer}': only the test split may lack it"
                )
            if example.key in seen:
                raise Bad(f"repeats the id {_shown(example.key)} of {seen[example.key]}")
            seen[example.key] = where
        except Bad as error:
            yield where, error
            continue
        yield where, dataclasses.replace(example, where=where)


def _shown(key: tuple) -> str:
    return "/".join(map(str, key))


def _records(
    task: Benchmark, config: Any, source: str, split: str
) -> Iterator[tuple[str, Record | Bad]]:
    """Records as TFDS has them; one without an id of its own gets its number, from 0."""
    folder = _folder(task, config, source)
    if folder is None:
        yield from _tfds_records(task, paths.optional(config.dir, "data.dir"), split)
        return
    path = folder / task.files[split]
    try:
        for number, (place, row) in enumerate(task.read(path)):
            where = f"{path} {place}".rstrip()
            if isinstance(row, Note):
                print(f"{source} ({split}): {where} {row}", file=sys.stderr, flush=True)
                continue
            try:
                if isinstance(row, Bad):
                    raise row
                records = task.records(row)
            except Bad as error:
                yield where, error
                continue
            yield from ((where, {"id": number} | record) for record in records)
    except OSError as error:
        raise DataError(
            f"{source}: {path} cannot be read ({error.strerror}). It is the split '{split}' of "
            f"{task.name} in the form in which it is published; copy it there, or leave "
            f"'{task.name}' out of data.source."
        ) from None


def _folder(task: Benchmark, config: Any, source: str) -> Path | None:
    """Where the published files of a task lie; None when TFDS is to be asked.

    Raises:
      DataError: data.dir holds neither.
    """
    if source.startswith("sample:"):
        return _SAMPLES / task.folders[0]
    if not config.dir:
        return None
    place = paths.resolve(config.dir, "data.dir")
    for folder in task.folders:
        if (place / folder).is_dir():
            return place / folder
    if place.name in {Path(folder).name for folder in task.folders} and place.is_dir():
        return place
    if (place / task.tfds.partition(":")[0]).is_dir():
        return None
    raise DataError(
        f"{source}: {config.dir} has no folder {' or '.join(task.folders)} with the files of "
        f"{task.name} as published, nor {task.tfds.partition(':')[0]} as TFDS keeps it. Give their "
        "parent directory with --config.data.dir=DIR, make the set there with "
        f"`tfds build {task.tfds.partition(':')[0]}`, or try the examples that come with this "
        f"package: --config.data.source=sample:{task.name}."
    )


def _tfds_records(
    task: Benchmark, directory: str, split: str
) -> Iterator[tuple[str, Record | Bad]]:
    tfds_files.check_set(task.tfds, directory)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(task.tfds, data_dir=directory or None)
        try:
            found: Iterable[Any] = builder.as_data_source(task.tfds_splits[split])
        except NotImplementedError:  # stored as TFRecord, which only TensorFlow reads
            found = tfds.as_numpy(builder.as_dataset(task.tfds_splits[split]))
    except Exception as error:  # TFDS reports an absent set as many types
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{task.name}: its data was not found in {directory or '~/tensorflow_datasets'} "
            f"({reason}). Make it with `tfds build {task.tfds.partition(':')[0]}`, or give the "
            "directory of the published files with --config.data.dir=DIR, or try the examples "
            f"that come with this package: --config.data.source=sample:{task.name}."
        ) from error
    for number, example in enumerate(found):
        try:
            record = {"id": number} | _plain(example)
        except UnicodeDecodeError as error:
            record = Bad(f"holds text that is not UTF-8 ({error.reason})")
        yield f"{task.tfds} {split} record {number}", record


def _plain(value: Any) -> Any:
    """Numbers and texts of Python in place of those of NumPy."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def sample_digest(source: str) -> str:
    """Digest of the files of an embedded sample, which may differ in the next version."""
    (name,) = task_names(source)
    folder = _SAMPLES / TASKS[name].folders[0]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


def check_labels(source: str, split: str, vocabulary: Vocabulary) -> None:
    """Refuses a vocabulary that has no words for the classes of the tasks.

    Raises:
      DataError: names the task, the word and the vocabulary.
    """
    for task in tasks_of(source, split):
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

    def __init__(self, config: Any, source: str, split: str, vocabulary: Vocabulary):
        self.name, self.config, self.vocabulary = source, config, vocabulary
        self.split = TRAIN if split == "train" else VALIDATION
        self.notes: Path | None = None  # see `files_digest`
        check_labels(source, self.split, vocabulary)

    def _files(self) -> tuple[Path, list[str]]:
        """A folder, and the files of this split in it."""
        (name,) = task_names(self.name)
        folder = _folder(TASKS[name], self.config, self.name)
        if folder is None:
            return Path(), []
        file = folder / TASKS[name].files[self.split]
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
        for number, (where, example) in enumerate(read(self.config, self.name, self.split)):
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
