"""A task of one's own as a user types it: trained from nothing, and from that run; scored."""

from __future__ import annotations

import json

import pytest

from launch import evaluate, train
from trainlib.errors import run_command

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("compiled_once")]

TINY = (
    *(f"--config.model.{key}=32" for key in ("d_model", "d_ff")),
    *("--config.model.encoder_blocks=1", "--config.model.decoder_blocks=1"),
    *("--config.model.num_heads=2", "--config.model.head_dim=16", "--config.model.sparse_period=1"),
    "--config.routing.num_experts=0",
)
SHORT = (
    *("--config.data.encoder_length=48", "--config.data.decoder_length=8", "--config.steps=2"),
    *("--config.schedule.warmup_steps=1", "--config.batch_size=8", "--config.eval_batch_size=8"),
    *("--config.eval_every=0", "--config.checkpoint.every=2", "--config.data.workers=0"),
    "--config.evaluation.classify=rank",
)


def typed(module, *words) -> int:
    return run_command(lambda: module.main(["--config=finetune_pairs", *map(str, words)]))


def test_training_scores_and_files(tmp_path, capsys):
    rows = [
        {"inputs": f"is {n} even?", "targets": ("yes", "no")[n % 2], "choices": ["yes", "no"]}
        for n in range(50)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "\n".join(f'{row["inputs"]},{row["targets"]},"[""yes"", ""no""]"' for row in rows[:6])
    (tmp_path / "val.csv").write_text(f"inputs,targets,choices\n{text}\n")
    data = [f"--config.data.train={tmp_path}/train.jsonl", f"--config.data.cache={tmp_path}/cache"]
    first = tmp_path / "first"
    assert typed(train, f"--workdir={first}", *data, *TINY, *SHORT) == 0
    out = capsys.readouterr().out
    assert "of 50 rows of data.train, by their inputs (data.holdout=0.1)" in out
    assert "train.jsonl, what is held out, split 'validation'" in out

    # From that run, whose model it takes, scored on a file that the training file holds.
    second = [f"--workdir={tmp_path}/second", f"--config.init_from={first}", *data, *SHORT]
    second.append(f"--config.data.validation={tmp_path}/val.csv")
    assert typed(train, *second) == 0
    out = capsys.readouterr().out
    assert "leak     6 of 6 rows of data.validation" in out
    board = tmp_path / "board"
    words = [f"--workdir={tmp_path}/second", "--step=best", f"--write_predictions={board}"]
    assert run_command(lambda: evaluate.main(words)) == 0
    out = capsys.readouterr().out
    assert "leak" in out
    assert "(6 examples)" in out
    lines = [json.loads(line) for line in (board / "pairs.jsonl").read_text().splitlines()]
    assert [(line["row"], line["inputs"]) for line in lines] == [
        (n + 1, row["inputs"]) for n, row in enumerate(rows[:6])
    ]
    assert {line["prediction"] for line in lines} <= {"yes", "no"}
    right = sum(line["prediction"] in line["targets"] for line in lines)
    saved = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert f"accuracy {100 * right / 6:.2f}" in out
    assert json.dumps(saved).count("score/pairs/accuracy") == 1
