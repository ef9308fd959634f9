"""From input texts to answers: batches, the compiled search, texts again.

Letters: B questions of a batch, C candidates, L most tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.decoding.model import Decoding, make_generate, make_score
from moe.decoding.search import NEVER
from moe.models.architecture import Architecture
from moe.tasks.task_reader import encode
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.data.order import host_slice
from trainlib.errors import NumericAbort
from trainlib.model.weights import Arrays
from trainlib.step import step
from trainlib.step.plan import Plan

_CANDIDATE_STEP = 8  # lengths and numbers of candidates grow in few steps: each is a compilation


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


class Answer(NamedTuple):
    """The answer to one question.

    Attributes:
      text: the words.
      cut: they end because no more were allowed, not because the model ended them.
    """

    text: str
    cut: bool


class Scored(NamedTuple):
    """One of the answers to a question.

    Attributes:
      text: the words.
      cut: as of `Answer`.
      score: log-probability of the words, EOS included where there is one; see
        `moe.decoding.search`.
      rank_score: what a beam search ranked them by; None of other searches.
    """

    text: str
    cut: bool
    score: float
    rank_score: float | None


class Answerer:
    """Answers questions with the weights of a run; every host gets all answers.

    Args:
      plan: of the run.
      vocabulary: what answers are written in.
      batch_size: B; 0 takes that of evaluation.
      num_return_sequences: answers of each question; 0 takes decoding.num_return_sequences.

    Raises:
      ConfigError: keys of `decoding.` that cannot work.
    """

    def __init__(
        self,
        plan: Plan[Architecture],
        vocabulary: Vocabulary,
        batch_size: int = 0,
        num_return_sequences: int = 0,
    ):
        config = plan.config
        self.plan, self.vocabulary = plan, vocabulary
        self.length = config.data.encoder_length
        self.batch_size = batch_size or config.eval_batch_size or config.batch_size
        self.host_part = host_slice(self.batch_size, jax.process_index(), jax.process_count())
        options = Decoding(**dict(config.decoding.items()))
        options = dataclasses.replace(
            options, num_return_sequences=num_return_sequences or options.num_return_sequences
        )
        most = config.data.decoder_length
        search = make_generate(plan.model, options, most, vocabulary.size)
        self.longest = options.max_length or most
        self._search = self._compiled(search)
        self._score = self._compiled(make_score(plan.model))

    def _compiled(self, function: Any) -> Any:
        return step.compile_eval(function, self.plan)

    def question(self, text: str, number: int, candidates: Sequence[str] = ()) -> Question:
        """Tokenises an input, and the answers to choose from; what is cut off is noted."""
        data = self.plan.config.data
        settings = self.vocabulary, data.encoder_length, data.sentinels
        ids, _ = encode(text, "", *settings)
        answers = tuple(encode(text, answer, *settings)[1] for answer in candidates)
        size = len(self.vocabulary.encode(text)) + data.sentinels
        return Question(ids, number, answers, size > data.encoder_length - 1)

    def truncation(self, cut: int, total: int) -> tuple[str, str]:
        """Row of a table: how many inputs lost their end, and what the limit is."""
        return "truncated", f"{cut:,} of {total:,} inputs (limit {self.length - 1:,} tokens)"

    def unfinished(self, cut: int, total: int) -> tuple[str, str]:
        """Row of a table: how many answers were ended by the limit, and what that is."""
        return "unfinished", f"{cut:,} of {total:,} answers (limit {self.longest:,} tokens)"

    def answers(self, params: Arrays, questions: Sequence[Question]) -> Iterator[Answer]:
        """The answer to each question, in order; of several the first."""
        for result in self._results(params, questions):
            words = result["words"].reshape(-1, result["words"].shape[-1])[0]
            yield Answer(self.vocabulary.decode(_before_eos(words)), EOS not in words)

    def search(self, params: Arrays, questions: Sequence[Question]) -> Iterator[list[Scored]]:
        """All answers to each question, in order: beams best first, draws as drawn.

        There are decoding.num_return_sequences, and fewer where so many beams did not end within
        decoding.max_length; there is always one.

        Raises:
          NumericAbort: the model gives NaN.
        """
        return map(self._read, self._results(params, questions))

    def _results(
        self, params: Arrays, questions: Sequence[Question]
    ) -> Iterator[dict[str, np.ndarray]]:
        """What the compiled search returns for each question, without the axis B."""
        for start in range(0, len(questions), self.batch_size):
            part = questions[start : start + self.batch_size]
            # A last batch repeats its questions: empty ones would never end.
            batch = list(itertools.islice(itertools.cycle(part), self.batch_size))
            numbers = np.asarray([question.number for question in batch], np.int32)
            result = self._run(self._search, params, {**self._inputs(batch), "number": numbers})
            _check(result.get("score", 0.0))
            for index in range(len(part)):
                yield {name: value[index] for name, value in result.items()}

    def _read(self, result: dict[str, np.ndarray]) -> list[Scored]:
        """The answers of one question; words are [L], or [N, L] of several."""
        words = result["words"].reshape(-1, result["words"].shape[-1])
        scores = result["score"].reshape(-1)
        ranks = result["rank_score"].reshape(-1) if "rank_score" in result else [None] * len(words)
        return [
            Scored(
                self.vocabulary.decode(_before_eos(answer)),
                EOS not in answer,
                float(score),
                None if rank is None else float(rank),
            )
            for answer, score, rank in zip(words, scores, ranks, strict=True)
            if score > NEVER / 2
        ]

    def choices(self, params: Arrays, questions: Sequence[Question]) -> Iterator[int]:
        """Number of the likeliest candidate of each question, the first of equal ones."""
        return (int(np.argmax(scores)) for scores in self.scores(params, questions))

    def scores(self, params: Arrays, questions: Sequence[Question]) -> Iterator[np.ndarray]:
        """The log-probability of each candidate of each question, float32 [candidates].

        It is the `score` that a search gives the same words, which may be words that a search
        does not choose.
        """
        most = max(len(question.candidates) for question in questions)
        longest = max(len(ids) for question in questions for ids in question.candidates) + 1
        count = most if most <= 4 else _rounded(most)
        for start in range(0, len(questions), self.batch_size):
            part = questions[start : start + self.batch_size]
            candidates = np.zeros((self.batch_size, count, _rounded(longest)), np.int32)
            for row, question in enumerate(part):
                for number, ids in enumerate(question.candidates):
                    candidates[row, number, : len(ids)] = ids
                    candidates[row, number, len(ids)] = EOS
            batch = {**self._inputs(part), "candidates": candidates}
            scores = self._run(self._score, params, batch)
            _check(scores)
            for row, question in enumerate(part):
                yield scores[row, : len(question.candidates)]

    def _inputs(self, questions: Sequence[Question]) -> dict[str, np.ndarray]:
        tokens = np.zeros((self.batch_size, self.length), np.int32)
        segments = np.zeros_like(tokens)
        for row, question in enumerate(questions):
            ids = question.ids[: self.length - 1]
            tokens[row, : len(ids)] = ids
            tokens[row, len(ids)] = EOS
            segments[row, : len(ids) + 1] = 1
        return {"encoder_inputs": tokens, "encoder_segments": segments}

    def _run(self, compiled: Any, params: Arrays, batch: dict[str, np.ndarray]) -> Any:
        first, last = self.host_part
        part = {name: value[first:last] for name, value in batch.items()}
        return jax.device_get(compiled(params, {}, step.put_batch(part, self.plan.batch_sharding)))


def _check(scores: np.ndarray | float) -> None:
    if np.isnan(scores).any():
        raise NumericAbort(
            "The model gives NaN for an answer's probability, so no answer is the likeliest. Its "
            "weights are damaged, or too large for model.dtype; try another step, or "
            "--config.model.dtype=float32."
        )


def _rounded(count: int) -> int:
    """The next step of doubling from `_CANDIDATE_STEP`."""
    size = _CANDIDATE_STEP
    while size < count:
        size *= 2
    return size


def _before_eos(words: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(words == EOS)
    return words[: ends[0]] if len(ends) else words
