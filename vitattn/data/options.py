"""Every key of the `data` part of a vision configuration, with its default and its meaning."""

from __future__ import annotations

from typing import Any


def data_defaults() -> dict[str, tuple[Any, str]]:
    """Returns {key: (default, one-line meaning)}; the defaults are those of ImageNet training."""
    return {
        "source": (
            "imagenet",
            "data set: imagenet, folder:PATH, cifar100, digits, synthetic or synthetic:CLASSES",
        ),
        "dir": (
            "",
            "directory of the prepared data set; empty is TFDS's own ~/tensorflow_datasets",
        ),
        "augment": (
            "inception",
            "training augmentation: inception, inception_crop (no colour), flip_crop, shift, none",
        ),
        "holdout": (0.0, "fraction of the training set kept out of it, as the split `holdout`"),
        "eval_split": ("test", "what evaluation reads: test (the official split) or holdout"),
        "eval_crop": (0.875, "part of the shorter side that evaluation sees; 1.0 is all of it"),
        "mean": ((), "mean of red, green, blue in 0..1 to subtract; () is the data set's own"),
        "std": (
            (),
            "standard deviation of red, green, blue to divide by; () is the data set's own",
        ),
        "workers": (-1, "processes that read and decode; 0 none, -1 one for each CPU core"),
        "prefetch": (2, "batches made ahead of their use"),
        "max_bad_fraction": (
            0.001,
            "the run stops when more of the records than this are unreadable (a few are let "
            "through)",
        ),
    }
