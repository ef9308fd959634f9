"""Metrics by name against the libraries that define them, and functions of one's own."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from moe.eval import named, scores
from moe.eval.scores import Scores
from moe.pairs.example import example_of
from moe.tasks.task import Benchmark
from trainlib import extension
from trainlib.errors import ConfigError

CLASSES = ["no", "yes", "perhaps"]
FREE = [["the cat lay down"], ["a b c d", "a b c d e"], ["The end."]]
SAID = ["the cat sat down", "a b c d e", "end"]


def asked(targets, choices=None):
    rows = [{"inputs": "q", "targets": t, "choices": choices} for t in targets]
    return [example_of(row, number) for number, row in enumerate(rows)]


def task(metric, name="pairs"):
    nothing: dict[str, str] = {}
    return Benchmark(name, metric, None, None, (), nothing, "", nothing)  # type: ignore[arg-type]


def scored(metric, examples, answers):
    return scores.score(task(metric), examples, answers)


def test_classes_are_scored_as_scikit_learn_does():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    right, said = rng.choice(CLASSES, 60).tolist(), rng.choice([*CLASSES, "what"], 60).tolist()
    figures = scored("accuracy,macro_f1", asked(right, CLASSES), said)
    assert figures["accuracy"] == pytest.approx(100 * metrics.accuracy_score(right, said))
    expected = metrics.f1_score(right, said, labels=CLASSES, average="macro")
    assert figures["macro_f1"] == pytest.approx(100 * expected)
    two = ["no", "yes"]
    right, said = rng.choice(two, 60).tolist(), rng.choice(two, 60).tolist()
    figures = scored("matthews", asked(right, two), said)
    assert figures["matthews"] == pytest.approx(100 * metrics.matthews_corrcoef(right, said))


def test_bleu_is_that_of_sacrebleu():
    import sacrebleu

    one = [[texts[0]] for texts in FREE]
    expected = sacrebleu.corpus_bleu(SAID, [[texts[0] for texts in FREE]]).score
    assert scored("bleu", asked(one), SAID) == {"bleu": expected}
    # Texts with one and with two references: the second of the other texts is absent.
    several = sacrebleu.BLEU().corpus_score(SAID, [[t[0] for t in FREE], [None, "a b c d e", None]])
    assert scored("bleu", asked(FREE), SAID) == {"bleu": several.score}
    assert several.score != expected


@pytest.mark.parametrize(("name", "package"), [("bleu", "sacrebleu"), ("rouge", "rouge_score")])
def test_a_package_that_is_missing_is_named_before_a_run(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"not installed: .*\[text\]"):
        named.try_out(scores.metric_of(task(name)), asked(["a"]), own=False)


def test_rouge_takes_the_best_reference():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge2"])
    figures = scored("rouge", asked(FREE), SAID)
    best = [
        max(scorer.score(text, answer)["rouge2"].fmeasure for text in texts)
        for texts, answer in zip(FREE, SAID, strict=True)
    ]
    assert figures["rouge2"] == pytest.approx(100 * np.mean(best))
    assert scores.main(task("rouge"), figures) == figures["rouge2"]


def test_free_answers_are_equal_or_share_words():
    examples = asked(["Paris", ["3", "three"], "The end."])
    figures = scored("exact_match,f1,accuracy", examples, [" Paris ", "three", "end"])
    # Blanks at the ends do not count, case and marks do; F1 is SQuAD's, which drops both.
    assert figures["exact_match"] == figures["accuracy"] == pytest.approx(200 / 3)
    assert figures["f1"] == pytest.approx(100)
    assert scores.main(task("exact_match,f1"), figures) == figures["exact_match"]
    assert scores.right(task("exact_match,f1"), examples[0], "Paris") is True
    assert scores.right(task("exact_match,f1"), examples[0], "paris") is False
    assert scores.right(task("bleu"), examples[0], "paris") is None


def test_metrics_are_given_to_all_tasks_or_to_one():
    tasks = [task("accuracy", "spam"), task("exact_match,f1", "titles")]
    assert [t.metric for t in named.settle("", tasks)] == ["accuracy", "exact_match,f1"]
    found = named.settle(" macro_f1, titles = rouge,titles=bleu", tasks)
    assert [t.metric for t in found] == ["macro_f1", "rouge,bleu"]
    with pytest.raises(ConfigError, match=r"no metric 'acuracy'. Did you mean 'accuracy'"):
        named.settle("acuracy", tasks)
    with pytest.raises(ConfigError, match=r"no task 'title' .* Did you mean 'titles'"):
        named.settle("title=rouge", tasks)
    with pytest.raises(ConfigError, match="two figures the name 'accuracy'"):
        scores.metric_of(task("accuracy,my_metrics:accuracy"))
    own = {t.name: t for t in tasks}
    found = Scores({"spam": {"accuracy": 50.0}, "titles": {"exact_match": 20.0, "f1": 90.0}}, own)
    assert found.averages() == {"mean": 35.0}
    # Tasks of one's own that are called as those of SuperGLUE are not SuperGLUE.
    names = scores.SUPERGLUE
    found = Scores(
        {name: {"accuracy": 1.0} for name in names}, {n: task("accuracy", n) for n in names}
    )
    assert found.averages() == {"mean": 1.0}


def test_macro_f1_needs_one_list_of_choices():
    mixed = asked(["no", "yes"], ["no", "yes"]) + asked(["no"], ["yes", "no"])
    mixed[2] = dataclasses.replace(mixed[2], where="f.jsonl line 3")
    with pytest.raises(ConfigError, match=r"f\.jsonl line 3 has others or none"):
        scored("macro_f1", mixed, ["no"] * 3)
    with pytest.raises(ConfigError, match="is of two choices, and there are 3"):
        scored("matthews", asked(["no"], CLASSES), ["no"])


MODULE = """
import numpy as np

def length(answers, right):
    assert all(isinstance(texts, list) for texts in right)
    return np.float32(sum(map(len, answers)) / len(answers))

def several(answers, right):
    return {"first": 1, "last": np.array(2.5)}

def fails(answers, right):
    return 1 / len(answers[0])

def word(answers, right):
    return "good"

def listed(answers, right):
    return [1.0]

def nothing(answers, right):
    return {}

def strange(answers, right):
    return {"a/b": 1}

def not_a_number(answers, right):
    return float("nan")

def unbounded(answers, right):
    return float("inf")

def too_large(answers, right):
    return 10 ** 400

def correlation(answers, right):
    return float("nan") if not answers[0] else 1.0

CONSTANT = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_metrics_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_metrics_of_test"


def test_functions_of_ones_own(module):
    examples = asked(["ab", "cdef"])
    figures = scored(f"{module}:several,exact_match,{module}:length", examples, ["ab", "x"])
    expected = {"several.first": 1.0, "several.last": 2.5, "exact_match": 50.0, "length": 1.5}
    assert figures == expected
    assert scores.main(task(f"{module}:several,exact_match"), figures) == 1.75
    metric = scores.metric_of(task(f"{module}:correlation"))
    assert np.isnan(named.try_out(metric, examples, own=True)["correlation"])  # of no answers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "stops with ZeroDivisionError on 2 answers .*line 12.* division by zero"),
        ("word", "returns 'good', where a number is needed"),
        ("listed", r"returns \[1.0\], where a number is needed"),
        ("nothing", "returns no figure"),
        ("strange", "names a figure 'a/b'"),
        ("not_a_number", "not_a_number is nan where every answer is right"),
        ("unbounded", "unbounded is inf where every answer is right"),
        ("too_large", "returns a number that no float can hold"),
        ("CONSTANT", "must be a function of answers"),
        ("lenght", "Did you mean 'length'"),
    ],
)
def test_functions_that_cannot_work_are_named_before_a_run(module, name, message):
    with pytest.raises(ConfigError, match=message):
        named.try_out(scores.metric_of(task(f"{module}:{name}")), asked(["a", "b"]), own=True)


def test_code_of_a_saved_configuration_is_not_imported_without_trust(module):
    values = {"evaluation.metrics": f"accuracy,spam={module}:length"}
    with pytest.raises(ConfigError, match=f"--trust_code={module}"):
        extension.check(values, "config.json")
