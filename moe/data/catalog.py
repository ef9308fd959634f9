"""From `data.source` to what is read: readers of documents, their caches, sources, mixtures."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from moe.data.cache.build import build
from moe.data.cache.read import Cache, is_complete
from moe.data.cache_paths import cache_directory, notes_path
from moe.data.data_sets import KINDS, kind_of, usage
from moe.data.mixtures import MIXTURE, MIXTURES, parts_of, shared
from moe.data.options import data_defaults
from moe.data.sources.examples import Examples
from moe.data.sources.from_cache import from_cache
from moe.data.sources.mixture import Mixture
from moe.data.sources.source import Source
from moe.data.sources.windows import Windows
from moe.pairs import files as pairs
from moe.text.reader import Reader, ReadsFiles
from moe.text.vocabulary import Vocabulary, make_vocabulary
from trainlib import commands, extension
from trainlib.config import check_section
from trainlib.errors import ConfigError, DataError, nearest

SPLITS = ("train", "holdout")

# A source of at most so much is tokenised when a run first asks for it; more is a matter of
# `launch.prepare`.
_AT_FIRST_USE_BYTES = 32 << 20

# About so much text goes into one shard.
_SHARD_BYTES = 256 << 20


def make_reader(config: ConfigDict, source: str, split: str, vocabulary: Vocabulary) -> Reader:
    """Makes the reader of one source; nothing is opened yet.

    Args:
      config: the `data` part of a configuration.
      source: what `data.source` names, except a mixture.
      split: train or holdout.
      vocabulary: what seqio Tasks are given.

    Raises:
      ConfigError: no such source, or an argument that it does not take or that is missing.
    """
    name, argument = extension.split(source)
    kind = kind_of(source)
    if kind is None:
        raise ConfigError(
            f"data.source={source!r} is not known. {nearest(name, [*KINDS, MIXTURE])}Allowed: "
            f"{usage()}, mixture (with data.parts) or mixture:NAME of {', '.join(MIXTURES)}."
        )
    if kind.takes_argument != bool(argument):
        wanted = "a path or name" if kind.takes_argument else "nothing"
        raise ConfigError(f"data.source={source!r}: '{name}' takes {wanted} after a colon.")
    return kind.make(config, source, split, vocabulary)


def open_reader(
    config: ConfigDict, source: str, split: str, vocabulary: Vocabulary
) -> tuple[Reader, Path]:
    """The reader of a source and where its cache lies; arguments and errors as `make_reader`."""
    reader = make_reader(config, source, split, vocabulary)
    if isinstance(reader, ReadsFiles):
        reader.notes = notes_path(config, source)
    return reader, cache_directory(config, source, split, vocabulary)


def holds_out(config: ConfigDict, source: str) -> bool:
    """Whether a part of the source is kept out of training, to evaluate on."""
    kind = kind_of(source)
    return kind is None or kind.holds_out(config)


def evaluates(config: ConfigDict) -> bool:
    """Whether anything of `config.source` is held out."""
    return any(holds_out(config, source) for source, _ in parts_of(config, "holdout"))


def shard_count(reader: Reader) -> int:
    """Returns how many shards a source is divided into."""
    return max(1, min(reader.most_shards, -(-reader.size_bytes // _SHARD_BYTES)))


def check_settings(config: ConfigDict) -> None:
    """Refuses numbers of the `data` part of a configuration that cannot work, before anything is
    read; those of span corruption are refused with its source.

    Raises:
      ConfigError: names the key and what it may be.
    """
    check_section("data", data_defaults(), config)
    pairs.check_unused(config)


def make_source(config: ConfigDict, split: str) -> Source:
    """Opens the split `train` or `holdout` of what `config.source` names.

    Small sources that need no TensorFlow are tokenised at first use; others must have been prepared
    by `python -m launch.prepare`.

    Raises:
      DataError: the data is absent, not prepared, damaged or not what it should be.
      ConfigError: no such source, split or vocabulary, or settings that cannot work together.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r} is not known. Allowed: {', '.join(SPLITS)}.")
    check_settings(config)
    vocabulary = make_vocabulary(config)
    parts = parts_of(config, split)
    if split == "holdout":
        parts = [part for part in parts if holds_out(config, part[0])]
    if not parts:
        raise _nothing(config, split)
    opened = [_open(config, source, split, vocabulary) for source, _ in parts]
    sources = [source for of_part in opened for source in of_part]
    if len(sources) == 1:
        return sources[0]
    rates = _rates(config, parts, [of_part[0] for of_part in opened])
    each = [  # the denoisers of an objective make as many rows each
        rate / len(of_part) for rate, of_part in zip(rates, opened, strict=True) for _ in of_part
    ]
    mixture = Mixture(config.source, sources, each)
    if config.pretraining_share and split == "train":
        share = f"{100 * config.pretraining_share:.3g} % of the rows are of"
        mixture.notes += (f"mixed in: {share} {config.pretraining_source}, as in pre-training",)
    return mixture


def _nothing(config: ConfigDict, split: str) -> ConfigError | DataError:
    """The error for a split that has nothing in it."""
    kind = kind_of(config.source)
    if kind is not None and kind.parts is not None:
        return DataError(
            f"None of the tasks of data.source={config.source!r} has a split to "
            f"{'train on' if split == 'train' else 'hold out'}."
        )
    return ConfigError(
        f"data.holdout=0: nothing of data.source={config.source!r} is held out, so there is "
        "nothing to evaluate on. Hold a part out when you train (--config.data.holdout=0.01), "
        "or name text that was not trained on and take nearly all of it: "
        "--config.data.source=text:PATH --config.data.holdout=0.99."
    )


def _rates(
    config: ConfigDict, parts: list[tuple[str, float]], sources: list[Windows | Examples]
) -> list[float]:
    """The rates of a mixture as they are given; of fine-tuning tasks, every training example
    equally often, except that a task counts as `most_examples` at most. Text that is mixed in has
    its share of the rows.
    """
    kind, given = kind_of(config.source), [rate for _, rate in parts]
    if kind is None or kind.parts is None:
        return given
    if (most := kind.most_examples) is not None:
        given = [len(source) * min(1.0, most / source.cache.documents) for source in sources]
    return shared(config, [name for name, _ in parts], given)


def _open(
    config: ConfigDict, source: str, split: str, vocabulary: Vocabulary
) -> list[Windows | Examples]:
    reader, directory = open_reader(config, source, split, vocabulary)
    again = is_stale(source, reader, directory, f"{source} ({split})")
    if again or not is_complete(directory):
        large = reader.size_bytes > _AT_FIRST_USE_BYTES
        if _is_prepared_first(source, reader):
            raise DataError(
                f"{source} ({split}) has not been prepared: there is no {directory}. Tokenise it "
                f"once with `{commands.name('prepare')}` and the same --config (and overrides of "
                "data.); training then starts from there."
            )
        build(
            directory,
            reader,
            vocabulary,
            shards=1,
            workers=0,
            private=True,
            replace=again,
            title=f"{source} ({split})",
            max_bad_fraction=config.max_bad_fraction,
            report=print if large else lambda line: None,
        )
        for line in Cache(directory).left_out():
            print(f"{source} ({split}): {line}", flush=True)
    cache = Cache(directory)
    if _changed(reader, cache):
        raise DataError(f"{source} ({split}) changes while it is read. Let nothing write there.")
    opened = from_cache(source, cache, vocabulary, config)
    opened[0].notes = (
        *(f"passed over in {source}: {line}" for line in reader.passed_over),
        *unknown(source, cache),
        *opened[0].notes,
    )
    return opened


def _is_prepared_first(source: str, reader: Reader) -> bool:
    """Whether a source is so large that `launch.prepare` has to tokenise it."""
    kind = kind_of(source)
    return reader.size_bytes > _AT_FIRST_USE_BYTES and not (kind and kind.at_first_use)


def unknown(source: str, cache: Cache) -> list[str]:
    """A line about the tokens that the vocabulary has no words for; none when there are none."""
    if not cache.unknown:
        return []
    share = 100 * cache.unknown / cache.tokens
    return [
        f"unknown: {cache.unknown:,} of {cache.tokens:,} tokens of {source} ({share:.2g} %) are "
        f"what the vocabulary {cache.manifest['vocabulary_name']} has no piece for"
    ]


def _changed(reader: Reader, cache: Cache) -> bool:
    """Whether the files are others than those that were tokenised; they may be gone, as on a
    machine that has the cache only.
    """
    return reader.fingerprint() not in (None, cache.manifest["fingerprint"])


def is_stale(source: str, reader: Reader, directory: Path, title: str) -> bool:
    """Whether there is a cache of another state of the files, which is said, and is so small that
    it is tokenised again without asking.

    Raises:
      DataError: the cache of a large source is of another state; or it is damaged.
    """
    if not is_complete(directory) or not _changed(reader, Cache(directory)):
        return False
    changed = f"{title} has changed since it was tokenised (names, sizes or text of its files)"
    if _is_prepared_first(source, reader):
        raise DataError(
            f"{changed}. Remove {directory} and prepare it again with `{commands.name('prepare')}` "
            "and the same --config; or restore the files."
        )
    print(f"{changed}: it is tokenised again", flush=True)
    return True
