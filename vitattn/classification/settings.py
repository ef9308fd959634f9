"""The configuration keys that a run of classification has beside those of all runs."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib.errors import ConfigError
from trainlib.keys import key, number
from vitattn.augmentation import settings as augmentation
from vitattn.data import data_defaults


def settings() -> dict[str, tuple[Any, str]]:
    """Returns dotted name -> (default, one-line meaning)."""
    return {
        "label_smoothing": key(
            0.0, "probability mass spread evenly over all classes", number(0, below=1)
        ),
        **config_lib.prefixed("data", data_defaults()),
    }


def check(config: ConfigDict) -> None:
    """Refuses a model that gives no logits of classes, and batches that cannot be made.

    Raises:
      ConfigError: it is a detector, or batch_size does not suit the augmentation.
    """
    if config.model.name == "retinanet":
        raise ConfigError(
            "task='classification' and model.name='retinanet' do not go together: a RetinaNet "
            "finds boxes. Set --config.task=detection, or a model of another name."
        )
    augmentation.check(config.data, config.batch_size)
