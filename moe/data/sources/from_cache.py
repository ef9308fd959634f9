"""Which source a token cache becomes, by the objective and the other settings of a run."""

from __future__ import annotations

from ml_collections import ConfigDict

from moe.data.cache.read import Cache
from moe.data.sources.examples import Examples
from moe.data.sources.language_model import LanguageModel
from moe.data.sources.span_corruption import SpanCorruption, window_length
from moe.data.sources.windows import Windows
from moe.text.vocabulary import Vocabulary
from trainlib.errors import ConfigError, DataError


def from_cache(
    name: str, cache: Cache, vocabulary: Vocabulary, config: ConfigDict
) -> Windows | Examples:
    """Makes the source that a cache and the settings of a run give.

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
        return LanguageModel(name, cache, vocabulary, config.decoder_length)
    if cache.pairs:
        return Examples(name, cache, vocabulary, lengths, config.pack, None, 0)
    corruption = SpanCorruption(config.noise_density, config.mean_span, vocabulary.size)
    tokens = window_length(*lengths, vocabulary.extra_ids, corruption)
    if config.merge_documents:
        return Windows(name, cache, vocabulary, corruption, tokens)
    return Examples(name, cache, vocabulary, lengths, config.pack, corruption, tokens)
