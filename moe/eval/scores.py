"""From answers to the scores of a task, and the table of all tasks.

A score is a dictionary of figures in percent; `main` condenses it to the one figure that averages
are made of.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import cast

from ml_collections import ConfigDict

from moe.eval import named
from moe.eval.classification import accuracy, gender_parity, macro_f1, matthews, multirc
from moe.eval.named import Figures, Metric, class_of, classes
from moe.eval.overlap import rouge
from moe.eval.text_match import answer_scores, names_referent, normalise_trivia
from moe.pairs import files as pairs
from moe.tasks.question_answering import UNANSWERABLE
from moe.tasks.registry import SUPERGLUE, benchmark
from moe.tasks.task import Benchmark, TextExample

SCORE = "score/"  # prefix of the figures of tasks in files
_EXACT = ("accuracy", "exact_match", "em")  # figures that are 100 where one answer is right
_AVERAGES = {"superglue": "SuperGLUE", "mean": "mean of tasks"}


def _cb(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    pairs = classes(examples, answers)
    return {"f1": macro_f1(*pairs, classes=3), "accuracy": accuracy(*pairs)}


def _matthews(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    # Of RTE's classes the first is the positive one.
    labels, said = classes(examples, answers)
    return {"matthews": matthews(labels, said), "accuracy": accuracy(labels, said)}


def _parity(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    labels, said = classes(examples, answers)
    parity = gender_parity(said, [cast(int, example.key[0]) for example in examples])
    return {"accuracy": accuracy(labels, said), "gender_parity": parity}


def _multirc(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    return multirc(*classes(examples, answers), [example.key[:-1] for example in examples])


def _wsc(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    said = [wsc_class(e, a) for e, a in zip(examples, answers, strict=True)]
    return {"accuracy": accuracy([e.label for e in examples], said)}


def wsc_class(example: TextExample, answer: str) -> int:
    """1 where an answer names the span that is asked about, 0 where it names another or none."""
    return int(names_referent(answer, example.answers[0]))


def _free(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    said = ["" if answer.strip() == UNANSWERABLE else answer for answer in answers]
    return answer_scores(said, [example.answers for example in examples])


def _trivia(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    return answer_scores(answers, [example.answers for example in examples], normalise_trivia)


def _rouge(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    return rouge(answers, [example.answers[:1] for example in examples])


def _closed(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    return answer_scores(answers, [example.answers for example in examples])


def _grammar(examples: Sequence[TextExample], answers: Sequence[str]) -> Figures:
    """Sentences that equal one of the corrections, word by word and with case (ST-MoE, table 7)."""
    pairs = zip(examples, answers, strict=True)
    hits = [said.split() in [text.split() for text in e.answers] for e, said in pairs]
    return {"em": 100 * sum(hits) / len(hits)}


# `Benchmark.metric` -> how it is scored, beside what `moe.eval.named` has for all tasks. A new
# metric is a function above and a row here, or a row there.
METRICS: dict[str, Metric] = {
    "cb": Metric(_cb),
    "closed_book": Metric(_closed, ("em",)),
    "grammar": Metric(_grammar),
    "axb": Metric(_matthews, ("matthews",)),
    "multirc": Metric(_multirc),
    "parity": Metric(_parity, ("accuracy",)),
    "record": Metric(_free),
    "summary": Metric(_rouge, ("rouge2",)),
    "squad": Metric(_free, ("f1",)),
    "trivia": Metric(_trivia, ("em",)),
    "wsc": Metric(_wsc),
}


def metric_of(task: str | Benchmark) -> Metric:
    """How a task is scored: one of this package by its name, or one's own."""
    if isinstance(task, str):
        task = benchmark(task)
    return METRICS.get(task.metric) or named.combined(task.metric)


def score(
    task: str | Benchmark, examples: Sequence[TextExample], answers: Sequence[str]
) -> Figures:
    """The figures of a task; examples whose right answer is not published do not count.

    Args:
      task: it, or its name where it is one of this package.
      examples: what was asked.
      answers: the text that the model gave to each.
    """
    pairs = [(e, a) for e, a in zip(examples, answers, strict=True) if e.known]
    if not pairs:
        return {}
    known, said = zip(*pairs, strict=True)
    return metric_of(task).figures(known, said)


def right(task: str | Benchmark, example: TextExample, answer: str) -> bool | None:
    """Whether one answer is right; None where this is a matter of degree (summaries), or nobody
    published what is right.
    """
    if not example.known:
        return None
    if example.choices:
        return class_of(example, answer) == example.label
    figures = score(task, [example], [answer])
    exact = next((figures[name] for name in _EXACT if name in figures), None)
    return None if exact is None else exact == 100


def main(task: str | Benchmark, figures: Mapping[str, float]) -> float:
    """The one figure of a task: the mean of its figures, as SuperGLUE has it for CB, MultiRC and
    ReCoRD; ROUGE-2 for summaries, F1 for SQuAD, exact match for closed-book questions.
    """
    names = named.main_names(metric_of(task), figures)
    return sum(figures[name] for name in names) / len(names)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The figures of all tasks of an evaluation.

    Attributes:
      tasks: task -> its figures; none where its right answers are not published.
      own: those of one's own, by name.
    """

    tasks: Mapping[str, Figures] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Benchmark] = dataclasses.field(default_factory=dict)

    def averages(self) -> dict[str, float]:
        """`mean` over the tasks that have figures; `superglue` where all of its tasks have."""
        mains = [
            main(self.own.get(task, task), figures)
            for task, figures in self.tasks.items()
            if figures
        ]
        averages = {"mean": sum(mains) / len(mains)} if mains else {}
        superglue = self.superglue()
        return averages if math.isnan(superglue) else averages | {"superglue": superglue}

    def superglue(self) -> float:
        """Mean of the eight tasks of SuperGLUE; NaN where one is missing."""
        if not all(self.tasks.get(task) and task not in self.own for task in SUPERGLUE):
            return math.nan
        return sum(main(task, self.tasks[task]) for task in SUPERGLUE) / len(SUPERGLUE)

    def flat(self) -> dict[str, float]:
        """`score/TASK/FIGURE` and `score/AVERAGE` -> percent, as files name them."""
        flat = {
            f"{SCORE}{task}/{name}": value
            for task, figures in self.tasks.items()
            for name, value in figures.items()
        }
        return flat | {f"{SCORE}{name}": value for name, value in self.averages().items()}

    def phrase(self) -> str:
        """The averages, to end a line with."""
        averages = self.averages()
        shown = [f", {_AVERAGES[n]} {averages[n]:.2f}" for n in _AVERAGES if n in averages]
        return "".join(shown)

    def rows(self, config: ConfigDict) -> list[tuple[str, str]]:
        """Rows of a table: what was scored, one row a task that has figures, the averages."""
        rows = [(task, _listed(figures)) for task, figures in self.tasks.items() if figures]
        rows += [(_AVERAGES[name], f"{value:.2f}") for name, value in self.averages().items()]
        if not rows:
            return []
        limit, source = config.evaluation.limit, config.data.source
        if self.own:
            source = pairs.described(config.data, config.evaluation.split)
        first = f", the first {limit:,} of a task" if limit else ""
        sample = ": samples of this package, no benchmark" if source.startswith("sample:") else ""
        return [("scored", f"{source}, split '{config.evaluation.split}'{first}{sample}"), *rows]

    def table(self, counts: Mapping[str, int]) -> list[tuple[str, str]]:
        """Rows of a table of nothing else: every task with its number of examples, SuperGLUE."""
        rows = [
            (
                task,
                f"{_listed(figures) or 'no published answers'}  ({counts[task]:,} examples)",
            )
            for task, figures in self.tasks.items()
        ]
        average = self.superglue()
        if not math.isnan(average):
            rows.append((_AVERAGES["superglue"], f"{average:.2f}  (mean of its 8 tasks)"))
        return rows


def _listed(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
