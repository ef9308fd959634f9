"""Which sources a token cache becomes, by the objective and the other settings of a run."""

from __future__ import annotations

from ml_collections import ConfigDict

from moe.data.cache.read import Cache
from moe.data.denoisers import ul2
from moe.data.denoisers.denoiser import Denoiser, filling, longest_text
from moe.data.denoisers.prefix_lm import PrefixLM
from moe.data.denoisers.span_corruption import SpanCorruption, window_length
from moe.data.sources.examples import Examples
from moe.data.sources.language_model import LanguageModel
from moe.data.sources.windows import Windows
from moe.text.vocabulary import Vocabulary
from trainlib.errors import ConfigError, DataError


def from_cache(
    name: str, cache: Cache, vocabulary: Vocabulary, config: ConfigDict
) -> list[Windows | Examples]:
    """Makes the sources that a cache and the settings of a run give: one, or one for each denoiser
    of the objective, all of which make as many rows.

    Raises:
      ConfigError: a setting of the objective cannot work.
      DataError: the cache has another vocabulary.
    """
    if cache.manifest["vocabulary"] != vocabulary.digest:
        raise DataError(
            f"{cache.directory} was tokenised with {cache.manifest['vocabulary_name']} and the run "
            f"has the vocabulary {vocabulary.name}, another one. Prepare the data again."
        )
    lengths = config.encoder_length, config.decoder_length
    if config.objective == "language_model":
        if cache.pairs:
            raise ConfigError(
                f"{name} holds pairs of inputs and targets, and data.objective='language_model' "
                "reads running text. Give it text alone, or train an encoder-decoder on the pairs "
                "with data.objective=span_corruption."
            )
        return [LanguageModel(name, cache, vocabulary, config.decoder_length)]
    if cache.pairs:
        return [Examples(name, cache, vocabulary, lengths, config.pack, None, 0)]
    opened: list[Windows | Examples] = []
    for part, (denoiser, tokens) in texts_of(vocabulary, config).items():
        named, stream = (f"{name}/{part}" if part else name), len(opened)
        if config.merge_documents:
            source = Windows(named, cache, vocabulary, denoiser, tokens, stream)
        else:
            source = Examples(
                named, cache, vocabulary, lengths, config.pack, denoiser, tokens, stream
            )
        if config.objective != "span_corruption" and config.merge_documents:
            filled = filling(denoiser, tokens, *lengths, _sentinels(vocabulary, config))
            source.notes = (f"rows     {named}: {filled}",)
        opened.append(source)
    return opened


def texts_of(vocabulary: Vocabulary, config: ConfigDict) -> dict[str, tuple[Denoiser, int]]:
    """The denoisers of `data.objective`: name ("" where there is one) -> (what makes examples of a
    text, the most tokens of a text).

    Raises:
      ConfigError: rows or a vocabulary that cannot hold them.
    """
    lengths = config.encoder_length, config.decoder_length
    if config.objective == "span_corruption":
        corruption = SpanCorruption(config.noise_density, config.mean_span, vocabulary.size)
        return {"": (corruption, window_length(*lengths, vocabulary.extra_ids, corruption))}
    # Windows of running text share a row; documents that stay apart are packed as they are.
    windows = 2 if config.pack and config.merge_documents else 1
    named: dict[str, Denoiser] = {"": PrefixLM(0.5, windows)}
    sentinels = _sentinels(vocabulary, config)
    if config.objective == "ul2":
        named = ul2.denoisers(vocabulary, config.mode_tokens, windows)
    return {
        name: (of, longest_text(of, f"{config.objective} {name}".strip(), *lengths, sentinels))
        for name, of in named.items()
    }


def _sentinels(vocabulary: Vocabulary, config: ConfigDict) -> int:
    """How many sentinels an objective may hide spans behind."""
    if config.objective == "ul2":
        return ul2.sentinels(vocabulary, config.mode_tokens)
    return vocabulary.extra_ids
