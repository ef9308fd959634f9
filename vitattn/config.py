"""Every configuration key of the vision family: its default and what it means, stated once.

Keys of `model.` come from the dataclass of the model, those of `data.`, `optimizer.` and
`schedule.` from the module that reads them. `default_config` gives configuration files a locked
`ConfigDict` to fill in.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib import optim, schedules
from trainlib.errors import ConfigError, one_of

RULES = {
    "replicated": {"conv_in": None, "features": None},
    "fsdp": {"conv_in": "data", "features": "data"},
}
WHOLE_AXES = (
    *("height", "width", "unit", "image_channels", "conv_out", "channels", "classes"),
    *("offset", "head_depth", "mixtures"),
)

# All weights but batch normalisation decay, as in the public TPU ResNet.
DECAYED = r"^(?!.*norm)"

GENERAL = {
    "name": ("", "name of the configuration, for reports"),
    "family": ("vitattn", "model family; picks the training loop"),
    "task": ("classification", "what the model learns"),
    "seed": (0, "seed of weights, data order and augmentation"),
    "steps": (1000, "training steps, all runs in the workdir together"),
    "batch_size": (128, "images in one step, over all devices"),
    "microbatches": (1, "pieces a batch is cut into to save memory; gradients are summed"),
    "label_smoothing": (0.0, "probability mass spread evenly over all classes"),
    "ema_decay": (0.0, "decay of the moving average of weights that is evaluated; 0 = off"),
    "max_skipped_steps": (10, "updates in a row that may be skipped as not finite; then exit 70"),
    "log_every": (1, "steps between lines in metrics.jsonl"),
    "eval_every": (0, "steps between evaluations; 0 = only at the end"),
    "eval_batch_size": (0, "images in one evaluation step; 0 = batch_size"),
    "checkpoint.every": (1000, "steps between checkpoints"),
    "checkpoint.keep": (3, "newest checkpoints that stay"),
    "checkpoint.best": ("", "evaluation metric whose best checkpoint stays as well; '' = none"),
    "mesh.replica": (1, "mesh axis of whole copies of the model"),
    "mesh.data": (-1, "mesh axis that splits the batch (and weights with fsdp); -1 = what is left"),
    "sharding": ("replicated", "weights over the data axis: replicated or fsdp"),
    "published.top1": (0.0, "top-1 accuracy of the paper, percent"),
    "published.top5": (0.0, "top-5 accuracy of the paper, percent"),
    "published.params": ("", "parameters as the paper prints them"),
    "published.gflops": (0.0, "GFLOP of one forward pass as the paper prints them"),
    "published.source": ("", "paper and table of the published figures"),
}


def _attribute_docs(cls: type) -> dict[str, str]:
    """Reads the `Attributes:` section of a docstring: field -> meaning."""
    text = inspect.getdoc(cls) or ""
    section = text.partition("Attributes:")[2]
    entries = re.findall(r"^  (\w+): (.+?)(?=^  \w+: |\Z)", section, re.M | re.S)
    return {name: " ".join(doc.split()) for name, doc in entries}


def _field_schema(cls: type) -> dict[str, tuple[Any, str]]:
    docs, hints = _attribute_docs(cls), typing.get_type_hints(cls)
    return {
        field.name: (field.default, docs[field.name])
        for field in dataclasses.fields(cls)
        if not _choices(hints[field.name])
    }


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
        meaning = f"{_attribute_docs(cls)[field]} ({', '.join(('none', *kinds))})"
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


def check(config: ConfigDict, batch_parts: int) -> None:
    """Refuses what cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    positive = ("steps", "batch_size", "microbatches", "checkpoint.every", "checkpoint.keep")
    values = config_lib.flatten(config)
    for key in (*positive, "log_every"):
        if values[key] < 1:
            raise ConfigError(f"{key}={values[key]} must be at least 1.")
    for key in ("eval_every", "eval_batch_size", "max_skipped_steps"):
        if values[key] < 0:
            raise ConfigError(f"{key}={values[key]} must not be negative.")
    for key in ("label_smoothing", "ema_decay"):
        if not 0 <= values[key] < 1:
            raise ConfigError(f"{key}={values[key]} must be at least 0 and below 1.")
    pieces = batch_parts * config.microbatches
    for key in ("batch_size", "eval_batch_size"):
        size = values[key]
        step = pieces if key == "batch_size" else batch_parts
        if size % step:
            raise ConfigError(
                f"{key}={size} does not divide over {batch_parts} devices"
                f"{f' x {config.microbatches} microbatches' if step != batch_parts else ''}. "
                f"Nearest: {max(step, round(size / step) * step)}."
            )
