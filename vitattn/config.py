"""Every configuration key of the vision family: its default and what it means, stated once.

Keys of `model.` come from the dataclass of the model, those of `data.`, `optimizer.` and
`schedule.` from the module that reads them. `default_config` gives configuration files a locked
`ConfigDict` to fill in.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib import optim, schedules
from trainlib.errors import ConfigError, one_of

RULES = {
    "replicated": {"conv_in": None, "features": None},
    "zero": {"conv_in": None, "features": None},
    "fsdp": {"conv_in": "data", "features": "data"},
}
WHOLE_AXES = (
    *("height", "width", "unit", "image_channels", "conv_out", "channels", "classes"),
    *("offset", "head_depth", "mixtures"),
)

# All weights but batch normalisation decay, as in the public TPU ResNet.
DECAYED = r"^(?!.*norm)"

GENERAL = config_lib.COMMON | {
    "family": ("vitattn", "model family; picks the training loop"),
    "task": ("classification", "what the model learns"),
    "label_smoothing": (0.0, "probability mass spread evenly over all classes"),
    "ema_decay": (0.0, "decay of the moving average of weights that is evaluated; 0 = off"),
    "init_from": ("", "workdir or checkpoint whose weights a new run starts from; '' = none"),
    "init_from_step": (0, "step of init_from; 0 = the newest"),
    "init_new": ((), "list of regexes of weights that start anew whatever init_from holds"),
    "sharding": (
        "replicated",
        "over the data axis: replicated, zero (slots split) or fsdp (weights too)",
    ),
    "published.top1": (0.0, "top-1 accuracy of the paper, percent"),
    "published.top5": (0.0, "top-5 accuracy of the paper, percent"),
    "published.params": ("", "parameters as the paper prints them"),
    "published.gflops": (0.0, "GFLOP of one forward pass as the paper prints them"),
    "published.source": ("", "paper and table of the published figures"),
}


def _field_schema(cls: type) -> dict[str, tuple[Any, str]]:
    hints = typing.get_type_hints(cls)
    nested = {name for name, hint in hints.items() if _choices(hint)}
    return config_lib.dataclass_schema(cls, leave_out=nested)


def _choices(hint: Any) -> dict[str, type]:
    """Kind -> dataclass, for a field that chooses among dataclasses."""
    return {arg.kind: arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)}


def model_schema(values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The keys below `model.`, for the model and the kinds of layer that `values` ask for."""
    from vitattn.models import MODELS

    name = values.get("model.name", "resnet")
    if name not in MODELS:
        raise one_of("model.name", name, MODELS)
    cls = MODELS[name][0]
    schema = {"name": (name, f"model: {', '.join(sorted(MODELS))}"), **_field_schema(cls)}
    for field, hint in typing.get_type_hints(cls).items():
        kinds = _choices(hint)
        if not kinds:
            continue
        kind = values.get(f"model.{field}.kind", "none")
        if kind not in ("none", *kinds):
            raise one_of(f"model.{field}.kind", kind, ("none", *kinds))
        meaning = f"{config_lib.attribute_docs(cls)[field]} ({', '.join(('none', *kinds))})"
        schema[f"{field}.kind"] = (kind, meaning)
        if kind != "none":
            schema |= config_lib.prefixed(field, _field_schema(kinds[kind]))
    return schema


def schema(values: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, str]]:
    """All keys: dotted name -> (default, meaning).

    Args:
      values: dotted values known so far; `model.name` and `model.*.kind` decide which model keys
        exist.
    """
    from vitattn.data import data_defaults

    return {
        **GENERAL,
        **config_lib.prefixed("model", model_schema(values or {})),
        **config_lib.prefixed("data", data_defaults()),
        **config_lib.prefixed("optimizer", optim.defaults()),
        **config_lib.prefixed("schedule", schedules.defaults()),
    }


def default_config(model: str = "resnet", **kinds: str) -> ConfigDict:
    """The locked defaults of a model, for a configuration file to fill in.

    Args:
      model: a name of `vitattn.models.MODELS`.
      **kinds: which dataclass a nested field takes, for example `attention="augmented"`.
    """
    values = {f"model.{field}.kind": kind for field, kind in kinds.items()}
    config = config_lib.from_schema(schema({"model.name": model, **values}))
    config.optimizer.decay_pattern = DECAYED
    return config


def sharding_rules(config: ConfigDict) -> dict[str, Any]:
    """Logical axis -> mesh axis for this configuration."""
    if config.sharding not in RULES:
        raise one_of("sharding", config.sharding, RULES)
    rules = {"batch": ("replica", "data"), **dict.fromkeys(WHOLE_AXES)}
    return rules | RULES[config.sharding]


def slot_rules(config: ConfigDict) -> dict[str, Any]:
    """The same for the slots of the optimiser."""
    return sharding_rules(config) | (RULES["fsdp"] if config.sharding == "zero" else {})


def check(config: ConfigDict, batch_parts: int) -> None:
    """Refuses what cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    config_lib.check_common(config, batch_parts)
    for key in ("label_smoothing", "ema_decay"):
        if not 0 <= config[key] < 1:
            raise ConfigError(f"{key}={config[key]} must be at least 0 and below 1.")
