"""What a model that was pre-trained by span corruption puts into the gaps of held-out texts.

The text is given with its gaps, as in an evaluation, and the answer is searched as
`launch.predict` does. A gap is filled right where all of its tokens are. Examples without gaps
(pairs of inputs and targets, texts that are to go on) have one answer each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe.decoding.answer import Answerer
from moe.decoding.waiting import Question, in_order
from moe.models.architecture import Architecture
from moe.samples import held_out
from moe.samples.held_out import HeldOut
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.model.weights import Arrays
from trainlib.report.samples import Compared, Sample
from trainlib.step.plan import Plan

_MOST = 8  # gaps of a sample
Gap = int | None  # the number of a gap, from 1; None before the first


class Asked:
    """Held-out texts that are asked about.

    Args:
      plan: of the run.
      count: how many, at most.

    Raises:
      ConfigError: nothing is held out, or the model cannot answer.
      DataError: the data is not there or cannot be used.
    """

    def __init__(self, plan: Plan[Architecture], count: int):
        self.config = plan.config
        self.source = held_out.open_held_out(plan.config, plan.model.vocab_size)
        self.vocabulary = self.source.vocabulary
        self.examples = held_out.examples(self.source, count)
        self.answerer = Answerer(plan, self.vocabulary, num_return_sequences=1)

    def answered(self, weights: Arrays) -> tuple[list[Sample], str]:
        """The samples, and a sentence on them.

        Raises:
          NumericAbort: the model gives NaN.
        """
        questions = [Question(one.inputs, n) for n, one in enumerate(self.examples)]
        found = in_order(self.answerer.results(weights, questions))
        samples = [
            sample(
                example, result["words"].reshape(-1, result["words"].shape[-1])[0], self.vocabulary
            )
            for example, result in zip(self.examples, found, strict=True)
        ]
        filled = [row.right for one in samples for row in one.compared]
        about = held_out.about(self.source, self.config, len(samples))
        return samples, f"{about}; {sum(map(bool, filled))} of {len(filled)} gaps are filled right."


def sample(example: HeldOut, words: np.ndarray, vocabulary: Vocabulary) -> Sample:
    """One text with its gaps, and what is in them.

    Args:
      example: the text, and the truth.
      words: int32 [L], what the model answers.
      vocabulary: of all of them.
    """
    ends = np.flatnonzero(words == EOS)
    said = parts(words[: ends[0]] if len(ends) else words, vocabulary)
    # A sentinel of the inputs that no target names tells what kind of text it is (UL2).
    named = np.isin(example.inputs, example.targets)
    own = (example.inputs < vocabulary.size - vocabulary.extra_ids) | named
    truth, given = parts(example.targets, vocabulary), parts(example.inputs[own], vocabulary)
    gaps: list[Gap] = [number for number in truth if number is not None] or [None]
    rows = [_compared(number, truth, said, vocabulary) for number in gaps[:_MOST]]
    more = f", the first {_MOST} of {len(gaps)} gaps" if len(gaps) > _MOST else ""
    text = _with_gaps(given, vocabulary)
    return Sample(example.title, fields=((f"text{more}", text),), compared=tuple(rows))


def parts(ids: np.ndarray, vocabulary: Vocabulary) -> dict[Gap, np.ndarray]:
    """Ids cut at the sentinels: the number of a gap -> what follows it, None -> what comes before
    the first; of a gap that is named twice the first.
    """
    first = vocabulary.size - vocabulary.extra_ids
    marks = np.flatnonzero(ids >= first)
    cut: dict[Gap, np.ndarray] = {None: ids[: marks[0]] if len(marks) else ids}
    for start, stop in zip(marks, [*marks, len(ids)][1:], strict=True):
        cut.setdefault(int(vocabulary.size - ids[start]), ids[start + 1 : stop])
    return cut


def _compared(
    number: Gap,
    truth: Mapping[Gap, np.ndarray],
    said: Mapping[Gap, np.ndarray],
    vocabulary: Vocabulary,
) -> Compared:
    name = "answer" if number is None else _mark(number)
    right, answer = truth.get(number), said.get(number)
    assert right is not None
    if answer is None:
        return Compared(name, held_out.piece(vocabulary, right), "(left out)", False)
    true, said_words = (held_out.piece(vocabulary, ids) for ids in (right, answer))
    return Compared(name, true, said_words, np.array_equal(right, answer))


def _with_gaps(given: Mapping[Gap, np.ndarray], vocabulary: Vocabulary) -> str:
    """The text up to the gap behind the last that is shown."""
    # Words of pieces lose the blank before them when they are decoded alone; bytes keep theirs.
    blank = "" if vocabulary.name == "bytes" else " "
    text: list[str] = []
    for number, ids in given.items():
        if number is not None and number > _MOST:
            return blank.join([*text, "..."])
        text += ([] if number is None else [_mark(number)]) + [vocabulary.decode(ids)]
    return blank.join(text)


def _mark(number: Any) -> str:
    return f"⟨{number}⟩"
