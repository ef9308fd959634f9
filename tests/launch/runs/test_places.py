"""Paths that people give, directories of others, and links in them."""

import json
import os

import pytest

from configs.common import load
from launch import cli, report, train
from tests.launch.commands import TINY
from trainlib import paths
from trainlib.errors import ConfigError, DataError
from trainlib.run import curves as plots
from trainlib.run import workdir
from trainlib.run.summary import report_complete, save_summary
from trainlib.run.workdir import check_workdir
from trainlib.run.metric_writers import JsonLines, TensorBoard, Writers, read


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("gs://bucket/run", r"an address \(gs://\)"),
        ("s3a://b", "an address"),
        ("file:///tmp/x", "an address"),
        ("~nobody-of-that-name/x", "home directory"),
        ("a/" + "x" * 256, "too long"),
        ("a\0b", "NUL"),
        ("\ud83d", "half of a character"),
    ],
)
def test_what_is_no_path_is_refused_by_name(text, words):
    with pytest.raises(ConfigError, match=f"--workdir.*{words}"):
        paths.resolve(text, "--workdir")


def test_a_home_directory_is_meant_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.resolve("~/runs", "--workdir") == tmp_path / "runs"
    assert str(paths.resolve("a:b/c", "--workdir")) == "a:b/c"


@pytest.mark.parametrize("text", ["", "gs://bucket/run"])
def test_train_makes_nothing_of_what_is_no_path(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--workdir"):
        train.main([*TINY, f"--workdir={text}"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("configs/resnet50.py", "data.dir", "gs://b"),
        ("configs/resnet50.py", "init_from", "s3://b"),
        ("configs/resnet50.py", "data.source", "folder:gs://b"),
        ("configs/st_moe_tiny.py", "data.cache", "gs://b"),
        ("configs/st_moe_tiny.py", "upcycle.workdir", "gs://b"),
        ("configs/st_moe_tiny.py", "data.source", "jsonl:https://b/x.jsonl"),
        ("configs/st_moe_tiny.py", "data.source", "text:gs://b"),
        ("configs/st_moe_tiny.py", "data.vocabulary", "sentencepiece:gs://b"),
    ],
)
def test_keys_that_hold_paths_are_looked_at_when_they_are_loaded(config, key, value):
    with pytest.raises(ConfigError, match=f"{key}.*an address"):
        load.from_flags(config, {key: value})


# ---------------------------------------------------------------- directories of others


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "t5"}', "pytorch_model.bin": "x"},
        {"config.json": "no JSON"},
        {"config.json": '{"family": "moe"}', "model.safetensors": "x"},
        {"metrics.jsonl": "of another program"},
        {"cat.png": "a picture", "dog.png": "another"},
        {"answers.json": "[]", "train.log": "of whoever started it"},
    ],
)
def test_a_directory_of_another_program_is_not_written(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match="no workdir of a run"):
        check_workdir(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    "files",
    [(), ("slurm.out", "train.log", ".gitkeep"), ("run.lock",), ("run.lock", "metrics.jsonl")],
)
def test_new_directories_and_runs_that_were_stopped_early_are_ours(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    check_workdir(tmp_path)


@pytest.mark.parametrize("name", [*workdir._FILES, *workdir._FOLDERS])
@pytest.mark.parametrize("hard", [False, True])
def test_no_name_that_a_run_writes_leads_elsewhere(tmp_path, name, hard):
    (tmp_path / "config.json").write_text('{"family": "moe"}')
    (folder := tmp_path / "letters").mkdir()
    (letter := folder / "letter.txt").write_text('{"family": "moe"}')
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if hard and name in workdir._FILES:
        path.hardlink_to(letter)
    else:
        path.symlink_to(folder if name in workdir._FOLDERS else letter)
    with pytest.raises(ConfigError, match="lies elsewhere"):
        check_workdir(tmp_path)
    assert letter.read_text() == '{"family": "moe"}'


def test_writers_follow_no_link(tmp_path):
    (folder := tmp_path / "letters").mkdir()
    (letter := tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "metrics.jsonl").symlink_to(letter)
    (tmp_path / "tensorboard").symlink_to(folder)
    with pytest.raises(ConfigError, match="a link"):
        JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match="a link"):
        TensorBoard(tmp_path / "tensorboard")
    assert (letter.read_text(), os.listdir(folder)) == ("dear", [])


def test_a_picture_follows_no_link_and_names_are_no_formulas(tmp_path):
    writers = Writers(tmp_path, tensorboard=False)
    writers.write(1, "train", {"loss": 1.0})
    writers.write(1, "$\\frac", {"$\\frac{": 1.0, "\x1b[2J": 2.0})
    writers.close()
    plots.curves(tmp_path)
    letter = tmp_path / "letter.txt"
    (tmp_path / "curves.png").rename(letter)
    before = letter.read_bytes()
    (tmp_path / "curves.png").symlink_to(letter)
    with pytest.raises(ConfigError, match="a link"):
        plots.curves(tmp_path)
    assert letter.read_bytes() == before


# ---------------------------------------------------------------- what is read back


LINES = {
    "nested": b'{"step": 1, "kind": "train", "loss": {"a": [1]}}',
    "absurd": b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    "deep": b"[" * 100_000,
    "negative": b'{"step": -1}',
    "truth": b'{"step": true}',
    "twice": b'{"step": 1, "step": 2}',
    "surrogate": b'{"step": 1, "note": "\\ud83d"}',
    "long": b'{"step": 1, "note": "' + b"x" * (3 << 20) + b'"}',
    "kind": b'{"step": 1, "kind": ["train"]}',
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_no_run_wrote_is_counted_and_passed_over(tmp_path, name, capsys):
    (tmp_path / "config.json").write_text('{"family": "moe", "name": "n", "steps": 9}')
    good = b'{"step": 2, "kind": "train", "loss": 1.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(LINES[name] + b"\n" + good)
    assert report.main([f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "loss 1.5" in out
    assert "1 lines of metrics were passed over" in out
    JsonLines(tmp_path / "metrics.jsonl", 5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_a_sparse_metrics_file_is_not_read(tmp_path):
    with open(tmp_path / "m.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="no more than"):
        list(read(tmp_path / "m.jsonl"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "list", "sparse", "pipe", "link"])
def test_a_summary_that_was_damaged_is_said_and_not_shown(tmp_path, damage, capsys):
    save_summary(tmp_path, "done", {"top-1": "75 %"}, {"step": 3})
    path = tmp_path / "summary.json"
    report_complete(tmp_path, 3, 3)
    assert capsys.readouterr().out.count("75 %") == 2
    text = path.read_text()
    made = {"cut": text[:30], "changed": text.replace("75", "95"), "empty": "", "list": "[]"}
    path.unlink()
    if damage == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_text(made[damage])
    report_complete(tmp_path, 3, 3)
    out, error = capsys.readouterr()
    assert "%" not in out
    assert "Complete: 3 steps" in out
    assert "not shown" in " ".join(error.split())


def test_a_report_steers_no_terminal_and_sees_that_a_holder_is_gone(tmp_path, capsys):
    import socket
    import subprocess
    import sys

    (tmp_path / "config.json").write_text('{"family": "moe", "name": "a\\u001b[2J", "steps": 9}')
    line = {"step": 1, "kind": "eval", "top\x1b[31m1": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    held = {"pid": ended.pid, "host": socket.gethostname()}
    (tmp_path / "run.lock").write_text(json.dumps(held))
    report.main([f"--workdir={tmp_path}"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"top\x1b[31m1 0.5" in out
    assert f"process {ended.pid} on {held['host']} held it and is gone" in " ".join(out.split())
    (tmp_path / "run.lock").write_text(json.dumps({"pid": os.getpid(), "host": held["host"]}))
    assert report.report(tmp_path)["holder"] == f"process {os.getpid()} on {held['host']}"
