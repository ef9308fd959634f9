"""The trackers that the documentation shows, with stand-ins for the libraries that they call."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from trainlib.run.trackers.feed import Trackers
from trainlib.run.trackers.tracker import classes

EXAMPLES = Path(__file__).resolve().parents[4] / "docs" / "trackers"
CONFIG = {"name": "small", "steps": 3, "model.blocks": [1, 1]}


@pytest.fixture
def calls(monkeypatch):
    """Calls of `wandb` and `mlflow`, which do nothing but note them."""
    noted = []

    def noting(name, result=None):
        def call(*args, **kwargs):
            noted.append((name, args, kwargs))
            return result

        return call

    run = SimpleNamespace(info=SimpleNamespace(run_id="run-7"))
    for name in ("define_metric", "log", "finish"):
        setattr(run, name, noting(name))
    run.summary = SimpleNamespace(update=noting("summary"))
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    vars(wandb).update(init=noting("init", run))
    names = ("set_experiment", "log_dict", "log_metrics", "end_run")
    vars(mlflow).update({name: noting(name) for name in names}, start_run=noting("start_run", run))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(EXAMPLES)
    return noted


def trained(name, workdir, start=0):
    """What a run of three steps, or the end of one, does with its tracker."""
    said = []
    trackers = Trackers(classes(name), workdir, CONFIG, said.append)
    for step in range(start + 1, 4):
        trackers.write(step, "train", {"loss": 1 / step})
    trackers.summary({"top1": 0.5})
    trackers.close()
    assert not said


def test_wandb_gets_one_run_for_each_workdir(calls, tmp_path):
    trained("wandb_tracker:WandB", tmp_path)
    trained("wandb_tracker:WandB", tmp_path, start=1)
    assert [name for name, *_ in calls] == [
        *("init", "define_metric", "log", "log", "log", "summary", "finish"),
        *("init", "define_metric", "log", "log", "summary", "finish"),
    ]
    first, second = [kwargs for name, _, kwargs in calls if name == "init"]
    assert first == second
    assert first["config"] == CONFIG
    assert first["resume"] == "allow"
    assert re.fullmatch("[0-9a-f]{16}", first["id"])
    logged = [args[0] for name, args, _ in calls if name == "log"]
    assert logged[1] == {"train/loss": 0.5, "step": 2}
    assert [args[0] for name, args, _ in calls if name == "summary"] == [{"top1": 0.5}] * 2
    trained("wandb_tracker:WandB", tmp_path / "other")
    assert [kwargs for name, _, kwargs in calls if name == "init"][-1]["id"] != first["id"]


def test_mlflow_goes_on_with_the_run_of_the_workdir(calls, tmp_path):
    trained("mlflow_tracker:MLflow", tmp_path)
    trained("mlflow_tracker:MLflow", tmp_path, start=2)
    first, second = [kwargs for name, _, kwargs in calls if name == "start_run"]
    assert (first["run_id"], second["run_id"]) == (None, "run-7")
    logged = [(args[0], kwargs) for name, args, kwargs in calls if name == "log_metrics"]
    assert logged[:2] == [({"train/loss": 1.0}, {"step": 1}), ({"train/loss": 0.5}, {"step": 2})]
    assert [name for name, *_ in calls].count("end_run") == 2
