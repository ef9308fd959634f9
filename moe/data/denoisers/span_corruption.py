"""Span corruption, the objective of T5 and ST-MoE (Raffel et al. 2020, arXiv 1910.10683, 3.1.4).

R rows, n tokens of a row before corruption, K hidden spans of a row.

A row of n tokens is cut into K kept and K hidden spans by turns, a kept one first. Each hidden span
becomes one sentinel in the encoder's input; the decoder's target is each sentinel followed by the
tokens it hides. How many tokens and spans are hidden depends on n alone; the cuts are uniform over
all ways to cut, as in the published preprocessor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.data.denoisers.denoiser import Example, Key
from moe.text.vocabulary import EOS
from trainlib.data.order import generator
from trainlib.errors import ConfigError


def noise_counts(
    lengths: np.ndarray, noise_density: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hidden tokens, hidden spans), int64 like `lengths` (each at least 2).

    In float32 and with ties to even, as the TensorFlow original rounds; at least one token stays
    and one is hidden.
    """
    lengths = np.asarray(lengths, np.int64)
    hidden = np.rint(lengths.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    hidden = np.clip(hidden, 1, lengths - 1)
    spans = np.rint(hidden.astype(np.float32) / np.float32(mean_span)).astype(np.int64)
    # A span needs a kept token before it, which the original takes for granted.
    return hidden, np.clip(spans, 1, np.minimum(hidden, lengths - hidden))


def _cuts(words: np.ndarray, spans: int) -> np.ndarray:
    """Returns int64 [R, K]: where K non-empty spans end that partition words.shape[1] + 1 items.

    The K - 1 inner ends follow the smallest of the random words, a uniform choice without
    replacement.
    """
    rows, inner = words.shape
    ends = np.full((rows, spans), inner + 1, np.int64)
    if spans > 1:
        chosen = np.argpartition(words, spans - 2, axis=1)[:, : spans - 1]
        ends[:, :-1] = np.sort(chosen, axis=1) + 1
    return ends


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """The settings of the objective, and what follows from them.

    Attributes:
      noise_density: fraction of the tokens that is hidden.
      mean_span: mean length of a hidden span, in tokens.
      vocabulary_size: V; sentinel k is id V - 1 - k.
    """

    noise_density: float
    mean_span: float
    vocabulary_size: int

    @property
    def windows(self) -> int:
        """A text becomes one example."""
        return 1

    def words(self, tokens: int) -> int:
        """Returns how many random 64-bit words a row of `tokens` tokens needs."""
        return max(0, tokens - 2)

    def lengths(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (input, target) lengths without EOS, for rows of `tokens` tokens (1 or more)."""
        tokens = np.asarray(tokens, np.int64)
        hidden, spans = noise_counts(np.maximum(tokens, 2), self.noise_density, self.mean_span)
        single = tokens == 1
        return (
            np.where(single, 1, tokens - hidden + spans),
            np.where(single, 1, hidden + spans),
        )

    def spans(self, tokens: np.ndarray) -> np.ndarray:
        """Returns K of rows of `tokens` tokens, int64; a single token takes one sentinel."""
        return noise_counts(np.maximum(tokens, 2), *self._noise)[1]

    @property
    def _noise(self) -> tuple[float, float]:
        return self.noise_density, self.mean_span

    def apply(self, tokens: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrupts rows of equal length.

        Args:
          tokens: int32 [R, n].
          words: uint64 [R, max(0, n - 2)], random.

        Returns:
          inputs int32 [R, n - hidden + K] and targets int32 [R, hidden + K], both without EOS.
        """
        rows, length = tokens.shape
        if length == 1:  # nothing is hidden; the target says that by one sentinel
            return tokens, np.full((rows, 1), self.vocabulary_size - 1, tokens.dtype)
        hidden, spans = (int(c[0]) for c in noise_counts(np.asarray([length]), *self._noise))
        hidden_ends = _cuts(words[:, : hidden - 1], spans)
        kept_ends = _cuts(words[:, hidden - 1 :], spans)
        # Kept span k comes after k hidden ones, hidden span k after k + 1 kept ones.
        hidden_starts = kept_ends + np.concatenate(
            [np.zeros((rows, 1), np.int64), hidden_ends[:, :-1]], axis=1
        )
        kept_starts = np.concatenate(
            [np.zeros((rows, 1), np.int64), (kept_ends + hidden_ends)[:, :-1]], axis=1
        )
        turns = np.zeros((rows, length), np.int8)
        each = np.arange(rows)[:, None]
        turns[each, hidden_starts] = 1
        turns[each, kept_starts[:, 1:]] = -1
        is_hidden = np.cumsum(turns, axis=1, dtype=np.int8).astype(bool)
        sentinels = np.arange(self.vocabulary_size - 1, self.vocabulary_size - 1 - spans, -1)
        inputs = _replace(tokens, is_hidden, hidden_starts, sentinels)
        targets = _replace(tokens, ~is_hidden, kept_starts, sentinels)
        return inputs, targets

    def examples(self, texts: Sequence[np.ndarray], keys: Sequence[Key]) -> list[list[Example]]:
        """Corrupts texts, those of equal length together; one example each."""
        examples: list[list[Example]] = [[] for _ in texts]
        lengths = np.asarray([len(text) for text in texts])
        for length in np.unique(lengths).tolist():
            same = np.flatnonzero(lengths == length).tolist()
            words = np.stack([_random_words(*keys[i], self.words(length)) for i in same])
            inputs, targets = self.apply(np.stack([texts[i] for i in same]), words)
            for i, pair in zip(same, zip(inputs, targets, strict=True), strict=True):
                examples[i] = [pair]
        return examples

    def target_counts(self, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Hidden tokens as the text has them, each sentinel once for every text that has so many
        spans, one EOS a text.
        """
        sizes, number = np.unique(sizes, return_counts=True)
        _, targets = self.lengths(sizes)
        spans = self.spans(sizes)
        expected = counts * ((targets - spans) * number).sum() / counts.sum()
        expected[EOS] += number.sum()
        for k, n in zip(spans, number, strict=True):
            expected[self.vocabulary_size - k : self.vocabulary_size] += n
        return expected


def _replace(
    tokens: np.ndarray, away: np.ndarray, starts: np.ndarray, sentinels: np.ndarray
) -> np.ndarray:
    """Returns [R, m]: each span of `away` as the sentinel of its number; m is equal in all rows."""
    values, keep = tokens.copy(), ~away
    each = np.arange(len(tokens))[:, None]
    values[each, starts] = sentinels.astype(tokens.dtype)
    keep[each, starts] = True
    return values[keep].reshape(len(tokens), -1)


def window_length(
    encoder_length: int, decoder_length: int, extra_ids: int, corruption: SpanCorruption
) -> int:
    """Returns the tokens to corrupt so that input and EOS fill `encoder_length`: 568 for 512.

    The largest n whose input fits, as the published helper counts; its target then needs 114.

    Raises:
      ConfigError: a setting cannot work, or the target or its sentinels do not fit.
    """
    density, mean_span = corruption.noise_density, corruption.mean_span
    if not 0 < density < 1:
        raise ConfigError(f"data.noise_density={density} is not allowed: use 0 < density < 1.")
    if mean_span < 1:
        raise ConfigError(f"data.mean_span={mean_span} is not allowed: a span has 1 token or more.")
    if encoder_length < 3:
        raise ConfigError(f"data.encoder_length={encoder_length} is too short: use 3 or more.")
    # Every hidden token but the sentinels shortens the input, so n is within this range.
    candidates = np.arange(1, int(encoder_length / (1 - density)) + 8)
    inputs, targets = corruption.lengths(candidates)
    tokens = int(candidates[inputs + 1 <= encoder_length].max())
    target = int(targets[candidates == tokens][0]) + 1
    if target > decoder_length:
        raise ConfigError(
            f"data.decoder_length={decoder_length} is too short: {tokens} tokens that fill an "
            f"encoder row of {encoder_length} have targets of {target} (sentinels and end of "
            f"sequence included). Set --config.data.decoder_length={target} or a lower "
            "noise_density."
        )
    spans = int(corruption.spans(np.asarray(tokens)))
    if spans > extra_ids:
        raise ConfigError(
            f"data.extra_ids={extra_ids} gives too few sentinels: a row of {tokens} tokens hides "
            f"{spans} spans. Set --config.data.extra_ids={spans} or more, or a longer mean_span."
        )
    return tokens


def _random_words(seed: int, epoch: int, record: int, count: int) -> np.ndarray:
    return generator(seed, epoch, record).bit_generator.random_raw(count)  # pyright: ignore
