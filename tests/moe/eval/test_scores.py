"""From answers to the figures of tasks, averages and leader-board files, derived by hand."""

from __future__ import annotations

import json
import math

import pytest

import configs
from moe.eval import scores, submission
from moe.eval.scores import Scores
from moe.tasks.task import TextExample
from trainlib.errors import ConfigError, StorageError

BOOL = ("False", "True")


def classed(number, label, choices=BOOL, key=None):
    targets = (choices[label],) if label >= 0 else ()
    return TextExample("in", targets, key or (number,), label, choices)


def test_answers_are_classes_only_when_the_words_are_equal():
    examples = [classed(0, 1), classed(1, 0), classed(2, 1), classed(3, 0)]
    # Spaces around do not matter, case does: right, wrong, no class, no class.
    assert scores.score("boolq", examples, [" True ", "True", "true", "False."]) == {"accuracy": 25}


def test_examples_without_a_published_answer_do_not_count():
    examples = [classed(0, -1), classed(1, 1)]
    assert scores.score("boolq", examples, ["True", "False"]) == {"accuracy": 0.0}
    assert scores.score("boolq", examples[:1], ["True"]) == {}


def test_free_answers_and_spans():
    queries = [
        TextExample(
            "q", ("Bo", "Bob"), (0, 0), choices=("Ann", "Bo", "Bob"), answers=("Bo", "Bob")
        ),
        TextExample("q", ("Ann Lee",), (0, 1), choices=("Ann Lee",), answers=("Ann Lee",)),
    ]
    # Exact by the second answer; "ann" of "ann lee": 2*1/(1+2).
    assert scores.score("record", queries, ["bob", "Ann"]) == {
        "f1": pytest.approx(100 * (1 + 2 / 3) / 2),
        "em": 50.0,
    }
    spans = [
        TextExample("w", ("Mark",), (0,), 1, answers=("Mark",)),
        TextExample("w", (), (1,), 0, answers=("Pete",)),
        TextExample("w", (), (2,), 0, answers=("the hat",)),
    ]
    # Named; another named, as it should be; nothing said, which does not name the hat either: T5
    # counts it so, and the leader board gets the answer "False".
    assert scores.score("wsc", spans, ["mark", "Mark", ""]) == {"accuracy": 100.0}
    assert scores.score("wsc", spans[:1], [""]) == {"accuracy": 0.0}
    # SQuAD v2: no accepted answer, and the word for it.
    none = [TextExample("q", ("unanswerable",), ("a",), answers=())]
    assert scores.score("squad_v2", none, ["unanswerable"]) == {"f1": 100.0, "em": 100.0}
    assert scores.score("squad_v2", none, ["Bob"]) == {"f1": 0.0, "em": 0.0}


def test_diagnostics():
    rte = ("entailment", "not_entailment")
    pairs = [classed(n, label, rte) for n, label in enumerate((0, 0, 1, 1))]
    answers = ["entailment", "entailment", "not_entailment", "entailment"]
    # The second pair differs, and three answers are right.
    assert scores.score("axg", pairs, answers) == {"accuracy": 75.0, "gender_parity": 50.0}
    assert scores.main("axg", {"accuracy": 75.0, "gender_parity": 50.0}) == 75.0
    # TP 2, TN 1, FP 1, FN 0 for the class entailment: 2 * 1 / sqrt(3 * 2 * 2 * 1) = 0.57735
    assert scores.score("axb", pairs, answers)["matthews"] == pytest.approx(57.735, abs=1e-3)


def test_superglue_is_the_mean_of_its_tasks_and_these_of_their_figures():
    found = {task: {"accuracy": 80.0} for task in ("boolq", "copa", "rte", "wic", "wsc")}
    found |= {"cb": {"f1": 90.0, "accuracy": 100.0}, "record": {"f1": 70.0, "em": 60.0}}
    assert math.isnan(Scores(found).superglue())
    found["multirc"] = {"f1a": 50.0, "em": 30.0}
    # (5 * 80 + 95 + 65 + 40) / 8
    scored = Scores(found)
    assert scored.superglue() == pytest.approx(75.0)
    assert scores.main("xsum", {"rouge1": 1.0, "rouge2": 2.0, "rougeL": 3.0, "rougeLsum": 4.0}) == 2
    for task, main in (("squad_v2", 7.0), ("trivia_qa", 5.0), ("natural_questions", 5.0)):
        assert scores.main(task, {"f1": 7.0, "em": 5.0}) == main
    assert scores.main("web_questions", {"f1": 7.0, "em": 5.0}) == 5
    flat = scored.flat()
    assert flat["score/superglue"] == flat["score/mean"] == pytest.approx(75.0)
    assert flat["score/cb/f1"] == 90.0
    assert scored.phrase() == ", SuperGLUE 75.00, mean of tasks 75.00"
    table = dict(scored.table(dict.fromkeys(found, 1234)))
    assert table["cb"] == "f1 90.00, accuracy 100.00  (1,234 examples)"
    assert table["SuperGLUE"].startswith("75.00")
    config = configs.load("st_moe_superglue")
    shown = dict(scored.rows(config))
    assert shown["scored"] == "task:superglue, split 'validation'"
    assert (shown["cb"], shown["SuperGLUE"]) == ("f1 90.00, accuracy 100.00", "75.00")
    config.data.source, config.evaluation.limit = "sample:superglue", 64
    assert dict(scored.rows(config))["scored"] == (
        "sample:superglue, split 'validation', the first 64 of a task: samples of this package, no "
        "benchmark"
    )
    assert Scores().rows(config) == []


def test_leader_board_files_have_the_published_form(tmp_path):
    cb = ("entailment", "contradiction", "neutral")
    copa = ("choice1", "choice2")
    examples = {
        "boolq": [classed(0, -1), classed(1, -1)],
        "cb": [classed(0, -1, cb)],
        "copa": [classed(0, -1, copa)],
        "multirc": [
            classed(0, -1, key=(0, 0, 0)),
            classed(0, -1, key=(0, 0, 1)),
            classed(0, -1, key=(0, 1, 2)),
        ],
        "record": [TextExample("q", (), (4, 9), choices=("Ann", "Bo"))],
        "wsc": [TextExample("w", (), (3,), -1, answers=("Mark",))],
        "axb": [classed(7, -1, ("entailment", "not_entailment"))],
        "dpr": [classed(0, 1, ("Al", "Bo"))],
        "xsum": [TextExample("s", (), ("77",), answers=("x",))],
    }
    answers = {
        "boolq": ["True", "what"],  # no class: the first
        "cb": ["neutral"],
        "copa": ["choice2"],
        "multirc": ["True", "False", "True"],
        "record": ["Bo"],
        "wsc": ["mark"],
        "axb": ["not_entailment"],
        "dpr": ["Bo"],  # no part of the leader board
        "xsum": ["A summary."],
    }
    submission.prepare(tmp_path / "board")
    written = submission.write(tmp_path / "board", examples, answers)
    content = {p.name: [json.loads(line) for line in p.read_text().splitlines()] for p in written}
    assert content == {
        "BoolQ.jsonl": [{"idx": 0, "label": "true"}, {"idx": 1, "label": "false"}],
        "CB.jsonl": [{"idx": 0, "label": "neutral"}],
        "COPA.jsonl": [{"idx": 0, "label": 1}],
        "MultiRC.jsonl": [
            {
                "idx": 0,
                "passage": {
                    "questions": [
                        {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
                        {"idx": 1, "answers": [{"idx": 2, "label": 1}]},
                    ]
                },
            }
        ],
        "ReCoRD.jsonl": [{"idx": 9, "label": "Bo"}],
        "WSC.jsonl": [{"idx": 3, "label": "True"}],
        "AX-b.jsonl": [{"idx": 7, "label": "not_entailment"}],
        "xsum.jsonl": [{"id": "77", "prediction": "A summary."}],
    }


def test_predictions_are_not_written_over_others_nor_where_they_cannot_be(tmp_path):
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "CB.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds predictions already \(CB.jsonl\)"):
        submission.prepare(tmp_path / "board")
    with pytest.raises(StorageError, match="cannot be written"):
        submission.prepare(tmp_path / "board" / "CB.jsonl" / "more")


def test_what_a_submission_lacks_is_told():
    board = dict.fromkeys(("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc", "dpr"))
    assert submission.missing({**board, "axb": [], "axg": []}, "test") == ""
    assert submission.missing(["squad_v2"], "validation") == ""
    lacking = submission.missing(board, "validation")
    assert "answer the split 'validation'" in lacking
    assert "--config.evaluation.split=test" in lacking
    assert "no AX-b.jsonl, AX-g.jsonl: --config.data.source=task:superglue,diagnostics" in lacking
