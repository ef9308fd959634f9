"""What an evaluation says: names of metric files, phrases and rows; and the table of tasks."""

import pytest

from trainlib.errors import ConfigError
from vitattn import config as config_lib
from vitattn import task
from vitattn.classification.evaluation import MEASURED, Evaluation


def test_an_evaluation_is_flattened_to_the_names_of_metric_files():
    result = Evaluation(loss=0.25, top1=0.5, top5=0.75, examples=1234)
    assert list(result.flat().items()) == [
        ("loss", 0.25),
        ("top1", 0.5),
        ("top5", 0.75),
        ("examples", 1234),
    ]
    assert set(MEASURED) == set(result.flat()) - {"examples"}
    assert result.phrase() == "top-1 50.00 %, top-5 75.00 %, loss 0.2500 on 1,234 images"
    assert ("evaluated on", "1,234 images (test split)") in result.rows(config_lib.default_config())


def test_an_unknown_task_is_named():
    config = config_lib.default_config()
    assert task.task_of(config) is task.TASKS["classification"]
    config.task = "detecton"
    with pytest.raises(ConfigError, match="task"):
        task.task_of(config)
