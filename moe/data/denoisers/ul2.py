"""UL2, a mixture of seven denoisers (Tay et al. 2022, arXiv 2205.05131, section 3.1 and table 1).

R, regular: span corruption as of T5. S, sequential: a prefix language model. X, extreme: long spans
or half of the text hidden. A row is of one denoiser, and all seven make as many rows. The encoder
reads first which of the three kinds its text is of.

Spans are cut as T5 cuts them, all ways as likely as each other; the paper draws their lengths from
a normal distribution around the mean and says no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.data.denoisers.denoiser import Denoiser, Example, Key
from moe.data.denoisers.prefix_lm import PrefixLM
from moe.data.denoisers.span_corruption import SpanCorruption
from moe.text.vocabulary import UNKNOWN, Vocabulary
from trainlib.errors import ConfigError

# Kind, mean length of a span in tokens, share of the text that is hidden.
SPANS = (
    ("R", 3.0, 0.15),
    ("R", 8.0, 0.15),
    ("X", 3.0, 0.5),
    ("X", 8.0, 0.5),
    ("X", 64.0, 0.15),
    ("X", 64.0, 0.5),
)
SEQUENTIAL = 0.25  # share of the text that S predicts, on average

MODE_TOKENS = ("words", "ids", "none")
# What the released models read first.
_WORDS = {"R": "[NLU] ", "S": "[S2S] ", "X": "[NLG] "}


@dataclasses.dataclass(frozen=True)
class WithMode:
    """A denoiser whose inputs begin with tokens that say what it is.

    Attributes:
      denoiser: what is said.
      mode: ids of these tokens.
    """

    denoiser: Denoiser
    mode: tuple[int, ...]

    @property
    def windows(self) -> int:
        return self.denoiser.windows

    def lengths(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = self.denoiser.lengths(tokens)
        return inputs + self.windows * len(self.mode), targets

    def spans(self, tokens: np.ndarray) -> np.ndarray:
        return self.denoiser.spans(tokens)

    def examples(self, texts: Sequence[np.ndarray], keys: Sequence[Key]) -> list[list[Example]]:
        mode = np.asarray(self.mode, np.int32)
        return [
            [(np.concatenate([mode, inputs]), targets) for inputs, targets in of_text]
            for of_text in self.denoiser.examples(texts, keys)
        ]

    def target_counts(self, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return self.denoiser.target_counts(counts, sizes)


def sentinels(vocabulary: Vocabulary, mode_tokens: str) -> int:
    """How many sentinels hide spans: all, or all but those that are mode tokens.

    Raises:
      ConfigError: the vocabulary has no room for mode tokens.
    """
    if mode_tokens != "ids":
        return vocabulary.extra_ids
    if vocabulary.extra_ids <= len(_WORDS):
        raise ConfigError(
            f"data.mode_tokens=ids takes {len(_WORDS)} of data.extra_ids={vocabulary.extra_ids} "
            "sentinels, and none are left for spans. Set --config.data.extra_ids=100, as in T5, or "
            "--config.data.mode_tokens=words."
        )
    return vocabulary.extra_ids - len(_WORDS)


def denoisers(
    vocabulary: Vocabulary, mode_tokens: str, sequential_windows: int
) -> dict[str, Denoiser]:
    """Returns name -> denoiser, such as R_3_0.15: kind, mean span, share of the text.

    Args:
      vocabulary: of the run.
      mode_tokens: one of `MODE_TOKENS`: the words [NLU], [S2S] and [NLG] of the released models
        in the vocabulary's own pieces, an id each of the lowest sentinels, or nothing.
      sequential_windows: see `PrefixLM`.

    Raises:
      ConfigError: the vocabulary cannot write the words, or has no room for the ids.
    """
    plain: dict[str, Denoiser] = {
        f"{kind}_{mean:g}_{share:g}": SpanCorruption(share, mean, vocabulary.size)
        for kind, mean, share in SPANS
    }
    plain[f"S_{SEQUENTIAL:g}"] = PrefixLM(SEQUENTIAL, sequential_windows)
    if mode_tokens == "none":
        return dict(sorted(plain.items()))
    modes = _modes(vocabulary, mode_tokens)
    return {name: WithMode(of, modes[name[0]]) for name, of in sorted(plain.items())}


def _modes(vocabulary: Vocabulary, mode_tokens: str) -> dict[str, tuple[int, ...]]:
    if mode_tokens == "ids":
        lowest = vocabulary.size - vocabulary.extra_ids
        return {kind: (lowest + number,) for number, kind in enumerate(_WORDS)}
    modes = {kind: tuple(vocabulary.encode(word).tolist()) for kind, word in _WORDS.items()}
    if len(set(modes.values())) < len(modes) or any(UNKNOWN in ids for ids in modes.values()):
        raise ConfigError(
            f"data.mode_tokens=words: the vocabulary {vocabulary.name} has no pieces that write "
            f"{', '.join(word.strip() for word in _WORDS.values())} apart. Use "
            "--config.data.mode_tokens=ids, which takes three sentinels."
        )
    return modes
