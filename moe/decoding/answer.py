"""From input texts to answers: batches, the compiled search, texts again.

Letters: B questions of a batch, C candidates, L most tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.decoding.continuous import Continuous
from moe.decoding.model import (
    Decoding,
    decoding_model,
    independent,
    make_generate,
    make_score,
    model_at,
)
from moe.decoding.rows import make_programs
from moe.decoding.search import NEVER
from moe.decoding.waiting import Batching, Found, Question, Waiting, in_order, padded_inputs
from moe.models.architecture import Architecture
from moe.tasks.task_reader import encode
from moe.text.vocabulary import EOS, Vocabulary
from trainlib.config import require
from trainlib.data.order import host_slice
from trainlib.errors import NumericAbort
from trainlib.model.weights import Arrays
from trainlib.sharding.rules import batch_parts
from trainlib.step import step
from trainlib.step.plan import Plan

_CANDIDATE_STEP = 8  # lengths and numbers of candidates grow in few steps: each is a compilation


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
      batch_size: B; 0 takes batching.rows, or that of evaluation.
      num_return_sequences: answers of each question; 0 takes decoding.num_return_sequences.

    Raises:
      ConfigError: keys of `decoding.` or `batching.` that cannot work.
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
        self.batching = Batching(**dict(config.batching.items()))
        asked = batch_size or self.batching.rows
        self.batch_size = asked or config.eval_batch_size or config.batch_size
        parts = batch_parts(plan.rules, plan.mesh)
        key, several = "batching.rows", f"use a multiple of {parts}, the devices that share them"
        require(not self.batch_size % parts, key, self.batch_size, several)
        options = Decoding(**dict(config.decoding.items()))
        self.options = dataclasses.replace(
            options, num_return_sequences=num_return_sequences or options.num_return_sequences
        )
        self.longest = self.options.most(config.data.decoder_length)
        self.beams = self.options.num_beams if self.options.method == "beam" else 1
        # Of other models, answers are those of whole batches of neighbours in their order.
        self.sorts = independent(plan.model, self.length)
        decoding_model(plan.model)  # refuses what has no decoder
        # What is compiled, by the length of the inputs or by the number of rows.
        self._search, self._score, self._rows = map(
            functools.cache, (self._make_search, self._make_score, self._make_rows)
        )

    def _compiled(self, function: Any) -> Any:
        return step.compile_eval(function, self.plan)

    def _model(self, length: int) -> Architecture:
        """For inputs that are padded to `length` tokens."""
        return model_at(self.plan.model, self.length, length) if self.sorts else self.plan.model

    def _make_search(self, length: int) -> Any:
        """Beam search, or whatever is decoded in whole batches."""
        settings = self.options, self.longest, self.vocabulary.size
        return self._compiled(make_generate(self._model(length), *settings))

    def _make_score(self, length: int) -> Any:
        return self._compiled(make_score(self._model(length)))

    def _make_rows(self, rows: int) -> Continuous:
        programs = make_programs(
            self.plan, self._model, self.options, self.longest, self.vocabulary.size, rows
        )
        return Continuous(programs, self._put, self.options.num_return_sequences, _check)

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

    def answers(self, weights: Arrays, questions: Iterable[Question]) -> Iterator[Answer]:
        """The answer to each question, in order; of several the first."""
        for result in in_order(self.results(weights, questions)):
            yield self.first(result)

    def first(self, result: Found) -> Answer:
        """The first of the answers that were found for a question."""
        words = result["words"].reshape(-1, result["words"].shape[-1])[0]
        return Answer(self.vocabulary.decode(_before_eos(words)), EOS not in words)

    def search(self, weights: Arrays, questions: Iterable[Question]) -> Iterator[list[Scored]]:
        """All answers to each question, in order: beams best first, draws as drawn.

        There are decoding.num_return_sequences, and fewer where so many beams did not end within
        decoding.max_length; there is always one.

        Raises:
          NumericAbort: the model gives NaN.
        """
        return map(self.every, in_order(self.results(weights, questions)))

    def results(
        self, weights: Arrays, questions: Iterable[Question]
    ) -> Iterator[list[tuple[int, Found]]]:
        """What is found for each question, as pairs (place of the question, found) in the order in
        which answers end; now and then there are none.

        Questions are read as they are needed. Few are held at once: those that are sorted together,
        and those that are being decoded.

        Raises:
          NumericAbort: the model gives NaN.
        """
        waiting, size = self._waiting(questions)
        if self.sorts and self.beams == 1:
            rows = self._rows(size * self.options.num_return_sequences)
            yield from rows.answers(weights, waiting)
            return
        for batch, length in _batches(waiting, size):
            # A last batch repeats its questions: empty ones would never end.
            asked = [*itertools.islice(itertools.cycle(question for _, question in batch), size)]
            numbers = np.asarray([question.number for question in asked], np.int32)
            inputs = {**padded_inputs(asked, length), "number": numbers}
            result = self._run(self._search(length), weights, inputs)
            _check(result.get("score", 0.0))
            yield [
                (place, {name: value[row] for name, value in result.items()})
                for row, (place, _) in enumerate(batch)
            ]

    def _waiting(self, questions: Iterable[Question]) -> tuple[Waiting, int]:
        """The questions in the order in which they are answered, and how many are at once."""
        size = self.batch_size
        lengths = self.batching.padded(self.length) if self.sorts else (self.length,)
        block = size * self.batching.sorted_batches * self.sorts
        waiting = Waiting(questions, lengths, block, size)
        if self.sorts:  # a smaller batch where there are few questions
            parts = batch_parts(self.plan.rules, self.plan.mesh)
            size = min(size, _rounded(waiting.few(size), parts))
        return waiting, size

    def every(self, result: Found) -> list[Scored]:
        """All answers that were found for a question."""
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

    def choices(self, weights: Arrays, questions: Sequence[Question]) -> Iterator[int]:
        """Number of the likeliest candidate of each question, the first of equal ones."""
        return (int(np.argmax(scores)) for scores in self.scores(weights, questions))

    def scores(self, weights: Arrays, questions: Sequence[Question]) -> Iterator[np.ndarray]:
        """The log-probability of each candidate of each question, float32 [candidates].

        It is the `score` that a search gives the same words, which may be words that a search
        does not choose.
        """
        most = max(len(question.candidates) for question in questions)
        longest = max(len(ids) for question in questions for ids in question.candidates) + 1
        count = most if most <= 4 else _rounded(most)
        shape = count, _rounded(longest)

        def found() -> Iterator[list[tuple[int, np.ndarray]]]:
            waiting, size = self._waiting(questions)
            for batch, length in _batches(waiting, size):
                asked = [question for _, question in batch]
                candidates = np.zeros((size, *shape), np.int32)
                for row, question in enumerate(asked):
                    for number, ids in enumerate(question.candidates):
                        candidates[row, number, : len(ids)] = ids
                        candidates[row, number, len(ids)] = EOS
                inputs = padded_inputs([*asked, *[None] * (size - len(asked))], length)
                compiled = self._score(length)
                scores = self._run(compiled, weights, inputs | {"candidates": candidates})
                _check(scores)
                yield [
                    (place, scores[row, : len(question.candidates)])
                    for row, (place, question) in enumerate(batch)
                ]

        return in_order(found())

    def _run(self, compiled: Any, weights: Arrays, batch: dict[str, np.ndarray]) -> Any:
        return jax.device_get(compiled(*self.plan.abstract.split(weights), self._put(batch)))

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Batches of all devices, of which this process gives its part."""
        place = jax.process_index(), jax.process_count()
        parts = {name: slice(*host_slice(len(value), *place)) for name, value in batch.items()}
        part = {name: value[parts[name]] for name, value in batch.items()}
        return step.put_batch(part, self.plan.batch_sharding)


def _batches(waiting: Waiting, size: int) -> Iterator[tuple[list[tuple[int, Question]], int]]:
    """Batches of at most so many questions, with their places, and the length of the inputs."""
    while batch := [*itertools.islice(iter(waiting.take, None), size)]:
        yield batch, waiting.length(max(len(question.ids) for _, question in batch) + 1)


def _check(scores: np.ndarray | float) -> None:
    if np.isnan(scores).any():
        raise NumericAbort(
            "The model gives NaN for an answer's probability, so no answer is the likeliest. Its "
            "weights are damaged, or too large for model.dtype; try another step, or "
            "--config.model.dtype=float32."
        )


def _rounded(count: int, least: int = _CANDIDATE_STEP) -> int:
    """The next step of doubling from `least`."""
    size = least
    while size < count:
        size *= 2
    return size


def _before_eos(words: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(words == EOS)
    return words[: ends[0]] if len(ends) else words
