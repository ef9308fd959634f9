"""The sources and rates that `data.source` stands for: one source, or those of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from moe.data.cache.sealed_files import make_directory, read_sealed, write_sealed
from moe.data.cache_paths import cache_root
from moe.data.data_sets import kind_of
from moe.text.seqio_source import mixture_rates
from trainlib.errors import ConfigError, DataError, nearest

MIXTURE = "mixture"


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


def parts_of(config: ConfigDict, split: str = "train") -> list[tuple[str, float]]:
    """The (source, rate) pairs that `data.source` stands for; one pair unless a mixture.

    Fine-tuning tasks are those that have the split; their rates follow from their sizes, see
    `shared`. What is mixed into them comes last.

    Raises:
      ConfigError: the mixture is not known, `data.parts` is not what it needs, or there is nothing
        to mix pre-training into.
      DataError: parts of a published mixture are not supplied.
    """
    kind = kind_of(config.source)
    has_parts = kind is not None and kind.parts is not None
    _check_pretraining(config, has_parts)
    if kind is not None and kind.parts is not None:
        mixed = [(config.pretraining_source, 1.0)] if config.pretraining_share else []
        return [*((part, 1.0) for part in kind.parts(config, split)), *mixed]
    name, _, mixture = config.source.partition(":")
    if name != MIXTURE:
        if config.parts:
            raise ConfigError(
                f"data.parts is set and data.source={config.source!r} is no mixture: set "
                "--config.data.source=mixture, or leave data.parts empty."
            )
        return _seqio_mixture(config) or [(config.source, 1.0)]
    if not all(isinstance(part, tuple | list) and len(part) == 2 for part in config.parts):
        raise ConfigError(f"data.parts={config.parts!r} is not a list of pairs.")
    if mixture:
        return _named_mixture(mixture, dict(config.parts))
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


def _check_pretraining(config: ConfigDict, has_parts: bool) -> None:
    """Refuses pre-training text without a share, a share of nothing, and a source of running text
    or of several to mix with.
    """
    source, share = config.pretraining_source, config.pretraining_share
    if bool(source) != bool(share):
        raise ConfigError(
            f"data.pretraining_source={source!r} and data.pretraining_share={share:g} belong "
            "together: give both, such as --config.data.pretraining_source=c4 "
            "--config.data.pretraining_share=0.05, or neither."
        )
    if source and not has_parts:
        raise ConfigError(
            f"data.pretraining_source={source!r} is mixed into fine-tuning tasks, and "
            f"data.source={config.source!r} names none. Mix sources of text with "
            "--config.data.source=mixture and data.parts."
        )
    kind = kind_of(source) if source else None
    if source and (kind is None or kind.parts is not None):
        raise ConfigError(
            f"data.pretraining_source={source!r} is not one source of running text. Give one that "
            "data.source takes: pydoc, text:PATH, jsonl:PATH, c4, tfds:NAME or seqio:NAME."
        )


def shared(config: ConfigDict, names: Sequence[str], rates: Sequence[float]) -> list[float]:
    """The rates of a mixture in which `data.pretraining_source` has its share, and the others have
    what is left in proportion to the rates given here.

    Args:
      config: the `data` part of a configuration.
      names: of the sources.
      rates: of each; that of the pre-training text is of no account.
    """
    text, share = config.pretraining_source, config.pretraining_share
    whole = sum(rate for name, rate in zip(names, rates, strict=True) if name != text)
    return [
        share if share and name == text else rate / whole * (1.0 - share)
        for name, rate in zip(names, rates, strict=True)
    ]


def _mixture_file(config: ConfigDict) -> Path:
    return cache_root(config) / f"{config.source.replace(':', '_')}-mixture.json"


def _seqio_mixture(config: ConfigDict) -> list[tuple[str, float]]:
    """Returns the Tasks of a seqio Mixture as `write_mixture` noted them; none for a Task."""
    if not config.source.startswith("seqio:"):
        return []
    rates = read_sealed(_mixture_file(config)) or {}
    return [(f"seqio:{task}", rate) for task, rate in rates.items()]


def write_mixture(config: ConfigDict) -> None:
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
