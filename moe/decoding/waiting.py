"""Questions that wait for an answer: in the order of their lengths, and answers back in theirs.

Questions are read in blocks. Each block is sorted, and every other one backwards, so that what is
decoded side by side is about as long everywhere, from one block to the next too. Inputs are padded
to few lengths, because each is a compilation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np

from moe.text.vocabulary import EOS
from trainlib.keys import check_fields, whole

Found = dict[str, np.ndarray]  # what a search gives for one question: "words", "score", ..
_SHORTEST = 32  # tokens of the shortest padded input


@dataclasses.dataclass(frozen=True)
class Question:
    """One input for the encoder.

    Attributes:
      ids: int32, without EOS; what does not fit is cut off at the end.
      number: what random draws follow from.
      candidates: int32 ids of the answers to choose from, without EOS; () for a search.
      cut: the end of the input is missing.
    """

    ids: np.ndarray
    number: int = 0
    candidates: tuple[np.ndarray, ...] = ()
    cut: bool = False


def padded_inputs(questions: Sequence[Question | None], length: int) -> dict[str, np.ndarray]:
    """`encoder_inputs` and `encoder_segments`, int32 [questions, length]; None is all padding."""
    tokens = np.zeros((len(questions), length), np.int32)
    segments = np.zeros_like(tokens)
    for row, question in enumerate(questions):
        if question is not None:
            ids = question.ids[: length - 1]
            tokens[row, : len(ids)] = ids
            tokens[row, len(ids)] = EOS
            segments[row, : len(ids) + 1] = 1
    return {"encoder_inputs": tokens, "encoder_segments": segments}


@dataclasses.dataclass(frozen=True)
class Batching:
    """What is decoded together; answers do not depend on it.

    Attributes:
      rows: questions that are decoded side by side; 0 takes eval_batch_size. More are faster as
        far as memory goes, and need that many lines to be of use.
      sorted_batches: so many times `rows` questions are sorted by the length of their inputs
        together; 0 leaves all in the order of the file.
      lengths: the most lengths to which inputs are padded: data.encoder_length, half of it and so
        on. Each of them is compiled when enough inputs need it. 1 pads all to data.encoder_length.
    """

    rows: Annotated[int, whole(1, also={0: "eval_batch_size"})] = 0
    sorted_batches: Annotated[int, whole(0)] = 8
    lengths: Annotated[int, whole(1)] = 4

    def __post_init__(self):
        check_fields(self, "batching")

    def padded(self, longest: int) -> tuple[int, ...]:
        """The lengths to which inputs of at most `longest` tokens may be padded, the shortest
        first.
        """
        found = [longest]
        while len(found) < self.lengths and found[-1] > _SHORTEST:
            found.append(max(_SHORTEST, -(-found[-1] // 2)))
        return tuple(reversed(found))


class Waiting:
    """Questions in the order in which they are decoded. At most two blocks are held at once.

    Args:
      questions: read as they are needed.
      lengths: to which inputs may be padded, the shortest first; longer inputs are cut.
      block: questions that are sorted together; 0 leaves them in their order.
      worthwhile: of a block, the questions for which a length of their own is worth compiling.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        lengths: tuple[int, ...],
        block: int,
        worthwhile: int = 1,
    ):
        self._source, self._lengths = enumerate(questions), lengths
        self._block, self._worthwhile = block, worthwhile
        self._used: set[int] = set()
        self._ready: list[tuple[int, Question]] = []  # the next one is the last
        self._longest_first = False

    def few(self, most: int) -> int:
        """How many questions there are, or `most` if that is fewer."""
        while len(self._ready) < most and self._read():
            pass
        return min(most, len(self._ready))

    def take(self) -> tuple[int, Question] | None:
        """The next question and its place among all of them; None: there is none."""
        if not self._ready:
            self._read()
        return self._ready.pop() if self._ready else None

    def length(self, tokens: int) -> int:
        """To how many tokens an input of so many, EOS included, is padded at least."""
        return min(used for used in self._used if used >= min(tokens, self._lengths[-1]))

    def _read(self) -> bool:
        """Whether there was another block."""
        block = list(itertools.islice(self._source, self._block or 1))
        if self._block:
            block.sort(key=lambda pair: len(pair[1].ids), reverse=self._longest_first)
            self._longest_first = not self._longest_first
        self._use([min(len(question.ids) + 1, self._lengths[-1]) for _, question in block])
        self._ready[:0] = reversed(block)
        return bool(block)

    def _use(self, needed: list[int]) -> None:
        """Takes lengths into use that enough questions need, and one that is enough for all."""
        rest = sorted(needed)
        for length in self._lengths:
            fitting = sum(tokens <= length for tokens in rest)
            if fitting and (fitting >= self._worthwhile or fitting == len(rest)):
                self._used.add(length)
            if length in self._used:
                rest = rest[fitting:]


def in_order(found: Iterable[Iterable[tuple[int, Any]]]) -> Iterator[Any]:
    """The values of pairs (place, value) that come in groups and in any order, by their places."""
    early: dict[int, Any] = {}
    place = 0
    for group in found:
        early.update(group)
        while place in early:
            yield early.pop(place)
            place += 1
