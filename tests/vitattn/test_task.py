"""The table of tasks, and that the task which a configuration names is asked for what differs."""

import inspect
import types

import pytest

from trainlib.errors import ConfigError
from vitattn import config as config_lib
from vitattn import objective, plan, task
from vitattn.classification import task as classification


def test_an_unknown_task_is_named_with_those_that_there_are():
    config = config_lib.default_config()
    assert task.task_of(config) is classification
    config.task = "clasification"
    with pytest.raises(ConfigError, match=r"Did you mean 'classification'\?"):
        task.task_of(config)


def test_a_new_row_of_the_table_is_all_that_another_task_takes(monkeypatch):
    """Its loss, metrics and batches are those that training and compilation get."""
    other = types.SimpleNamespace(
        fields=lambda plan: ("image", "boxes"),
        make_loss=lambda plan: "loss",
        make_evaluate=lambda plan: "metrics",
        abstract_batch=lambda plan: {"boxes": plan},
    )
    monkeypatch.setitem(task.TASKS, "other", other)
    config = config_lib.default_config()
    config.task = "other"
    chosen = types.SimpleNamespace(config=config)
    assert objective.fields(chosen) == ("image", "boxes")
    assert objective.make_loss(chosen) == "loss"
    assert objective.make_evaluate(chosen) == "metrics"
    assert plan.abstract_batch(chosen) == {"boxes": chosen}


@pytest.mark.parametrize("name", task.TASKS)
def test_each_task_has_all_that_is_asked_of_one(name):
    """pyright compares the signatures; this holds where it is not run."""
    module = task.TASKS[name]
    for part, member in inspect.getmembers(task.Task):
        if not part.startswith("_"):
            assert hasattr(module, part), part
        if not part.startswith("_") and inspect.isfunction(member):
            wanted = [p for p in inspect.signature(member).parameters if p != "self"]
            assert list(inspect.signature(getattr(module, part)).parameters) == wanted
