"""What a source of training data is: records with random access.

N records of a source. A record becomes one sequence of a batch (encoder and decoder side): a window
of running text, or the examples that are packed together. Its content is a pure function of (seed,
epoch, record), or of the record alone in evaluation.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from moe.data.cache.read import Damage
from moe.data.denoisers.denoiser import Example
from moe.text.vocabulary import Vocabulary

Record = list[Example] | Damage  # the examples of a record, or what of it cannot be read


class Source(Protocol):
    """Records with random access. It pickles to worker processes, so files are opened on first
    use."""

    name: str
    vocabulary: Vocabulary
    # Changes when data, vocabulary or division into records do; stored in checkpoints.
    digest: str
    # The whole set lies in memory, and reading it costs nothing.
    in_memory: bool
    # Examples end with the end of sequence; else records are cut from a stream that contains it.
    ends: bool
    # What to say of the source when a run starts: files that are not read, unknown tokens.
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def locate(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (epochs, records), int64, of global positions in the training stream."""
        ...

    def read(self, records: np.ndarray, epochs: np.ndarray | None, seed: int) -> list[Record]:
        """Reads records; `epochs` None is evaluation."""
        ...

    def counts(self) -> np.ndarray:
        """Returns float64 [V]: how often each id occurs in the text (by rate, in a mixture)."""
        ...

    def target_counts(self) -> np.ndarray:
        """Returns float64 [V]: how often the decoder has to predict each id, EOS and sentinels
        included; expected counts, to any scale."""
        ...

    def parts(self) -> list[tuple[Source, float]]:
        """Returns the sources of a mixture with their shares of the rows, or itself alone."""
        ...


def unigram_entropy(counts: np.ndarray) -> float:
    """Returns the entropy in nats of ids with these counts.

    No model that ignores context gets a lower mean loss on tokens that occur so often:
    `source.counts()` for the text, `source.target_counts()` for what the decoder predicts.
    """
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
