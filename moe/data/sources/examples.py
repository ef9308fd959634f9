"""Documents that stay apart: pairs, or texts of which an objective makes pairs; packed where asked
for.
"""

from __future__ import annotations

import numpy as np

from moe.data.cache.read import Cache, Damage
from moe.data.denoisers.denoiser import Denoiser
from moe.data.sources.cached import EVAL_SEED, CachedSource
from moe.data.sources.packing import pack_starts
from moe.data.sources.source import Record
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.data.order import record_order

# Fixed by definition, not a setting: the order in which examples are packed.
_PACK_SEED = 22_02_08906


class Examples(CachedSource):
    """Documents that stay apart: pairs of inputs and targets, or text that becomes such pairs.

    Text is first cut into pieces of at most n tokens, each of which becomes one example. A record
    is one example, or as many as fit when they are packed; which ones share a record is fixed. The
    positions of all examples are held in each process, about 40 bytes an example.
    """

    def __init__(
        self,
        name: str,
        cache: Cache,
        vocabulary: Vocabulary,
        lengths: tuple[int, int],
        pack: bool,
        denoiser: Denoiser | None,
        tokens: int,
        stream: int = 0,
    ):
        super().__init__(name, cache, vocabulary, (lengths, pack, denoiser, tokens), stream)
        self.denoiser = denoiser
        ends = np.concatenate(
            [e + start for e, start in zip(cache.array("ends"), cache.starts, strict=False)]
        )
        starts = np.concatenate([[0], ends[:-1]])
        if denoiser is None:
            self.starts, self.sizes = starts, ends - starts
            self.inputs = np.concatenate(cache.array("inputs")).astype(np.int64)
        else:
            self.starts, self.sizes = _pieces(starts, ends, tokens)
            self.inputs = np.zeros(len(self.starts), np.int64)
        self.order = record_order(_PACK_SEED, 0, len(self.starts))
        alone = np.arange(len(self.starts) + 1)
        self.record_starts = self._packed_starts(lengths) if pack else alone

    def _packed_starts(self, limits: tuple[int, int]) -> np.ndarray:
        sizes = self.sizes[self.order]
        if self.denoiser is None:
            encoder = self.inputs[self.order]
            decoder = sizes - encoder
        else:
            encoder, decoder = self.denoiser.lengths(sizes)
        # Each side is trimmed to its limit and ends with EOS.
        sides = [
            np.minimum(length, limit - 1) + 1
            for length, limit in zip((encoder, decoder), limits, strict=True)
        ]
        return pack_starts(sides[0], sides[1], limits[0], limits[1])

    def __len__(self) -> int:
        return len(self.record_starts) - 1

    def _members(self, record: int) -> list[int]:
        return self.order[self.record_starts[record] : self.record_starts[record + 1]].tolist()

    def read(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Record]:
        read: list[Record] = []
        for i, record in enumerate(records.tolist()):
            key = (EVAL_SEED, 0) if epochs is None else (self._own_seed(seed), int(epochs[i]))
            read.append(self._record(self._members(record), key))
        return read

    def _record(self, members: list[int], key: tuple[int, int]) -> Record:
        texts = []
        for example in members:
            start = int(self.starts[example])
            text = self._ids(start, start + int(self.sizes[example]))
            if isinstance(text, Damage):
                return text
            texts.append(text)
        if self.denoiser is not None:
            made = self.denoiser.examples(texts, [(*key, example) for example in members])
            return [example for of_text in made for example in of_text]
        cuts = [int(self.inputs[example]) for example in members]
        return [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]

    def longer(self, inputs: int, targets: int) -> np.ndarray:
        """int64 [3]: pairs with more inputs, and with more targets, than so many tokens, and all
        pairs; nothing of text, none of which is cut off.
        """
        if self.denoiser is not None:
            return np.zeros(3, np.int64)
        sizes = self.sizes - self.inputs  # of the targets
        return np.asarray([(self.inputs > inputs).sum(), (sizes > targets).sum(), len(sizes)])

    def target_counts(self) -> np.ndarray:
        counts = self.counts()
        if self.denoiser is not None:
            return self.denoiser.target_counts(counts, self.sizes)
        counts[EOS] += len(self.starts)
        return counts


def _pieces(starts: np.ndarray, ends: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (starts, sizes) of the pieces of at most `tokens` into which documents are cut."""
    number = -(-(ends - starts) // tokens)
    first = np.repeat(np.cumsum(number) - number, number)
    number_in_document = np.arange(len(first)) - first
    piece_starts = np.repeat(starts, number) + number_in_document * tokens
    return piece_starts, np.minimum(np.repeat(ends, number) - piece_starts, tokens)
