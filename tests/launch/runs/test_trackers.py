"""`--config.writers.extra` as a user types it."""

import json

import pytest

import vitattn
from configs.common import load
from launch import train
from tests.launch.commands import TINY, environment, losses, run
from trainlib.errors import CheckpointError, ConfigError

TRACKER = """
import pathlib

class Notes:
    def __init__(self, workdir, config):
        self.file = open(workdir / "notes.txt", "a", buffering=1)
        print("made", workdir.name, config["steps"], file=self.file)
    def write(self, step, metrics):
        if step == 2:
            raise ConnectionError("the server is down")
        print(step, *sorted(metrics), file=self.file)
    def close(self):
        print("closed", file=self.file)
"""


@pytest.mark.slow
def test_a_run_trains_on_while_its_tracker_fails_and_resumes_with_the_same(tmp_path):
    (tmp_path / "notes_tracker.py").write_text(TRACKER)
    cache, workdir = tmp_path / "cache", tmp_path / "run"
    flags = [*TINY, "--config.writers.extra=notes_tracker:Notes", f"--workdir={workdir}"]
    path = {"PYTHONPATH": str(tmp_path)}
    first = run("train", *flags, "--config.steps=3", cache=cache, **path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("the server is down") == 1
    assert "notes_tracker:Notes: 4 records, 1 lost (write: ConnectionError" in first.stdout
    second = run("train", *flags, "--config.steps=5", cache=cache, **path)
    assert second.returncode == 0, second.stderr
    assert [step for step, _ in losses(workdir)] == [1, 2, 3, 4, 5]
    lines = (workdir / "notes.txt").read_text().splitlines()
    starts = [line.split()[0] for line in lines]
    assert starts == ["made", "1", "3", "3", "3", "closed", "made", "4", "5", "5", "5", "closed"]
    assert lines[0] == "made run 3"
    assert "train/loss" in lines[1].split()
    assert "eval/top1" in lines[3].split()


def test_a_tracker_that_cannot_start_stops_the_run_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "no_key.py").write_text(TRACKER.replace("self.file =", "raise OSError('no key')"))
    monkeypatch.syspath_prepend(tmp_path)
    for key, value in environment(tmp_path / "cache").items():
        monkeypatch.setenv(key, value)
    wrong = f"--workdir={tmp_path / 'run'}", "--config.writers.extra=no_kei:Notes"
    with pytest.raises(ConfigError, match="there is no module 'no_kei'"):
        train.main([*TINY, *wrong])
    assert not (tmp_path / "run").exists()


def test_a_configuration_in_json_has_to_be_trusted(tmp_path):
    """config.json may come from anybody; a command line does not."""
    path = tmp_path / "config.json"
    values = {"family": "vitattn", "data.source": "digits", "writers.extra": "os:PathLike"}
    path.write_text(json.dumps(values))
    flags = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="names code, 'os:PathLike', and a file of values may not"):
        train.main(flags)
    assert not (tmp_path / "run").exists()


def test_what_only_reads_a_run_does_not_ask_for_its_tracker(tmp_path):
    """Evaluation, export and prediction need none, so nobody has to trust it for them."""
    values = {"family": "vitattn", "data.source": "digits", "writers.extra": "os:PathLike"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load.of_workdir(tmp_path, {}).writers.extra == ""
    with pytest.raises(CheckpointError):  # it has gone past the configuration
        vitattn.load(tmp_path)
