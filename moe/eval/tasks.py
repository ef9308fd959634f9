"""Scoring the fine-tuning tasks of a configuration: examples, questions, answers, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from moe.decoding.answer import Answerer
from moe.decoding.waiting import Question
from moe.eval import scores
from moe.eval.scores import Scores
from moe.models.architecture import Architecture
from moe.tasks.records import load
from moe.tasks.registry import tasks_of
from moe.tasks.task import SPLITS, Benchmark, TextExample
from moe.tasks.task_reader import check_labels
from moe.text.vocabulary import check_vocabulary, make_vocabulary
from trainlib.errors import DataError, one_of
from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan

CLASSIFY = ("generate", "rank")


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
        kind = config.data.source.partition(":")[0]
        check_labels(config.data.source, self.split, self.vocabulary)
        self.examples: dict[str, list[TextExample]] = {
            task.name: load(config.data, f"{kind}:{task.name}", self.split)[: limit or None]
            for task in self._tasks()
        }
        if not self.examples:
            raise DataError(
                f"None of the tasks of data.source={config.data.source!r} publishes the split "
                f"'{self.split}'. Choose another with --config.evaluation.split="
                f"{', '.join(SPLITS)}."
            )
        self.questions = {
            name: [self._question(n, example) for n, example in enumerate(examples)]
            for name, examples in self.examples.items()
        }
        asked = [question for questions in self.questions.values() for question in questions]
        self.count = len(asked)
        self.truncated = sum(question.cut for question in asked)

    def _tasks(self) -> list[Benchmark]:
        return tasks_of(self.config.data.source, self.split)

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
            if questions[0].candidates:
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
                name: scores.score(name, examples, answers[name])
                for name, examples in self.examples.items()
            }
        )

    def rows(self, scored: Scores) -> list[tuple[str, str]]:
        """The table of all tasks, their average, and how many inputs were cut."""
        table = scored.table({name: len(asked) for name, asked in self.examples.items()})
        return [*table, self.answerer.truncation(self.truncated, self.count)]

    def figure_names(self) -> list[str]:
        """Names of the figures that scoring gives, before anything is answered."""
        silent = {name: [""] * len(examples) for name, examples in self.examples.items()}
        return list(self.score(silent).flat())
