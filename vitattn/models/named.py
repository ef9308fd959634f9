"""The networks of the papers by name: the `model` section of each shipped configuration.

A configuration in `configs/` writes out the same section, with the recipe that trains it; a test
keeps the two equal. Fields that are not given have the defaults of the dataclass of the model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from trainlib.config import flat, unknown
from trainlib.errors import one_of
from vitattn.models.fields import KIND

CALL = "create_model"  # named in errors about its arguments

_AUGMENTED = {"kind": "augmented", "kappa": 0.2, "upsilon": 0.1}
_IMAGENET = {"name": "resnet", "num_classes": 1000, "image_size": 224, "dtype": "bfloat16"}
_STANDALONE = _IMAGENET | {"bn_decay": 0.9999, "attention": {"kind": "local", "window": 7}}
_CIFAR100 = {"name": "wide_resnet", "depth": 28, "widening": 10, "dtype": "bfloat16"}
_MOBILE = {"name": "mnasnet", "num_classes": 1000, "image_size": 224, "dtype": "bfloat16"}

_COCO = {"name": "retinanet", "num_classes": 90, "image_size": 640, "dtype": "bfloat16"}
_COCO_AUGMENTED = _COCO | {"attention": _AUGMENTED | {"min_key_depth": 0}}

NAMED: dict[str, dict[str, Any]] = {
    # Attention-augmented convolution and its baselines, arXiv 1904.09925, tables 1 to 3.
    "aa_mnasnet": _MOBILE | {"attention": {"kind": "augmented"}},
    "aa_resnet34": _IMAGENET
    | {"depth": 34, "attention": _AUGMENTED | {"kappa": 0.25, "upsilon": 0.25}},
    "aa_resnet50": _IMAGENET | {"depth": 50, "attention": _AUGMENTED},
    "aa_resnet101": _IMAGENET | {"depth": 101, "attention": _AUGMENTED},
    "aa_resnet152": _IMAGENET | {"depth": 152, "attention": _AUGMENTED},
    "aa_wrn28_10": _CIFAR100 | {"attention": {"kind": "augmented"}},
    "mnasnet": _MOBILE,
    "resnet50": _IMAGENET | {"depth": 50},
    "wrn28_10": _CIFAR100,
    # Stand-alone self-attention, arXiv 1906.05909, table 1.
    "sasa_resnet26": _STANDALONE | {"depth": 26},
    "sasa_resnet38": _STANDALONE | {"depth": 38},
    "sasa_resnet50": _STANDALONE | {"depth": 50},
    # RetinaNet of both papers on COCO.
    "retinanet_aa_resnet50": _COCO_AUGMENTED | {"depth": 50},
    "retinanet_aa_resnet101": _COCO_AUGMENTED | {"depth": 101},
    "retinanet_resnet50": _COCO | {"depth": 50},
    "retinanet_resnet101": _COCO | {"depth": 101},
    "retinanet_sasa_resnet50": _COCO | {"depth": 50, "attention": {"kind": "local", "window": 7}},
    # A small network for 8x8 images of digits.
    "reproduce_small": {
        "name": "resnet",
        "depth": 26,
        "width": 0.25,
        "stem": "small_image",
        "image_size": 8,
        "num_classes": 10,
    },
    # A small network of three stages for the 28x28 images of Fashion-MNIST.
    "reproduce_fashion": {
        "name": "resnet",
        "depth": 18,
        "blocks": (2, 1, 1),
        "width": 0.375,
        "stem": "strided",
        "image_size": 28,
        "num_classes": 10,
    },
    # A small detector for photographs of 4:3.
    "reproduce_detection": {
        "name": "retinanet",
        "depth": 26,
        "blocks": (1, 1, 1, 1),
        "width": 0.25,
        "features": 64,
        "head_layers": 2,
        "max_level": 5,
        "anchor_scale": 2.0,
        "image_size": (192, 256),
        "num_classes": 3,
        "bn_decay": 0.9,
    },
}


def names(pattern: str = "") -> list[str]:
    """The names that contain `pattern`, in which `*` and `?` stand for other letters; sorted."""
    return sorted(name for name in NAMED if fnmatch.fnmatchcase(name, f"*{pattern}*"))


def section(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `model` section of a named network, with other values for some of its fields.

    Args:
      name: a key of `NAMED`.
      overrides: field -> value. A part of a network takes a mapping (`attention={"num_heads": 4}`),
        and dotted keys are read as well. A `kind` that differs takes away the fields of the kind
        before; None stands for no such part.

    Returns:
      What `vitattn.models.configure` takes; it checks fields and values.

    Raises:
      ConfigError: no such name, or a field that is given twice; the message names the nearest.
    """
    if name not in NAMED:
        raise one_of("name of a model", name, NAMED)
    values = flat(NAMED[name], "vitattn.models.named")
    given = {key: value for key, value in flat(overrides or {}, CALL).items() if value != {}}
    gone = [key for key, value in given.items() if value is None]
    for key, value in given.items():
        part, _, field = key.rpartition(".")
        if field == KIND and value != values.get(key):
            gone.append(part)
    dropped = tuple(f"{part}." for part in gone)
    return _nested({key: v for key, v in values.items() if not key.startswith(dropped)} | given)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"attention.kind": ..} -> {"attention": {"kind": ..}}."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, field = key.partition(".")
        inner = nested.setdefault(section, {}) if dot else nested
        if not isinstance(inner, dict):
            raise unknown(dict.fromkeys(nested), key, CALL)
        inner[field if dot else section] = value
    return nested
