"""The configuration keys that a run of detection has beside those of all runs.

Defaults are those of RetinaNet in the public TPU code, which both attention papers build on; the
other published readings are named beside each key. Losses: Lin et al. 2017 (arXiv 1708.02002).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib.errors import ConfigError
from trainlib.keys import choice, key, number, pair, text, whole
from vitattn.data.options import READING
from vitattn.detection.data import catalog

AUGMENTATIONS = ("jitter", "none")
MODELS = ("retinanet",)
MOST_BOXES = 10_000  # of an image in a batch

DETECTION = {
    "alpha": key(
        0.25, "weight of positives in the focal loss; negatives have 1 - alpha", number(0, 1)
    ),
    "gamma": key(1.5, "focusing exponent; 2.0 in the focal-loss paper", number(0, 100)),
    "box_weight": key(50.0, "weight of the loss of boxes", number(0)),
    "huber_delta": key(0.1, "where the loss of boxes turns linear", number(above=0)),
    "foreground_iou": key(
        0.5, "anchors that overlap a box as much are its positives", number(0, 1)
    ),
    "background_iou": key(
        0.5,
        "anchors below it are negatives, those between learn no class; 0.4 in the focal-loss paper "
        "and torchvision",
        number(0, 1),
    ),
    "score_threshold": key(0.05, "detections below it are left out", number(0, 1)),
    "candidates": key(1000, "likeliest boxes of a level that are looked at", whole(1, 100_000)),
    "nms_iou": key(
        0.5, "boxes of a class that overlap a likelier one more are left out", number(0, 1)
    ),
    "max_detections": key(100, "boxes an image at most; 300 in torchvision", whole(1, 10_000)),
}


def data_settings() -> dict[str, tuple[Any, str]]:
    """Returns the keys of the section `data`: key -> (default, meaning)."""
    share = number(0, 1)
    return {
        "source": key("coco", f"data set: {catalog.usage()}", text(1)),
        "dir": key(
            "",
            "directory of the data set; of coco it holds annotations/, train2017/ and val2017/",
            text(),
        ),
        "images": key("", "folder of the images of a json file; empty: beside it", text()),
        "eval_json": key(
            "",
            "COCO json that evaluation reads, beside the one of coco:FILE; empty: holdout",
            text(),
        ),
        "eval_images": key("", "folder of the images of eval_json; empty: as for training", text()),
        "holdout": key(
            0.0,
            "fraction of the training set kept out of it, as the split `holdout`; of a data set "
            "without an evaluation split, also its split `test`",
            number(0, below=1),
        ),
        "augment": key(
            "jitter",
            "training augmentation: jitter (random scale, crop and flips) or none",
            choice(*AUGMENTATIONS),
        ),
        "jitter": key(
            (0.8, 1.2),
            "smallest and largest scale of jitter, over that at which the image fits",
            pair(number(0.05, 20)),
        ),
        "flip": key(0.5, "probability that an image is mirrored left to right", share),
        "flip_vertical": key(0.0, "probability that an image is mirrored top to bottom", share),
        "max_boxes": key(100, "boxes of an image that training looks at", whole(1, MOST_BOXES)),
        **READING,
    }


def settings() -> dict[str, tuple[Any, str]]:
    """Returns dotted name -> (default, one-line meaning)."""
    return {
        **config_lib.prefixed("detection", DETECTION),
        **config_lib.prefixed("data", data_settings()),
    }


def check(config: ConfigDict) -> None:
    """Refuses a model or settings that detection cannot use.

    Raises:
      ConfigError: names the key, its value and what is allowed.
    """
    if config.model.name not in MODELS:
        raise ConfigError(
            f"task='detection' and model.name='{config.model.name}' do not go together: that model "
            f"finds no boxes. Set --config.model.name={MODELS[0]}, or --config.task=classification."
        )
    section = config.detection
    if section.background_iou > section.foreground_iou:
        raise ConfigError(
            f"detection.background_iou={section.background_iou:g} is above "
            f"detection.foreground_iou={section.foreground_iou:g}: an anchor would be of both. Use "
            f"--config.detection.background_iou={section.foreground_iou:g} or less."
        )
    least, most = config.data.jitter
    if least > most:
        raise ConfigError(
            f"data.jitter={least:g},{most:g}: the smallest scale comes first. Use "
            f"--config.data.jitter={most:g},{least:g}."
        )
