"""Sources as seqio Tasks: C4 and any TFDS set, and Tasks and Mixtures that a user defines.

Everything here needs TensorFlow and seqio, the extra `[text]`, and is for preparation alone. What a
Task yields at its `CacheDatasetPlaceholder` is stored: ids of `targets`, and of `inputs` when there
are any. The Task's later preprocessors (span corruption, end of sequence, trimming) are replaced by
those of `moe.data` while training. Every other source can be had as a Task too (`make_task`), for
programs that read Tasks.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moe.text.reader import Document, Kind, Reader
from moe.text.vocabulary import EOS, SentencePieceVocabulary, Vocabulary
from trainlib import commands, paths
from trainlib.data import tfds_files
from trainlib.errors import ConfigError, DataError, nearest

# The version that TFDS 4.9 builds; its `validation` split is the published held-out set.
_C4 = "c4/en:3.1.0"


def import_seqio(what: str) -> ModuleType:
    try:
        import seqio  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ConfigError(
            f"{what} is read by seqio, which cannot be imported here ({error}). Preparing it needs "
            f"the extra [text]: {commands.install('text')} (3 GB with TensorFlow). Training "
            "from the prepared data does not need it."
        ) from error
    return seqio


def load_definitions(path: Path) -> None:
    """Runs a Python file that registers Tasks and Mixtures with seqio.

    Raises:
      ConfigError: there is no such file, or seqio is not installed.
    """
    import_seqio(f"the file {path}")
    spec = importlib.util.spec_from_file_location(f"tasks_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--tasks={path}: there is no such Python file.")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def mixture_rates(name: str) -> dict[str, float] | None:
    """Returns Task -> rate for a registered Mixture, None for a Task.

    Raises:
      DataError: there is neither.
    """
    seqio = import_seqio(f"seqio:{name}")
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise DataError(
            f"seqio has no Task or Mixture '{name}'. {nearest(name, known)}Give the Python file "
            f"that registers it: {commands.name('prepare')} --tasks=FILE.py ..."
        )
    registered = seqio.get_mixture_or_task(name)
    if isinstance(registered, seqio.Task):
        return None
    return {task.name: float(registered.get_rate(task)) for task in registered.tasks}


def seqio_vocabulary(vocabulary: Vocabulary) -> Any:
    """Returns seqio's vocabulary with the same ids."""
    seqio = import_seqio(f"data.vocabulary={vocabulary.name}")
    if isinstance(vocabulary, SentencePieceVocabulary):
        return seqio.SentencePieceVocabulary(vocabulary.path, extra_ids=vocabulary.added)
    return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)


def _same(theirs: Any, ours: Vocabulary) -> bool:
    expected = seqio_vocabulary(ours)
    if type(theirs) is not type(expected):
        return False
    if isinstance(ours, SentencePieceVocabulary):
        return theirs.sp_model == expected.sp_model  # with the sentinels in it
    return theirs == expected


def make_task(
    config: ConfigDict,
    source: str,
    vocabulary: Vocabulary,
    readers: dict[str, Reader] | None = None,
) -> Any:
    """Makes the seqio Task of a source, unregistered, without a metric.

    Args:
      config: the `data` part of a configuration.
      source: c4, tfds:NAME:VERSION, or what `readers` read.
      vocabulary: what its features are tokenised with.
      readers: split -> reader, for a source that needs no TFDS.
    """
    seqio = import_seqio(source)
    kind, _, argument = source.partition(":")
    fields = {"targets": "text" if kind == "c4" else config.text_feature}
    if config.inputs_feature and kind != "c4":
        fields = {"inputs": config.inputs_feature, **fields}
    if readers:
        fields = {feature: feature for feature in readers["train"].features}
        origin = seqio.FunctionDataSource(functools.partial(_texts, readers), splits=tuple(readers))
    else:
        name = _C4 if kind == "c4" else argument
        if ":" not in name:
            raise ConfigError(
                f"data.source={source!r} needs the version of the set: tfds:NAME[/CONFIG]:VERSION, "
                "for example tfds:wiki40b/en:1.3.0."
            )
        folder = paths.optional(config.dir, "data.dir")
        tfds_files.check_set(name, folder)
        origin = seqio.TfdsDataSource(name, tfds_data_dir=folder or None)
    feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True)
    return seqio.Task(
        re.sub(r"[^\w.:#]", "_", source),
        source=origin,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map=fields),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=dict.fromkeys(fields, feature),
        metric_fns=[],
    )


def _texts(readers: Mapping[str, Reader], split: str, shuffle_files: bool) -> Any:
    """Returns the usable documents of a split as a tf.data.Dataset."""
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]  # an extra

    reader = readers[split]
    signature = {feature: tf.TensorSpec((), tf.string) for feature in reader.features}

    def texts() -> Iterator[dict[str, Any]]:
        return (text for _, text, unusable in reader.documents(0, 1) if not unusable)

    return tf.data.Dataset.from_generator(texts, output_signature=signature)


class SeqioReader:
    """The examples of a Task, tokenised by its own preprocessors."""

    size_bytes = 1 << 62  # not known before it is read, and never read at first use
    passed_over = ()

    def __init__(self, config: ConfigDict, source: str, split: str, vocabulary: Vocabulary):
        self.name, self.config, self.vocabulary = source, config, vocabulary
        self.split = "train" if split == "train" else config.eval_split
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def fingerprint(self) -> str | None:
        return f"{self.name} {self.split}"

    @property
    def most_shards(self) -> int:
        return len(self._task().source.list_shards(self.split))

    @property
    def features(self) -> tuple[str, ...]:
        return self._features

    @functools.cached_property
    def _features(self) -> tuple[str, ...]:
        first = next(self._examples(0, 1), None)
        return ("inputs", "targets") if first and len(first.get("inputs", ())) else ("targets",)

    def _task(self) -> Any:
        """Returns the Task; raises DataError for one that cannot serve."""
        if self._opened is None:
            kind, _, name = self.name.partition(":")
            if kind == "seqio":
                mixture_rates(name)
                task = import_seqio(self.name).get_mixture_or_task(name)
                self._check(task)
            else:
                task = make_task(self.config, self.name, self.vocabulary)
            splits = self._splits(task)
            if self.split not in splits:
                raise DataError(
                    f"{self.name} has no split '{self.split}', only {', '.join(splits)}. "
                    "Name its held-out split with --config.data.eval_split=NAME."
                )
            self._opened = task
        return self._opened

    def _splits(self, task: Any) -> list[str]:
        try:
            return list(task.splits)
        except Exception as error:  # TFDS reports an absent set as many types
            where = self.config.dir or "TFDS's own ~/tensorflow_datasets"
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.name}: its data was not found in {where} ({reason}). Give the TFDS data "
                "directory with --config.data.dir=DIR, or make the set there with `tfds build`."
            ) from error

    def _check(self, task: Any) -> None:
        has = sorted(task.output_features)
        if "targets" not in has:
            raise DataError(
                f"{self.name} has the features {', '.join(has)}; training needs 'targets' (and "
                "'inputs' for pairs). Rename them with seqio.preprocessors.rekey."
            )
        for feature in {"inputs", "targets"} & set(has):
            theirs = task.output_features[feature].vocabulary
            if not _same(theirs, self.vocabulary):
                raise DataError(
                    f"{self.name}: the vocabulary of '{feature}' is {theirs}, another than "
                    f"data.vocabulary={self.vocabulary.name} with data.extra_ids="
                    f"{self.vocabulary.extra_ids}. Set these to the Task's, or the Task's to these."
                )

    def _examples(self, shard: int, shards: int) -> Iterator[dict[str, np.ndarray]]:
        seqio = import_seqio(self.name)
        task = self._task()
        part = seqio.ShardInfo(shard, shards)
        dataset = task.source.get_dataset(self.split, shuffle=False, shard_info=part)
        if task.supports_caching:
            dataset = task.preprocess_precache(dataset, seed=0)
        else:
            dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=0)
        yield from dataset.as_numpy_iterator()

    def documents(self, shard: int, shards: int) -> Iterator[Document]:
        for number, example in enumerate(self._examples(shard, shards)):
            where = f"{self.split} shard {shard} of {shards} example {number}"
            ids = {}
            for feature in self.features:
                if feature not in example:
                    raise DataError(
                        f"{self.name}, {where}: has {', '.join(sorted(example))} and no "
                        f"'{feature}'. The Task's preprocessors must make it before "
                        "CacheDatasetPlaceholder."
                    )
                ids[feature] = _plain_ids(example[feature], f"{self.name}, {where}: '{feature}'")
            yield Document(where, ids, "" if len(ids["targets"]) else "is empty")


def _plain_ids(values: Any, where: str) -> np.ndarray:
    """Returns int64 ids without the EOS at their end, which the pipeline appends itself."""
    ids = np.asarray(values)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"{where} is {ids.dtype} of shape {ids.shape}, where a list of ids is needed. Put "
            "seqio.preprocessors.tokenize before CacheDatasetPlaceholder."
        )
    return (ids[:-1] if len(ids) and ids[-1] == EOS else ids).astype(np.int64)


def _deciding(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [config.eval_split] if split == "holdout" else []


def _deciding_fields(config: ConfigDict, source: str, split: str) -> list[Any]:
    return [config.text_feature, config.inputs_feature, *_deciding(config, source, split)]


C4 = Kind("c4", SeqioReader, _deciding)
TFDS = Kind("tfds:NAME:VERSION", SeqioReader, _deciding_fields)
SEQIO = Kind("seqio:TASK", SeqioReader, _deciding)
