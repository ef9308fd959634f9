"""Every key of the `data` section of a vision configuration: default, meaning, allowed values."""

from __future__ import annotations

from typing import Any

from trainlib.keys import choice, key, many, number, text, whole
from vitattn.augmentation import settings as augmentation
from vitattn.data import catalog
from vitattn.images.augment import AUGMENTATIONS

# What reading takes whatever the records are: of the sections `data` of all tasks.
READING: dict[str, tuple[Any, str]] = {
    "eval_split": key(
        "test",
        "what evaluation reads: test (the official split), holdout or train",
        choice("test", "holdout", "train"),
    ),
    "mean": key(
        (),
        "mean of red, green, blue in 0..1 to subtract; () is the data set's own",
        many(number(0, 1), 0, 3),
    ),
    "std": key(
        (),
        "standard deviation of red, green, blue to divide by; () is the data set's own",
        many(number(1e-6, 1e6), 0, 3),
    ),
    "workers": key(
        -1,
        "processes that read and decode; 0 none, -1 one for each CPU core",
        whole(0, 1024, also={-1: "one for each CPU core"}),
    ),
    "prefetch": key(2, "batches made ahead of their use", whole(1, 10_000)),
    "max_bad_fraction": key(
        0.001,
        "the run stops when more of the records than this are unreadable (a few are let through)",
        number(0, 1),
    ),
}


def data_defaults() -> dict[str, tuple[Any, str]]:
    """Returns key -> (default, one-line meaning), with the values that each takes; the defaults are
    those of ImageNet training.
    """
    return {
        "source": key("imagenet", f"data set: {catalog.usage()}", text(1)),
        "dir": key(
            "",
            "directory of the prepared data set; empty is TFDS's own ~/tensorflow_datasets, "
            "for fashion_mnist where Debian's package puts it",
            text(),
        ),
        "augment": key(
            "inception",
            f"training augmentation: {', '.join(AUGMENTATIONS)}; inception_crop keeps the colours",
            choice(*AUGMENTATIONS),
        ),
        "holdout": key(
            0.0,
            "fraction of the training set kept out of it, as the split `holdout`; of a folder "
            "without val, also its split `test`",
            number(0, below=1),
        ),
        "eval_crop": key(
            0.875,
            "part of the shorter side that evaluation sees; 1.0 is all of it",
            number(above=0, high=1),
        ),
        **augmentation.KEYS,
        **READING,
    }
