"""What a fine-tuned model answers to the first examples of its tasks, beside the truth."""

from __future__ import annotations

from moe.eval import scores
from moe.eval.tasks import Tasks, tasks_of
from moe.models.architecture import Architecture
from moe.tasks.task import UNKNOWN_LABEL, Benchmark, TextExample
from trainlib.errors import shown
from trainlib.model.weights import Arrays
from trainlib.report.samples import Compared, Sample
from trainlib.step.plan import Plan


class Asked:
    """The first examples of each task of a run.

    Args:
      plan: of the run.
      count: how many, at most; where there are more tasks, one of each of the first.

    Raises:
      ConfigError: a key of `evaluation.` or `decoding.` that cannot work.
      DataError: data that is not there or cannot be used.
    """

    def __init__(self, plan: Plan[Architecture], count: int):
        tasks = len(tasks_of(plan.config, plan.config.evaluation.split))
        self.tasks, self.count = Tasks(plan, limit=-(-count // tasks)), count

    def answered(self, weights: Arrays) -> tuple[list[Sample], str]:
        """The samples, and a sentence on them.

        Raises:
          NumericAbort: the model gives NaN.
        """
        tasks = self.tasks
        said = tasks.answers(weights)
        asked = [
            (number, name, example)
            for name, examples in tasks.examples.items()
            for number, example in enumerate(examples)
        ]
        first = sorted(asked, key=lambda one: one[0])[: self.count]  # of each task the same number
        samples = [
            sample(name, example, said[name][number], tasks.own.get(name))
            for number, name, example in first
        ]
        judged = [one.right for one in samples if one.right is not None]
        right = f"; {sum(judged)} of {len(judged)} answers are right" if judged else ""
        source = f"the split {tasks.split} of {shown(tasks.config.data.source)}"
        return samples, f"The first examples of each task in {source}{right}."


def sample(task: str, example: TextExample, answer: str, own: Benchmark | None = None) -> Sample:
    """One question with its answer, and the scores of those that are neither right nor wrong.

    Args:
      task: its name.
      example: the question, with what is right.
      answer: the text that the model gave.
      own: the task, where it is one of the user's own.
    """
    right = scores.right(own or task, example, answer)
    fields = [("input", example.inputs)]
    if right is None and example.known:
        figures = scores.score(own or task, [example], [answer])
        fields += [(name, f"{value:.1f} %") for name, value in figures.items()]
    row = Compared("answer", truth(example), answer.strip() or "(nothing)", right)
    where = f", {shown(example.where)}" if example.where else ""
    return Sample(f"{shown(task)}{where}", right, tuple(fields), (row,))


def truth(example: TextExample) -> str:
    """What is right, as text; accepted answers stand side by side."""
    if not example.known:
        return "(not published)"
    if example.choices and example.label != UNKNOWN_LABEL:
        return example.choices[example.label]
    answers = " / ".join(dict.fromkeys(example.answers or example.targets)) or "(no answer)"
    return f"not {answers}" if example.label == 0 else answers
