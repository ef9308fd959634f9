"""Mistakes about experts and text: one paragraph, the right exit code, nothing compiled before."""

import json
import re

import pytest

from launch import train
from trainlib.errors import run_command

TINY = "--config=configs/st_moe_tiny.py"
DECODER = ("--config.model.kind=decoder", "--config.data.objective=language_model")
OWN = ("--config.task=finetune", "--config.data.source=pairs:*")
SMALL_GROUPS = ("--config.routing.min_capacity=0", "--config.routing.group_size=8")


def routing(**values):
    return [f"--config.routing.{key}={value}" for key, value in values.items()]


# Texts by name of a folder; what is asked for; exit code; words of the paragraph.
MISTAKES = [
    (routing(num_experts=12), 64, ["12 does not divide over the 8 rows", "mesh.data=4"]),
    (routing(group_size=1000), 64, ["group_size=1000", "512 tokens that a device", "is 512"]),
    (routing(group_sequences=3), 64, ["group_sequences=3", "the 4 sequences", "is 2"]),
    ([*SMALL_GROUPS, *routing(capacity_factor=0.5)], 64, ["capacity_factor=0.5", "at least 1"]),
    ([*SMALL_GROUPS, *routing(capacity_factor_eval=0.5)], 64, ["capacity_factor_eval=0.5 gives"]),
    ([*DECODER, *routing(batch_prioritized=True)], 64, ["would see its future"]),
    ([*DECODER, *routing(router="experts_choose")], 64, ["would see its future"]),
    (routing(top_k=9), 64, ["top_k=9", "at most 8 different"]),
    (routing(second_policy="randm"), 64, ["'randm'", "Did you mean 'random'"]),
    (routing(bias_update_rate=0.1), 64, ["does nothing here", "set routing.balance_bias to True"]),
    (routing(dispatch="grouped"), 64, ["runs on TPU and GPU", "'dropless'"]),
    (["--config.model.encoder_blocks=5"], 64, ["model.encoder_blocks=5", "4 or 8"]),
    (["--config.model.vocab_size=256"], 65, ["359 ids", "256", "--config.model.vocab_size=384"]),
    (["--config.data.vocabulary=sentencepiece:no.model"], 65, ["no.model cannot be read", "bytes"]),
    (["--config.data.extra_ids=5"], 64, ["extra_ids=5 gives too few", "extra_ids=7"]),
    (["--config.data.source=text:T/nowhere"], 65, ["there is nothing to read"]),
    (
        ["--config.data.source=text:T/empty"],
        65,
        ["(train) has no text", "a.txt offset 0: is empty"],
    ),
    (["--config.data.source=text:T/latin"], 65, ["a.txt offset 0: is not UTF-8 (byte 0xe9 at off"]),
    (["--config.data.source=text:T/short"], 65, ["has one letter", "data.holdout=0"]),
    (["--config.data.source=seqio:mine"], 65, ["has not been prepared", "launch.prepare"]),
    (["--config.upcycle.workdir=T"], 66, ["upcycle.workdir=", "holds no checkpoint"]),
    (["--config.upcycle.workdir=T", *routing(num_experts=0)], 64, ["no experts to fill"]),
    (OWN, 64, ["data.train names no file", "--config.data.train=FILE"]),
    ([*OWN, "--config.data.train=T/no.csv"], 65, ["no.csv: there is no such file"]),
    ([*OWN, "--config.data.train=T/short"], 65, ["is a folder", "In it: a.txt"]),
    ([*OWN, "--config.data.train=T/bad.jsonl"], 65, ["bad.jsonl line 2", "none of its choices"]),
    (
        [*OWN, "--config.data.train=T/good.jsonl", "--config.data.validation=T/bad.jsonl"],
        65,
        ["bad.jsonl line 2", "none of its choices"],
    ),
    (
        [*OWN, "--config.data.train=T/good.jsonl", "--config.evaluation.metrics=acuracy"],
        64,
        ["no metric 'acuracy'", "Did you mean 'accuracy'"],
    ),
    (
        [*OWN, "--config.data.train=T/good.jsonl", "--config.evaluation.metrics=json:dumps"],
        64,
        ["json:dumps stops with TypeError", "a list of answers"],
    ),
    (
        [*OWN, "--config.data.train=T/good.jsonl", "--config.evaluation.split=test"],
        65,
        ["the split 'test'", "--config.data.test=FILE"],
    ),
    (["--config.evaluation.metrics=f1", "--config.task=finetune"], 64, ["names none", "pairs:*"]),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_training_refuses_in_one_paragraph(arguments, code, words, capsys, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("something would have been compiled")

    # A step is compiled when it is first called, and weights when they are created.
    monkeypatch.setattr("trainlib.step.step.compile_step", lambda *_: refuse)
    monkeypatch.setattr("trainlib.step.train_state.create", refuse)
    for name, content in (("empty", b""), ("latin", b"caf\xe9"), ("short", b"x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(content)
    rows = [{"inputs": f"{n}", "targets": "yes", "choices": ["yes", "no"]} for n in range(40)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[1]["targets"] = "maybe"
    bad = [rows[0], *[rows[1]] * 9]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    given = [word.replace("=text:T", f"=text:{tmp_path}") for word in arguments]
    given = [re.sub("(workdir|train|validation)=T", rf"\1={tmp_path}", word) for word in given]
    own = [TINY, f"--workdir={tmp_path}/w", f"--config.data.cache={tmp_path}/cache"]
    if not any("num_experts" in word for word in arguments):
        own.append("--config.routing.num_experts=8")  # one for each of the eight devices
    found = run_command(lambda: train.main([*own, *given]))
    text = " ".join(capsys.readouterr().err.split())
    assert found == code, text
    for word in words:
        assert word in text
    assert "Traceback" not in text
