"""Scoring the fine-tuning tasks of a configuration: examples, questions, answers, figures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from moe.decoding.answer import Answerer
from moe.decoding.waiting import Question
from moe.eval import named, scores
from moe.eval.scores import Scores
from moe.models.architecture import Architecture
from moe.pairs import files as pairs
from moe.tasks import registry
from moe.tasks.records import load, whole
from moe.tasks.task import SPLITS, Benchmark, TextExample
from moe.tasks.task_reader import check_labels
from moe.text.vocabulary import check_vocabulary, make_vocabulary
from trainlib.errors import ConfigError, DataError, one_of, shown
from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan

CLASSIFY = ("generate", "rank")


def tasks_of(config: ConfigDict, split: str) -> list[Benchmark]:
    """The tasks of a run of which a split has examples.

    Args:
      config: the whole configuration.
      split: of `moe.tasks.task.SPLITS`.

    Raises:
      ConfigError: metrics that cannot work, or no such task.
      DataError: no task has the split, or files of one's own that cannot be read.
    """
    source, metrics = config.data.source, config.evaluation.metrics
    own = pairs.is_pairs(source)
    if metrics and not own:
        raise ConfigError(
            f"{named.KEY}={shown(metrics)} is for pairs of your own, and data.source="
            f"{shown(source)} has tasks with metrics of their own. Unset it."
        )
    found = pairs.tasks_of(config.data, source, split) if own else registry.tasks_of(source, split)
    if not found:
        advice = f"Choose another with --config.evaluation.split={', '.join(SPLITS)}."
        if own:
            advice += f" Or give its rows: --config.data.{split}=FILE."
        raise DataError(
            f"None of the tasks of data.source={source!r} publishes the split '{split}'. {advice}"
        )
    return named.settle(metrics, found) if own else found


class Tasks:
    """The tasks of a run, their examples read and tokenised.

    Args:
      plan: of the run.
      limit: of each task so many examples, the first; 0: all of them.

    Raises:
      ConfigError: a key of `evaluation.` or `decoding.` that cannot work.
      DataError: data that is not there or cannot be used.
    """

    def __init__(self, plan: Plan[Architecture], limit: int = 0):
        config = plan.config
        if config.evaluation.split not in SPLITS:
            raise one_of("evaluation.split", config.evaluation.split, SPLITS)
        if config.evaluation.classify not in CLASSIFY:
            raise one_of("evaluation.classify", config.evaluation.classify, CLASSIFY)
        self.split, self.ranked = config.evaluation.split, config.evaluation.classify == "rank"
        self.vocabulary = make_vocabulary(config.data)
        check_vocabulary(self.vocabulary, plan.model.vocab_size)
        self.answerer = Answerer(plan, self.vocabulary, num_return_sequences=1)
        self.config = config
        tasks = tasks_of(config, self.split)
        check_labels(tasks, self.vocabulary)
        self.own = {t.name: t for t in tasks} if pairs.is_pairs(config.data.source) else {}
        kind = config.data.source.partition(":")[0]
        self.examples: dict[str, list[TextExample]] = {
            task.name: self._read(task, f"{kind}:{task.name}", task is tasks[0])[: limit or None]
            for task in tasks
        }
        for task in self.own.values():
            known = [example for example in self.examples[task.name] if example.known]
            named.try_out(scores.metric_of(task), known, own=":" in task.metric)
        self.questions = {
            name: [self._question(n, example) for n, example in enumerate(examples)]
            for name, examples in self.examples.items()
        }
        asked = [question for questions in self.questions.values() for question in questions]
        self.count = len(asked)
        self.truncated = sum(question.cut for question in asked)
        self.too_long = sum(map(self._is_too_long, itertools.chain(*self.examples.values())))

    def _read(self, task: Benchmark, source: str, first: bool) -> list[TextExample]:
        if task.name not in self.own:
            return load(self.config.data, source, self.split)
        # Rows whose task cannot be told are refused with the first task.
        rows = pairs.read(self.config.data, task.name, self.split, strays=first)
        return whole(rows, source, self.split)

    def _is_too_long(self, example: TextExample) -> bool:
        """Whether no answer can be right, since those that are have more tokens than is allowed."""
        longest, right = self.answerer.longest, example.answers or example.targets
        if not right or (self.ranked and example.choices):
            return False
        # A token has a byte at least, but for SentencePiece's mark of a first word.
        if min(len(text.encode()) for text in right) < longest:
            return False
        return all(len(self.vocabulary.encode(text)) > longest for text in right)

    def _question(self, number: int, example: TextExample) -> Question:
        choices = example.choices if self.ranked else ()
        return self.answerer.question(example.inputs, number, choices)

    def answers(
        self, weights: Arrays, done: Callable[[int], object] = lambda count: None
    ) -> dict[str, list[str]]:
        """Task -> the text that answers each of its examples.

        Args:
          weights: of the model, with the state of its routers.
          done: called with the number of examples answered so far.
        """
        texts = {name: [""] * len(examples) for name, examples in self.examples.items()}
        count = 0
        for found in self._answers(weights):
            for name, number, text in found:
                texts[name][number] = text
            count += len(found)
            if found:
                done(count)
        return texts

    def _answers(self, weights: Arrays) -> Iterator[list[tuple[str, int, str]]]:
        """Groups of (task, number of the example, text), in any order."""
        searched: list[tuple[str, int, Question]] = []
        for name, questions in self.questions.items():
            if all(question.candidates for question in questions):
                chosen = self.answerer.choices(weights, questions)
                for number, (example, choice) in enumerate(
                    zip(self.examples[name], chosen, strict=True)
                ):
                    yield [(name, number, example.choices[choice])]
            else:
                searched += [(name, number, asked) for number, asked in enumerate(questions)]
        # All at once, so that rows are seldom idle.
        asked = (question for *_, question in searched)
        for group in self.answerer.results(weights, asked):
            yield [
                (*searched[place][:2], self.answerer.first(found).text) for place, found in group
            ]

    def score(self, answers: Mapping[str, Sequence[str]]) -> Scores:
        """The figures of every task, in percent."""
        return Scores(
            {
                name: scores.score(self.own.get(name, name), examples, answers[name])
                for name, examples in self.examples.items()
            },
            self.own,
        )

    def rows(self, scored: Scores) -> list[tuple[str, str]]:
        """The table of all tasks, their average, and how many inputs were cut."""
        table = scored.table({name: len(asked) for name, asked in self.examples.items()})
        return [*table, self.answerer.truncation(self.truncated, self.count), *self.unreachable()]

    def unreachable(self) -> list[tuple[str, str]]:
        """A row of a table: how many right answers are longer than any that is given; none where
        none is.
        """
        if not self.too_long:
            return []
        limit = f"limit {self.answerer.longest:,} tokens: decoding.max_length"
        return [("too long", f"{self.too_long:,} of {self.count:,} right answers ({limit})")]

    def figure_names(self) -> list[str]:
        """Names of the figures that scoring gives, before anything is answered."""
        silent = {name: [""] * len(examples) for name, examples in self.examples.items()}
        return list(self.score(silent).flat())
