"""The fine-tuning tasks as seqio Tasks and Mixtures, for programs that read these.

Needs the extra [text]. A Task yields the texts that this framework trains on and scores answers by
the same functions; training and evaluation here use neither.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from moe.tasks.records import load, read
from moe.tasks.registry import benchmark, task_names
from moe.tasks.task import SPLITS, TRAIN, Bad, TextExample
from moe.tasks.task_reader import RATE_LIMIT
from moe.text.seqio_source import import_seqio, seqio_vocabulary
from moe.text.vocabulary import Vocabulary

PREFIX = "st_moe_"
_SPAN = 10**9  # numbers of one split are below this


def register(
    config: ConfigDict, source: str, vocabulary: Vocabulary, mixture: str = ""
) -> list[str]:
    """Registers the tasks of a source as `st_moe_NAME`, and a Mixture of those that have a training
    split, by their sizes up to `RATE_LIMIT`; what is registered already stays.

    Args:
      config: the `data` part of a configuration.
      source: `task:NAMES` or `sample:NAMES`.
      vocabulary: what features are tokenised with.
      mixture: name of the Mixture; "" makes none.

    Returns:
      The names of the Tasks.

    Raises:
      ConfigError: seqio is not installed, or there is no such task.
    """
    seqio = import_seqio(source)
    kind = source.partition(":")[0]
    names = task_names(source)
    for name in names:
        if PREFIX + name not in seqio.TaskRegistry.names():
            _register_one(config, f"{kind}:{name}", vocabulary)
    trained = [PREFIX + name for name in names if TRAIN in benchmark(name).tfds_splits]
    if mixture and mixture not in seqio.MixtureRegistry.names():

        def rate(task: Any) -> float:
            rows = _rows(config, f"{kind}:{task.name.removeprefix(PREFIX)}", TRAIN)
            return float(min(RATE_LIMIT, sum(1 for _ in rows)))

        seqio.MixtureRegistry.add(mixture, trained, default_rate=rate)
    return [PREFIX + name for name in names]


def _register_one(config: ConfigDict, source: str, vocabulary: Vocabulary) -> None:
    seqio = import_seqio(source)
    (name,) = task_names(source)
    splits = [split for split in SPLITS if split in benchmark(name).tfds_splits]
    feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True)
    seqio.TaskRegistry.add(
        PREFIX + name,
        source=seqio.FunctionDataSource(functools.partial(_dataset, config, source), splits=splits),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_postprocess,
        metric_fns=[_metric(config, source)],
    )


def _rows(config: ConfigDict, source: str, split: str) -> Iterator[dict[str, Any]]:
    """Texts, and the number of their example; in training each accepted target is a row."""
    first = SPLITS.index(split) * _SPAN
    for number, (_, example) in enumerate(read(config, source, split)):
        if isinstance(example, Bad):
            continue
        targets = example.targets if split == TRAIN else (*example.targets, "")[:1]
        for target in targets:
            yield {"inputs": example.inputs, "targets": target, "number": first + number}


def _dataset(
    config: ConfigDict, source: str, split: str, shuffle_files: bool, seed: Any = None
) -> Any:
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]  # an extra

    text = tf.TensorSpec((), tf.string)
    signature = {"inputs": text, "targets": text, "number": tf.TensorSpec((), tf.int64)}
    rows = functools.partial(_rows, config, source, split)
    return tf.data.Dataset.from_generator(rows, output_signature=signature)


def _postprocess(output: Any, example: Any = None, is_target: bool = False) -> Any:
    return int(example["number"]) if is_target else output


def _metric(config: ConfigDict, source: str) -> Any:
    (name,) = task_names(source)

    @functools.cache
    def examples(split: str) -> Sequence[TextExample]:
        return load(config, source, split)

    def figures(targets: Sequence[int], predictions: Sequence[str]) -> dict[str, float]:
        from moe.eval.scores import score

        asked = [examples(SPLITS[number // _SPAN])[number % _SPAN] for number in targets]
        return score(name, asked, predictions)

    return figures
