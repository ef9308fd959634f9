"""Metrics that `evaluation.metrics` names for one's own tasks, and functions of one's own.

`accuracy,macro_f1` is for all tasks, `titles=rouge` for one; the first of a task decides its part
in the mean. MODULE:FUNCTION takes the answers (a list of texts) and what is right (for each a list
of texts), and returns a number or a dictionary of named numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from moe.eval.classification import INVALID, accuracy, macro_f1, matthews
from moe.eval.overlap import bleu, rouge
from moe.eval.text_match import answer_scores, percent
from moe.tasks.task import Benchmark, TextExample
from trainlib import extension
from trainlib.errors import ConfigError, UserError, nearest, shown
from trainlib.keys import brief

KEY = "evaluation.metrics"
Figures = dict[str, float]
Examples = Sequence[TextExample]
_FIGURE = re.compile(r"[^\W_][\w.@-]{0,63}")
_TRIED = 8  # examples on which a metric of this package is tried before a run


class Metric(NamedTuple):
    """How a task is scored.

    Attributes:
      figures: (examples, answers) -> figures, in percent where they are shares.
      main: those that the one figure of a task is the mean of, by their names or what stands before
        a dot in them; (): all of them.
    """

    figures: Callable[[Examples, Sequence[str]], Figures]
    main: tuple[str, ...] = ()


def class_of(example: TextExample, answer: str) -> int:
    """Number of the class that an answer names, `INVALID` for none; the words have to be equal."""
    text = answer.strip()
    return example.choices.index(text) if text in example.choices else INVALID


def classes(examples: Examples, answers: Sequence[str]) -> tuple[list[int], list[int]]:
    """The right classes, and those that answers name."""
    pairs = zip(examples, answers, strict=True)
    return [e.label for e in examples], [class_of(e, a) for e, a in pairs]


def _exact(examples: Examples, answers: Sequence[str]) -> list[bool]:
    """Whether each answer is one of those that are right, but for blanks around it."""
    return [a.strip() in e.answers for e, a in zip(examples, answers, strict=True)]


def _accuracy(examples: Examples, answers: Sequence[str]) -> Figures:
    """Of rows with choices the share of right classes, of others that of right texts."""
    if all(example.choices for example in examples):
        return {"accuracy": accuracy(*classes(examples, answers))}
    return {"accuracy": percent(_exact(examples, answers))}


def _exact_match(examples: Examples, answers: Sequence[str]) -> Figures:
    return {"exact_match": percent(_exact(examples, answers))}


def _f1(examples: Examples, answers: Sequence[str]) -> Figures:
    return {"f1": answer_scores(answers, _accepted(examples))["f1"]}


def _accepted(examples: Examples) -> list[tuple[str, ...]]:
    return [example.answers for example in examples]


def _one_list(metric: str, examples: Examples, *counts: int) -> int:
    """The number of classes that all examples share.

    Raises:
      ConfigError: their choices differ, or are not as many as the metric is for.
    """
    first = examples[0].choices
    other = next((e for e in examples if e.choices != first), None)
    if not first or other is not None:
        where = f" {(other or examples[0]).where} has others or none." if examples else ""
        raise ConfigError(
            f"{KEY}: {metric} needs rows that all have the same list of choices.{where} Use "
            "accuracy, which does not."
        )
    if counts and len(first) not in counts:
        raise ConfigError(f"{KEY}: {metric} is of two choices, and there are {len(first)}.")
    return len(first)


def _macro_f1(examples: Examples, answers: Sequence[str]) -> Figures:
    count = _one_list("macro_f1", examples)
    return {"macro_f1": macro_f1(*classes(examples, answers), classes=count)}


def _matthews(examples: Examples, answers: Sequence[str]) -> Figures:
    _one_list("matthews", examples, 2)
    return {"matthews": matthews(*classes(examples, answers))}


def _rouge(examples: Examples, answers: Sequence[str]) -> Figures:
    return rouge(answers, _accepted(examples))


def _bleu(examples: Examples, answers: Sequence[str]) -> Figures:
    return {"bleu": bleu([answer.strip() for answer in answers], _accepted(examples))}


NAMES: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "bleu": Metric(_bleu),
    "exact_match": Metric(_exact_match),
    "f1": Metric(_f1),
    "macro_f1": Metric(_macro_f1),
    "matthews": Metric(_matthews),
    "rouge": Metric(_rouge, ("rouge2",)),
}


# ------------------------------------------------------------------------- several for a task
def settle(value: str, tasks: Sequence[Benchmark]) -> list[Benchmark]:
    """The tasks with the metrics that `evaluation.metrics` gives them; others keep their own.

    Raises:
      ConfigError: no such metric, function or task.
    """
    of_all: list[str] = []
    of_one: dict[str, list[str]] = {}
    known = [task.name for task in tasks]
    for entry in filter(None, (part.strip() for part in value.split(","))):
        task, equals, name = (part.strip() for part in entry.rpartition("="))
        if equals and task not in known:
            raise ConfigError(
                f"{KEY}: there is no task {shown(task)!r} among those that are scored. "
                f"{nearest(task, known)}Tasks: {', '.join(known)}."
            )
        _one(name)  # refuses what is unknown, whether a task uses it or not
        (of_one.setdefault(task, []) if equals else of_all).append(name)
    metrics = {task.name: of_one.get(task.name) or of_all for task in tasks}
    return [
        dataclasses.replace(task, metric=",".join(metrics[task.name]) or task.metric)
        for task in tasks
    ]


def combined(names: str) -> Metric:
    """The metric that gives the figures of several, of which the first is the main one.

    Raises:
      ConfigError: there is none of a name, or two would give figures of one name.
    """
    listed = list(dict.fromkeys(names.split(",")))
    figures_of = [name.rpartition(":")[2] for name in listed]
    twice = [name for name in figures_of if figures_of.count(name) > 1]
    if twice:
        raise ConfigError(
            f"{KEY}={shown(names)} gives two figures the name {twice[0]!r}: rename one."
        )

    metrics = [_one(name) for name in listed]

    def figures(examples: Examples, answers: Sequence[str]) -> Figures:
        found: Figures = {}
        for metric in metrics:
            found |= metric.figures(examples, answers)
        return found

    return Metric(figures, metrics[0].main or (figures_of[0],))


def _one(name: str) -> Metric:
    """A metric of this package, or a function of one's own.

    Raises:
      ConfigError: there is none.
    """
    if name in NAMES:
        return NAMES[name]
    if not extension.is_reference(name):
        raise ConfigError(
            f"{KEY}: there is no metric {shown(name, 80)!r}. {nearest(name, NAMES)}Metrics: "
            f"{', '.join(NAMES)}, or {extension.FORM} of your own function; TASK=METRIC is for "
            "one task."
        )
    function = extension.load(name, KEY)
    if not callable(function):
        raise extension.misfit(name, KEY, function, "a function of answers and of what is right")

    def figures(examples: Examples, answers: Sequence[str]) -> Figures:
        return _called(name, function, examples, answers)

    return Metric(figures)


def main_names(metric: Metric, figures: Mapping[str, float]) -> list[str]:
    """The figures that the one figure of a task is the mean of."""
    chosen = [n for n in figures if n in metric.main or n.partition(".")[0] in metric.main]
    return chosen or list(figures)


def try_out(metric: Metric, examples: Examples, own: bool) -> Figures:
    """Scores what is right, and no answers, so that what cannot work is said before a run.

    Args:
      metric: of a task.
      examples: whose right answers are known.
      own: whether a function of one's own is among it, which gets all examples.

    Returns:
      The figures of no answers.

    Raises:
      ConfigError: a package is not installed, or a function fails or gives what is no number.
    """
    tried = examples if own else examples[:_TRIED]
    if not tried:
        return {}
    for name, value in metric.figures(tried, [e.answers[0] for e in tried]).items():
        if not math.isfinite(value):
            raise ConfigError(f"{KEY}: {name} is {value} where every answer is right.")
    return metric.figures(tried, [""] * len(tried))


def _called(
    name: str, function: Callable[..., Any], examples: Examples, answers: Sequence[str]
) -> Figures:
    """The figures of a function of one's own, named as it, or NAME.KEY of a dictionary.

    Raises:
      ConfigError: it fails, or returns something else.
    """
    right = [list(example.answers) for example in examples]
    try:
        result = function(list(answers), right)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = frame.filename != __file__  # else it does not take these arguments
        place = f" ({shown(frame.filename)}, line {frame.lineno})" if own else ""
        raise ConfigError(
            f"{KEY}: {name} stops with {type(error).__name__} on {len(answers):,} answers"
            f"{place}: {shown(error)}. It is called with a "
            "list of answers, some of them empty perhaps, and for each a list of texts that are "
            "right. --debug prints the traceback."
        ) from error
    called = name.rpartition(":")[2]
    if not isinstance(result, Mapping):
        return {called: _figure(name, result)}
    for key in result:
        if not isinstance(key, str) or not _FIGURE.fullmatch(key):
            raise ConfigError(f"{KEY}: {name} names a figure {brief(key, 80)}: use a plain word.")
    if not result:
        raise ConfigError(f"{KEY}: {name} returns no figure.")
    return {f"{called}.{key}": _figure(name, value) for key, value in result.items()}


def _figure(name: str, value: Any) -> float:
    """A number of Python, NumPy or JAX.

    Raises:
      ConfigError: it is none.
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 0) == 1:
        value = item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigError(
            f"{KEY}: {name} returns {brief(value, 80)}, where a number is needed, or a dictionary "
            "of named numbers."
        )
    try:
        return float(value)
    except OverflowError:  # an int of Python has no largest value
        raise ConfigError(f"{KEY}: {name} returns a number that no float can hold.") from None
