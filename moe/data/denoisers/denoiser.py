"""What a model learns of text: how a text becomes pairs of inputs and targets.

An objective has one denoiser, or several (`moe.data.denoisers.ul2`). A text is a window of running
text or a piece of a document. What it becomes is a function of the text and a key; how long that
can be is known before, so that texts are as long as a row takes and nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from trainlib.errors import ConfigError

Example = tuple[np.ndarray, np.ndarray]  # ids of inputs and targets, without EOS
Key = tuple[int, int, int]  # seed, epoch, record


class Denoiser(Protocol):
    """Makes examples of texts. Its `repr` tells it from others, in the digest of a source."""

    @property
    def windows(self) -> int:
        """Examples that a text becomes, at most; they share a row, each in its own segment."""
        ...

    def lengths(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most (input, target) tokens of all examples of a text, without EOS, int64 like
        `tokens`, the lengths of the texts (1 or more).
        """
        ...

    def spans(self, tokens: np.ndarray) -> np.ndarray:
        """How many sentinels such texts take, int64 like `tokens`."""
        ...

    def examples(self, texts: Sequence[np.ndarray], keys: Sequence[Key]) -> list[list[Example]]:
        """The examples of each text, without EOS."""
        ...

    def target_counts(self, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Expected counts of the target ids, EOS and sentinels included, to any scale.

        Args:
          counts: float64 [V], of the ids of the text.
          sizes: int [N], tokens of the texts.
        """
        ...


def longest_text(
    of: Denoiser, name: str, encoder_length: int, decoder_length: int, sentinels: int
) -> int:
    """Returns the tokens of the longest text whose examples fit a row, each with EOS, and that
    takes so many sentinels at most.

    Args:
      of: the denoiser.
      name: of it, for the error.
      encoder_length: tokens of a row.
      decoder_length: tokens of a row.
      sentinels: that may hide spans.

    Raises:
      ConfigError: not even the shortest fits.
    """
    tokens = np.arange(of.windows, encoder_length + decoder_length + 1, of.windows)
    inputs, targets = of.lengths(tokens)
    fits = (inputs + of.windows <= encoder_length) & (targets + of.windows <= decoder_length)
    fits &= of.spans(tokens) <= sentinels
    if not fits.any():
        raise ConfigError(
            f"data.encoder_length={encoder_length}, data.decoder_length={decoder_length} and "
            f"{sentinels} sentinels hold no text of data.objective={name}. Use longer rows, "
            "or more sentinels with --config.data.extra_ids."
        )
    return int(tokens[fits].max())


def filling(
    of: Denoiser, tokens: int, encoder_length: int, decoder_length: int, sentinels: int
) -> str:
    """How full texts of `tokens` tokens make a row, as a phrase."""
    sides = [int(side[0]) + of.windows for side in of.lengths(np.asarray([tokens]))]
    encoder, decoder = (
        f"{100 * side / length:.0f} %"
        for side, length in zip(sides, (encoder_length, decoder_length), strict=True)
    )
    spans = int(of.spans(np.asarray([tokens]))[0])
    most = f"; {spans} spans take all sentinels" if spans and spans == sentinels else ""
    return f"{tokens} tokens a row fill {encoder} of the encoder, {decoder} of the decoder{most}"
