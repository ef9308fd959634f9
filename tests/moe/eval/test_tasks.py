"""The tasks of a run with pairs of one's own: what is read, said, scored and written."""

from __future__ import annotations

import json

import pytest

import configs
from moe import plan as plan_lib
from moe.eval import submission
from moe.eval.tasks import Tasks, tasks_of
from moe.samples.answers import sample
from moe.train import open_data
from trainlib.errors import ConfigError, DataError

ROWS = [
    {"inputs": "a " * 40, "targets": "no", "choices": ["no", "yes"], "task": "boolq"},
    {"inputs": "b", "targets": "yes", "choices": ["no", "yes"], "task": "boolq"},
    {"inputs": "c", "targets": ["x" * 12, "y" * 13], "task": "titles"},
    {"inputs": "d", "targets": ["é", "z" * 30], "task": "titles"},
    {"inputs": "e", "targets": "12345678", "task": "titles"},
]


@pytest.fixture
def config(tmp_path):
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    path = str(tmp_path / "rows.jsonl")
    return configs.load(
        "finetune_pairs",
        data={"train": path, "validation": path, "encoder_length": 32, "decoder_length": 8},
        routing={"num_experts": 0},  # which would have to divide over the devices
    )


def test_tasks_of_one_file_are_scored_each(config, tmp_path):
    config.evaluation.metrics = "titles=exact_match"
    tasks = Tasks(plan_lib.make(config))
    assert {name: len(asked) for name, asked in tasks.examples.items()} == {"boolq": 2, "titles": 3}
    assert tasks.figure_names() == [
        "score/boolq/accuracy",
        "score/titles/exact_match",
        "score/mean",
    ]
    answers = {"boolq": ["no", "no"], "titles": ["?", " é", "12345678"]}
    scored = tasks.score(answers)
    assert scored.flat() == {
        "score/boolq/accuracy": 50.0,
        "score/titles/exact_match": pytest.approx(200 / 3),
        "score/mean": pytest.approx((50 + 200 / 3) / 2),
    }
    # One input of 80 bytes; of the answers the first has none of at most 8 bytes.
    shown = dict(tasks.rows(scored))
    assert shown["truncated"].startswith("1 of 5 inputs")
    assert shown["too long"] == "1 of 5 right answers (limit 8 tokens: decoding.max_length)"
    scored_rows = dict(scored.rows(config))["scored"]
    assert scored_rows == f"{tmp_path}/rows.jsonl, split 'validation'"
    config.data.validation, config.data.holdout = "", 0.5
    scored_rows = dict(scored.rows(config))["scored"]
    assert scored_rows == f"{tmp_path}/rows.jsonl, what is held out, split 'validation'"
    # Its name is SuperGLUE's, and its file is one's own.
    written = submission.write(tmp_path, tasks.examples, answers, tasks.own)
    assert [path.name for path in written] == ["boolq.jsonl", "titles.jsonl"]
    first = json.loads(written[1].read_text().splitlines()[1])
    assert first == {"row": 4, "inputs": "d", "targets": ["é", "z" * 30], "prediction": " é"}
    drawn = sample("titles", tasks.examples["titles"][1], " é", tasks.own["titles"])
    assert drawn.right is True


def test_splits_and_metrics_that_are_not_there(config):
    with pytest.raises(DataError, match=r"the split 'test'.*--config\.data\.test=FILE"):
        tasks_of(config, "test")
    config.data.validation, config.data.holdout = "", 0.0
    with pytest.raises(DataError, match=r"--config\.data\.validation=FILE"):
        tasks_of(config, "validation")
    config.data.source, config.evaluation.metrics = "sample:cb", "f1"
    with pytest.raises(ConfigError, match="has tasks with metrics of their own"):
        tasks_of(config, "validation")


def test_a_run_that_holds_nothing_out_scores_nothing(config, tmp_path):
    config.data.validation, config.data.holdout = "", 0.0
    config.data.cache, config.checkpoint.best = str(tmp_path / "cache"), ""
    data = open_data(plan_lib.make(config))
    assert (data.held_out, data.tasks, len(data.source) > 0) == (None, None, True)
    config.checkpoint.best = "score/mean"
    with pytest.raises(ConfigError, match="leaves nothing to evaluate on"):
        open_data(plan_lib.make(config))
