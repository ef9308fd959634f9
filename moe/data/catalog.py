"""From `data.source` to what is read: readers of documents, their caches, sources, mixtures."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from moe.data.cache.read import Cache, is_complete
from moe.data.cache.shard import FORMAT
from moe.data.cache.write import build, make_directory, read_sealed, write_sealed
from moe.data.options import data_defaults
from moe.data.sources.examples import Examples
from moe.data.sources.from_cache import from_cache
from moe.data.sources.mixture import Mixture
from moe.data.sources.source import Source
from moe.data.sources.windows import Windows
from moe.tasks import registry as supervised
from moe.tasks.task import TRAIN, VALIDATION
from moe.text.readers import Jsonl, Pydoc, Reader, TextFolder
from moe.text.seqio_source import SeqioReader, mixture_rates
from moe.text.vocabulary import Vocabulary, make_vocabulary
from trainlib import options, paths
from trainlib.errors import ConfigError, DataError, nearest

SPLITS = ("train", "holdout")

# A source of at most so much is tokenised when a run first asks for it; more is a matter of
# `launch.prepare`.
_AT_FIRST_USE_BYTES = 32 << 20

# About so much text goes into one shard.
_SHARD_BYTES = 256 << 20

_KINDS = ("pydoc", "text", "jsonl", "c4", "tfds", "seqio", "mixture", *supervised.KINDS)


class Part(NamedTuple):
    """One source of a published mixture."""

    name: str
    rate: float
    tokens_in_billions: int


# ST-MoE-32B (arXiv 2202.08906, table 19). Only C4 is public: who trains it supplies the others.
MIXTURES = {
    "st_moe_32b": (
        Part("c4", 0.17, 183),
        Part("webpages", 0.34, 143),
        Part("wikipedia", 0.05, 3),
        Part("conversations", 0.23, 174),
        Part("forums", 0.02, 247),
        Part("books", 0.17, 390),
        Part("news", 0.02, 650),
    )
}


def make_reader(config: Any, source: str, split: str, vocabulary: Vocabulary) -> Reader:
    """Makes the reader of one source; nothing is opened yet.

    Args:
      config: the `data` part of a configuration.
      source: what `data.source` names, except a mixture.
      split: train or holdout.
      vocabulary: what seqio Tasks are given.

    Raises:
      ConfigError: no such source, or an argument that it does not take or that is missing.
    """
    kind, _, argument = source.partition(":")
    held = split == "holdout"
    if kind not in _KINDS or kind == "mixture":
        raise ConfigError(
            f"data.source={source!r} is not known. {nearest(kind, _KINDS)}Allowed: pydoc, "
            "text:FOLDER, jsonl:PATH, c4, tfds:NAME:VERSION, seqio:TASK, task:NAMES, sample:NAMES, "
            f"mixture (with data.parts) or mixture:NAME of {', '.join(MIXTURES)}."
        )
    if (kind in ("pydoc", "c4")) == bool(argument):
        wanted = "nothing" if argument else "a path or name"
        raise ConfigError(f"data.source={source!r}: '{kind}' takes {wanted} after a colon.")
    if kind == "pydoc":
        return Pydoc(held)
    if kind == "text":
        return TextFolder(argument, config.holdout, held)
    if kind == "jsonl":
        fields = config.text_feature, config.inputs_feature
        return Jsonl(argument, *fields, config.holdout, held)
    if kind in supervised.KINDS:
        return supervised.TaskReader(config, source, split, vocabulary)
    return SeqioReader(config, source, split, vocabulary)


def cache_root(config: Any) -> Path:
    """Returns the directory of all caches."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return paths.resolve(config.cache or home / "vitattn-moe" / "text", "data.cache")


def cache_directory(config: Any, source: str, split: str, vocabulary: Vocabulary) -> Path:
    """Returns where the cache of a source lies: its name tells source and split, and a digest all
    that decides its content except the files themselves. Lengths, noise and packing decide nothing:
    they are applied to what is read from it."""
    kind, source = source.partition(":")[0], _resolved(source)
    deciding: list[Any] = [FORMAT, source, split, vocabulary.digest]
    if kind == "pydoc":  # another text in each version of Python
        deciding.append(Pydoc(split == "holdout").fingerprint())
    if kind in ("text", "jsonl"):
        deciding.append(config.holdout)
    if kind in ("jsonl", "tfds"):
        deciding += [config.text_feature, config.inputs_feature]
    if kind in ("c4", "tfds", "seqio") and split == "holdout":
        deciding.append(config.eval_split)
    if kind in supervised.KINDS:
        place = os.path.realpath(paths.resolve(config.dir, "data.dir")) if config.dir else ""
        deciding += [supervised.TEXT_VERSION, place, config.sentinels]
        deciding += [config.encoder_length] if config.sentinels else []
        deciding += [supervised.sample_digest(source)] if kind == "sample" else []
    return cache_root(config) / _named(source, split, repr(deciding))


def _resolved(source: str) -> str:
    """The source with its path written out from the root: a relative one names other files in each
    directory.
    """
    kind, _, argument = source.partition(":")
    if kind not in ("text", "jsonl"):
        return source
    return f"{kind}:{os.path.realpath(paths.resolve(argument, 'data.source'))}"


def _named(source: str, kind: str, deciding: str) -> str:
    digest = hashlib.sha256(os.fsencode(deciding)).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", source).strip("_")[-60:]
    return f"{readable}-{kind}-{digest}"


def open_reader(
    config: Any, source: str, split: str, vocabulary: Vocabulary
) -> tuple[Reader, Path]:
    """The reader of a source and where its cache lies; arguments and errors as `make_reader`."""
    reader = make_reader(config, source, split, vocabulary)
    if isinstance(reader, TextFolder | Jsonl | supervised.TaskReader):
        deciding = repr((_resolved(source), config.dir))
        reader.notes = cache_root(config) / f"{_named(source, 'files', deciding)}.json"
    return reader, cache_directory(config, source, split, vocabulary)


def holds_out(config: Any, source: str) -> bool:
    """Whether a part of the source is kept out of training, to evaluate on."""
    return source.partition(":")[0] not in ("text", "jsonl") or config.holdout > 0


def evaluates(config: Any) -> bool:
    """Whether anything of `config.source` is held out."""
    if config.source.partition(":")[0] in supervised.KINDS:
        return True
    return any(holds_out(config, source) for source, _ in parts_of(config))


def shard_count(reader: Reader) -> int:
    """Returns how many shards a source is divided into."""
    return max(1, min(reader.most_shards, -(-reader.size_bytes // _SHARD_BYTES)))


def parts_of(config: Any, split: str = "train") -> list[tuple[str, float]]:
    """Returns the (source, rate) pairs that `data.source` stands for; one pair unless a mixture.

    Fine-tuning tasks are those that have the split; their rates follow from their sizes.

    Raises:
      ConfigError: the mixture is not known, or `data.parts` is not what it needs.
      DataError: parts of a published mixture are not supplied.
    """
    kind, _, name = config.source.partition(":")
    if kind in supervised.KINDS:
        part = TRAIN if split == "train" else VALIDATION
        return [(f"{kind}:{t.name}", 1.0) for t in supervised.tasks_of(config.source, part)]
    if kind != "mixture":
        if config.parts:
            raise ConfigError(
                f"data.parts is set and data.source={config.source!r} is no mixture: set "
                "--config.data.source=mixture, or leave data.parts empty."
            )
        return _seqio_mixture(config) or [(config.source, 1.0)]
    if not all(isinstance(part, tuple | list) and len(part) == 2 for part in config.parts):
        raise ConfigError(f"data.parts={config.parts!r} is not a list of pairs.")
    if name:
        return _named_mixture(name, dict(config.parts))
    try:
        pairs = [(str(source), float(rate)) for source, rate in config.parts]
    except (TypeError, ValueError):
        pairs = []
    if not pairs:
        raise ConfigError(
            f"data.parts={config.parts!r} does not describe a mixture: give (source, rate) pairs, "
            "for example --config.data.parts=\"(('c4',0.8),('jsonl:/data/news',0.2))\"."
        )
    return pairs


def _mixture_file(config: Any) -> Path:
    return cache_root(config) / f"{config.source.replace(':', '_')}-mixture.json"


def _seqio_mixture(config: Any) -> list[tuple[str, float]]:
    """Returns the Tasks of a seqio Mixture as `write_mixture` noted them; none for a Task."""
    if not config.source.startswith("seqio:"):
        return []
    rates = read_sealed(_mixture_file(config)) or {}
    return [(f"seqio:{task}", rate) for task, rate in rates.items()]


def write_mixture(config: Any) -> None:
    """Notes the Tasks and rates of a seqio Mixture beside the caches; training has no seqio."""
    kind, _, name = config.source.partition(":")
    if kind != "seqio":
        return
    rates = mixture_rates(name)
    if rates is not None:
        make_directory(cache_root(config))
        write_sealed(_mixture_file(config), rates)


def _named_mixture(name: str, given: dict[str, str]) -> list[tuple[str, float]]:
    if name not in MIXTURES:
        raise ConfigError(
            f"data.source='mixture:{name}' is not known. {nearest(name, MIXTURES)}Known: "
            f"{', '.join(MIXTURES)}; or data.source=mixture with (source, rate) pairs in "
            "data.parts."
        )
    parts = MIXTURES[name]
    known = [part.name for part in parts]
    for wrong in given:
        if wrong not in known:
            raise ConfigError(
                f"data.parts names '{wrong}', which is no part of {name}. "
                f"{nearest(wrong, known)}Its parts: {', '.join(known)}."
            )
    given = {"c4": "c4"} | given
    missing = [part for part in parts if part.name not in given]
    if missing:
        listed = ", ".join(
            f"{p.name} (rate {p.rate:g}, {p.tokens_in_billions}B tokens)" for p in missing
        )
        raise DataError(
            f"the mixture {name} has parts that are not public and that you must supply: {listed}. "
            "Give each a source in data.parts, for example --config.data.parts="
            f"\"(('{missing[0].name}','jsonl:/data/{missing[0].name}'),...)\"; or train on c4 "
            "alone with --config.data.source=c4."
        )
    return [(given[part.name], part.rate) for part in parts]


def check_settings(config: Any) -> None:
    """Refuses numbers of the `data` part of a configuration that cannot work, before anything is
    read; those of span corruption are refused with its source.

    Raises:
      ConfigError: names the key and what it may be.
    """
    options.check("data", data_defaults(), config)


def make_source(config: Any, split: str) -> Source:
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
    if config.source.partition(":")[0] in supervised.KINDS:
        return _tasks(config, split, vocabulary)
    parts = parts_of(config)
    if split == "holdout":
        parts = [part for part in parts if holds_out(config, part[0])]
    if not parts:
        raise ConfigError(
            f"data.holdout=0: nothing of data.source={config.source!r} is held out, so there is "
            "nothing to evaluate on. Hold a part out when you train (--config.data.holdout=0.01), "
            "or name text that was not trained on and take nearly all of it: "
            "--config.data.source=text:PATH --config.data.holdout=0.99."
        )
    sources = [_open(config, source, split, vocabulary) for source, _ in parts]
    if len(sources) == 1:
        return sources[0]
    return Mixture(config.source, sources, [rate for _, rate in parts])


def _tasks(config: Any, split: str, vocabulary: Vocabulary) -> Source:
    """The fine-tuning tasks of `config.source` that have this split: every training example equally
    often, except that a task counts as `supervised.RATE_LIMIT` examples at most.
    """
    parts = parts_of(config, split)
    if not parts:
        raise DataError(
            f"None of the tasks of data.source={config.source!r} has a split to "
            f"{'train on' if split == 'train' else 'hold out'}."
        )
    sources = [_open(config, source, split, vocabulary) for source, _ in parts]
    rates = [
        len(source) * min(1.0, supervised.RATE_LIMIT / source.cache.documents) for source in sources
    ]
    return sources[0] if len(sources) == 1 else Mixture(config.source, sources, rates)


def _open(config: Any, source: str, split: str, vocabulary: Vocabulary) -> Windows | Examples:
    reader, directory = open_reader(config, source, split, vocabulary)
    again = is_stale(reader, directory, f"{source} ({split})")
    if again or not is_complete(directory):
        large = reader.size_bytes > _AT_FIRST_USE_BYTES
        if large and not isinstance(reader, supervised.TaskReader):
            raise DataError(
                f"{source} ({split}) has not been prepared: there is no {directory}. Tokenise it "
                "once with `python -m launch.prepare` and the same --config (and overrides of "
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
    made = from_cache(source, cache, vocabulary, config)
    made.notes = (
        *(f"passed over in {source}: {line}" for line in reader.passed_over),
        *unknown(source, cache),
    )
    return made


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


def is_stale(reader: Reader, directory: Path, title: str) -> bool:
    """Whether there is a cache of another state of the files, which is said, and is so small that
    it is made again without asking.

    Raises:
      DataError: the cache of a large source is of another state; or it is damaged.
    """
    if not is_complete(directory) or not _changed(reader, Cache(directory)):
        return False
    changed = f"{title} has changed since it was tokenised (names, sizes or text of its files)"
    tasks = isinstance(reader, supervised.TaskReader)
    if reader.size_bytes > _AT_FIRST_USE_BYTES and not tasks:
        raise DataError(
            f"{changed}. Remove {directory} and prepare it again with `python -m launch.prepare` "
            "and the same --config; or restore the files."
        )
    print(f"{changed}: it is tokenised again", flush=True)
    return True
