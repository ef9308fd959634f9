"""The prefix language model: the encoder reads how a text begins, the decoder how it goes on.

That of T5 (Raffel et al. 2020, arXiv 1910.10683, section 3.3.1) cuts a text at a place uniform over
all that leave a token on both sides; the S-denoiser of UL2 (Tay et al. 2022, arXiv 2205.05131)
makes the end that is predicted uniform around a quarter of the text. There are no sentinels.

A cut anywhere leaves rows half empty. So a row takes two windows of n tokens, and the second is cut
where both ends together have as many tokens as in any other row: each cut is as likely as before,
and rows of equal encoder and decoder are full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.data.denoisers.denoiser import Example, Key
from moe.text.vocabulary import EOS
from trainlib.data.order import generator


@dataclasses.dataclass(frozen=True)
class PrefixLM:
    """The settings of the objective, and what follows from them.

    Attributes:
      share: of the text that is predicted on average, 0 < share <= 1/2; T5 has 1/2.
      windows: 1, or 2 for texts that are two windows end to end, cut together.
    """

    share: float
    windows: int = 1

    def most(self, tokens: np.ndarray) -> np.ndarray:
        """u, the most tokens of a window of `tokens` that are predicted; 1 to u are as likely."""
        tokens = np.asarray(tokens, np.int64)
        doubled = np.rint(2 * self.share * tokens).astype(np.int64)
        return np.clip(doubled - 1, 1, np.maximum(tokens - 1, 1))

    def lengths(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.asarray(tokens, np.int64)
        if self.windows == 1:
            return tokens - 1, self.most(tokens)
        second = tokens // 2
        targets = np.where(second > 0, self.most(tokens - second) + 1, 1)
        return np.where(second > 0, tokens - self.most(second) - 1, 0), targets

    def spans(self, tokens: np.ndarray) -> np.ndarray:
        return np.zeros_like(np.asarray(tokens, np.int64))

    def examples(self, texts: Sequence[np.ndarray], keys: Sequence[Key]) -> list[list[Example]]:
        return [self._cut(text, key) for text, key in zip(texts, keys, strict=True)]

    def _cut(self, text: np.ndarray, key: Key) -> list[Example]:
        second = len(text) // 2 if self.windows == 2 else 0
        first = len(text) - second
        word = int(generator(*key).bit_generator.random_raw())  # pyright: ignore
        predicted = 1 + word % int(self.most(np.asarray(first)))
        pairs = [_split(text[:first], predicted)]
        if second:
            most = int(self.most(np.asarray(second)))
            pairs.append(_split(text[first:], min(max(most + 1 - predicted, 1), most)))
        return pairs

    def target_counts(self, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        sizes = np.asarray(sizes, np.int64)
        second = sizes // 2 if self.windows == 2 else np.zeros_like(sizes)
        windows = np.concatenate([sizes - second, second[second > 0]])
        predicted = counts * ((self.most(windows) + 1) / 2).sum() / counts.sum()
        predicted[EOS] += len(windows)
        return predicted


def _split(window: np.ndarray, predicted: int) -> Example:
    cut = len(window) - predicted
    return window[:cut], window[cut:]
