"""Mistakes on the command line: one paragraph, the right exit code, nothing compiled before it."""

import sys
from pathlib import Path

import jax
import pytest

from launch import describe, evaluate, train
from trainlib.errors import UserError, run_command

DIGITS = "--config=configs/aa_resnet50.py:digits"

MISTAKES = [
    ([], 64, ["--workdir"]),
    (["--workdir=W"], 64, ["--config is missing"]),
    (["--confg=x", "--workdir=W"], 64, ["'--confg'", "Did you mean '--config'"]),
    (["--config=configs/aa_resnet5.py"], 64, ["no such file", "aa_resnet50"]),
    (["--config=configs/aa_resnet50.py:digts"], 64, ["'digts'", "Did you mean 'digits'"]),
    ([DIGITS, "--config.batchsize=3"], 64, ["'batchsize'", "Did you mean 'batch_size'"]),
    ([DIGITS, "--config.model.dept=50"], 64, ["'model.dept'", "Did you mean 'model.depth'"]),
    ([DIGITS, "--config.model=50"], 64, ["'model' is a section"]),
    ([DIGITS, "--config.steps"], 64, ["needs a value"]),
    ([DIGITS, "--config.steps=many"], 64, ["steps='many'", "a whole number from 1"]),
    ([DIGITS, "--config.ema_decay=high"], 64, ["ema_decay", "a number from 0 and below 1"]),
    ([DIGITS, "--config.optimizer.nesterov=perhaps"], 64, ["nesterov", "true or false"]),
    ([DIGITS, "--config.steps=0"], 64, ["steps=0", "a whole number from 1"]),
    ([DIGITS, "--config.batch_size=12"], 64, ["batch_size=12", "8 devices", "Nearest: 16"]),
    ([DIGITS, "--config.microbatches=5"], 64, ["5 microbatches", "Nearest"]),
    ([DIGITS, "--config.mesh.data=3"], 64, ["3 devices", "8 are there"]),
    ([DIGITS, "--config.sharding=fsdpp"], 64, ["'fsdpp'", "Did you mean 'fsdp'"]),
    ([DIGITS, "--config.label_smoothing=1.5"], 64, ["label_smoothing=1.5"]),
    ([DIGITS, "--config.optimizer.name=sdg"], 64, ["'sdg'", "Did you mean 'sgd'"]),
    ([DIGITS, "--config.schedule.name=cosin"], 64, ["Did you mean 'cosine'"]),
    ([DIGITS, "--config.schedule.warmup_steps=9999"], 64, ["warmup_steps=9999"]),
    ([DIGITS, "--config.optimizer.frozen=no_such_layer"], 64, ["no_such_layer", "none of"]),
    ([DIGITS, "--config.optimizer.frozen=^stem"], 64, ["3 of 213 weights", "at random"]),
    ([DIGITS, "--config.model.depth=51"], 64, ["model.depth=51", "50"]),
    (
        [DIGITS, "--config.model.attention.heads=2"],
        64,
        ["Did you mean 'model.attention.num_heads'"],
    ),
    ([DIGITS, "--config.model.attention.num_heads=0"], 64, ["num_heads=0"]),
    ([DIGITS, "--config.model.attention.num_heads=96"], 64, ["num_heads=96", "depth of 0"]),
    ([DIGITS, "--config.model.attention.upsilon=1.5"], 64, ["upsilon"]),
    ([DIGITS, "--config.model.attention.kind=augmentd"], 64, ["augmentd", "augmented"]),
    ([DIGITS, "--config.model.name=resnt"], 64, ["resnt", "resnet"]),
    ([DIGITS, "--config.model.dtype=float31"], 64, ["float31", "float32"]),
    ([DIGITS, "--config.model.num_classes=9"], 65, ["10 classes", "num_classes"]),
    ([DIGITS, "--config.data.source=digitz"], 64, ["digitz", "Did you mean 'digits'"]),
    ([DIGITS, "--config.checkpoint.best=top-1"], 64, ["'top-1'", "loss, top1, top5"]),
    ([DIGITS, "--config.data.augment=mixup"], 64, ["data.augment='mixup'"]),
    ([DIGITS, "--config.data.mixup=-1"], 64, ["data.mixup=-1", "0 for off"]),
    ([DIGITS, "--config.data.repeats=5"], 64, ["no multiple of data.repeats=5", "=95"]),
    ([DIGITS, "--config.data.source=folder:no/such/dir"], 65, ["no/such/dir"]),
    (["--config=configs/aa_resnet50.py"], 65, ["folder:", "digits"]),
]


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """A mistake that goes unnoticed must fail at once, not train for minutes."""

    def refuse(*_):
        raise AssertionError("the train step would have been compiled")

    # A step is compiled when it is called, and not when it is wrapped.
    monkeypatch.setattr("trainlib.step.step.compile_step", lambda *_: refuse)


def outcome(main, argv, capsys) -> tuple[int, str]:
    code = run_command(lambda: main(argv))
    return code, " ".join(capsys.readouterr().err.split())


@pytest.mark.thorough
@pytest.mark.parametrize(("argv", "code", "words"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_training_refuses_in_one_paragraph(argv, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # no data set of this machine's user
    given = argv if not argv or argv[-1] == "--workdir=W" else [*argv, f"--workdir={tmp_path}/w"]
    found, text = outcome(train.main, given, capsys)
    assert found == code, text
    for word in words:
        assert word in text
    assert "Traceback" not in text


def test_missing_imagenet_names_three_ways_to_go_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    argv = ["--config=configs/aa_resnet50.py", f"--workdir={tmp_path}/w"]
    code, text = outcome(train.main, argv, capsys)
    assert code == 65
    for way in ("imagenet2012", "folder:", ":digits"):
        assert way in text


def test_a_workdir_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [DIGITS, f"--workdir={tmp_path}/file/w"]
    assert outcome(train.main, argv, capsys)[0] == 74


def test_evaluation_wants_a_run(capsys, tmp_path):
    code, text = outcome(evaluate.main, [f"--workdir={tmp_path}"], capsys)
    assert code == 64
    assert "holds no run" in text


def test_explain_names_value_meaning_and_origin(capsys):
    argv = [DIGITS, "--config.seed=3", "--explain=seed"]
    assert run_command(lambda: describe.main(argv)) == 0
    out = capsys.readouterr().out
    assert "seed = 3" in out
    assert "command line" in out
    assert run_command(lambda: describe.main([DIGITS, "--explain=steps"])) == 0
    assert "aa_resnet50.py, variant digits" in capsys.readouterr().out
    assert run_command(lambda: describe.main([DIGITS, "--explain=step"])) == 64
    assert "Did you mean 'steps'" in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_command(main)


def test_every_error_has_its_own_exit_code():
    kinds = [kind for kind in UserError.__subclasses__() if not kind.__name__.startswith("_")]
    assert sorted(kind.exit_code for kind in kinds) == [64, 65, 66, 70, 74, 75, 76]
    assert len(jax.devices()) == 8, "batch division above is checked against 8 devices"
    assert Path(sys.executable).exists()
