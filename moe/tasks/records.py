"""The records of the fine-tuning tasks, from TFDS, from the published files or embedded samples.

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
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.tasks.registry import benchmark, task_names
from moe.tasks.task import TEST, Bad, Benchmark, Note, Record, TextExample, no_answer
from trainlib import paths
from trainlib.data import tfds_files
from trainlib.errors import DataError

SAMPLES = Path(__file__).parent / "samples"
_SHOWN = 20  # unusable records that an error lists


def load(config: ConfigDict, source: str, split: str) -> list[TextExample]:
    """All examples of one task, in their order, for evaluation.

    Args:
      config: the `data` part of a configuration.
      source: `task:NAME` or `sample:NAME`, one task.
      split: "train", "validation" or "test".

    Raises:
      DataError: the data is not there, or some of it cannot be used: a score over the rest would
        be no score of the task.
    """
    return whole(read(config, source, split), source, split)


def whole(
    read: Iterable[tuple[str, TextExample | Bad]], source: str, split: str
) -> list[TextExample]:
    """All examples of a split, if each of them can be used.

    Args:
      read: (file and position, example or why there is none).
      source: one task, for messages.
      split: the same.

    Raises:
      DataError: see `load`.
    """
    examples: list[TextExample] = []
    bad: list[str] = []
    for where, example in read:
        if isinstance(example, Bad):
            bad.append(f"{where} {example}")
        else:
            examples.append(example)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} records of {source} ({split}) cannot be used: {'; '.join(bad[:_SHOWN])}"
            f"{more}. Repair them: a score without them would be no score of this task."
        )
    if not examples:
        raise DataError(f"{source} has no examples in its split '{split}'.")
    return examples


def read(config: ConfigDict, source: str, split: str) -> Iterator[tuple[str, TextExample | Bad]]:
    """(file and position, example or why there is none) of every record of one task."""
    (name,) = task_names(source)
    task = benchmark(name)
    seen: dict[tuple[Hashable, ...], str] = {}
    for where, record in _records(task, config, source, split):
        try:
            if isinstance(record, Bad):
                raise record
            example = task.text(record)
            if split != TEST and not example.known:
                raise no_answer(record, task.answer)
            if example.key in seen:
                raise Bad(f"repeats the id {_shown(example.key)} of {seen[example.key]}")
            if example.key:
                seen[example.key] = where
        except Bad as error:
            yield where, error
            continue
        yield where, dataclasses.replace(example, where=where)


def _shown(key: tuple) -> str:
    return "/".join(map(str, key))


def _records(
    task: Benchmark, config: ConfigDict, source: str, split: str
) -> Iterator[tuple[str, Record | Bad]]:
    """Records as TFDS has them; one without an id gets its number, from 0."""
    folder = published_folder(task, config, source)
    if folder is None:
        yield from tfds_records(task, paths.optional(config.dir, "data.dir"), split)
        return
    path = folder / task.files[split]
    try:
        for number, (position, row) in enumerate(task.read(path)):
            where = f"{path} {position}".rstrip()
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


def published_folder(task: Benchmark, config: ConfigDict, source: str) -> Path | None:
    """Where the published files of a task lie; None when TFDS is to be asked.

    Raises:
      DataError: data.dir holds neither.
    """
    if source.startswith("sample:"):
        return SAMPLES / task.folders[0]
    if not config.dir:
        if not task.tfds:
            raise DataError(
                f"{source}: {task.name} is read from its published files. Name the directory that "
                f"holds the folder {' or '.join(task.folders)} with --config.data.dir=DIR, or try "
                "the examples that come with this package: "
                f"--config.data.source=sample:{task.name}."
            )
        return None
    root = paths.resolve(config.dir, "data.dir")
    for folder in task.folders:
        if (root / folder).is_dir():
            return root / folder
    if root.name in {Path(folder).name for folder in task.folders} and root.is_dir():
        return root
    name = task.tfds.partition(":")[0]
    if name and (root / name).is_dir():
        return None
    also = f", nor {name} as TFDS keeps it" if name else ""
    made = f"make the set there with `tfds build {name}`, " if name else ""
    raise DataError(
        f"{source}: {config.dir} has no folder {' or '.join(task.folders)} with the files of "
        f"{task.name} as published{also}. Give their parent directory with "
        f"--config.data.dir=DIR, {made}or try the examples that come with this "
        f"package: --config.data.source=sample:{task.name}."
    )


def tfds_records(task: Benchmark, directory: str, split: str) -> Iterator[tuple[str, Record | Bad]]:
    tfds_files.check_set(task.tfds, directory)
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(task.tfds, data_dir=directory or None)
        try:
            examples: Iterable[Any] = builder.as_data_source(task.tfds_splits[split])
        except NotImplementedError:  # stored as TFRecord, which only TensorFlow reads
            examples = tfds.as_numpy(builder.as_dataset(task.tfds_splits[split]))
    except Exception as error:  # TFDS reports an absent set as many types
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{task.name}: its data was not found in {directory or '~/tensorflow_datasets'} "
            f"({reason}). Make it with `tfds build {task.tfds.partition(':')[0]}`, or give the "
            "directory of the published files with --config.data.dir=DIR, or try the examples "
            f"that come with this package: --config.data.source=sample:{task.name}."
        ) from error
    for number, example in enumerate(examples):
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
    folder = SAMPLES / benchmark(name).folders[0]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]
