"""Every configuration key of the vision family: its default and what it means, stated once.

Keys of `model.` come from the dataclass of the model, those of `data.`, `optimizer.` and
`schedule.` from the module that reads them. `default_config` gives configuration files a locked
`ConfigDict` to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib import config as config_lib
from trainlib import extension, patterns
from trainlib.keys import choice, fit, key, number, text, whole
from trainlib.step import optimizers, schedules
from vitattn.task import TASKS, by_name

# Sharding of the weights -> mesh axis of each logical axis that it decides about.
RULES = {
    "replicated": {"conv_in": None, "features": None},
    "zero": {"conv_in": None, "features": None},
    "fsdp": {"conv_in": "data", "features": "data"},
}
WHOLE_AXES = (
    "height",
    "width",
    "unit",
    "image_channels",
    "conv_out",
    "channels",
    "classes",
    "anchors",
    "sides",
    "offset",
    "head_dim",
    "mixtures",
)

# All weights but those of batch normalisation decay, as in the public TPU ResNet.
DECAYED = r"^(?!.*norm)"

DEFAULT_TASK = "classification"

NEWEST = whole(1, also={0: "the newest"})

GENERAL = config_lib.COMMON | {
    # What is trained.
    "family": key("vitattn", "model family; picks the training loop", choice("vitattn")),
    # Where it starts.
    "init_from": key(
        "",
        "workdir, checkpoints folder or step whose weights a new run starts from; '' = none",
        text(),
    ),
    "init_from_step": key(0, "step of init_from; 0 = the newest", NEWEST),
    "init_new": key(
        (),
        "list of regular expressions of weights that are initialised anew although init_from has "
        "them",
        patterns.patterns(),
    ),
    # Where its arrays lie.
    "sharding": key(
        "replicated",
        "over the data axis: replicated, zero (slots of the optimiser split) or fsdp (weights too)",
        choice(*RULES),
    ),
    # What the paper prints.
    "published.top1": key(0.0, "top-1 accuracy of the paper, percent", number(0, 100)),
    "published.top5": key(0.0, "top-5 accuracy of the paper, percent", number(0, 100)),
    "published.ap": key(0.0, "COCO AP of the paper, percent", number(0, 100)),
    "published.ap50": key(0.0, "AP at an IoU of 0.5, percent", number(0, 100)),
    "published.ap75": key(0.0, "AP at an IoU of 0.75, percent", number(0, 100)),
    "published.params": key("", "parameters as the paper prints them", text(0, 200)),
    "published.gflops": key(0.0, "GFLOP of one forward pass as the paper prints them", number(0)),
    "published.source": key("", "paper and table of the published figures", text(0, 200)),
}


def model_schema(values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The keys below `model.`, for the model and the kinds of layer that `values` ask for."""
    from vitattn.models import MODELS
    from vitattn.models.fields import choices, preset

    named = choice(*sorted(MODELS))
    name = fit("model.name", values.get("model.name", "resnet"), named)
    cls = MODELS[name][0]
    schema = {"name": key(name, f"model: {', '.join(sorted(MODELS))}", named)}
    nested = choices(cls)
    schema |= config_lib.dataclass_schema(cls, leave_out=nested)
    for field, kinds in nested.items():
        known = extension.named("none", *kinds)
        kind = fit(f"model.{field}.kind", values.get(f"model.{field}.kind", "none"), known)
        meaning = f"{config_lib.attribute_docs(cls)[field]} ({', '.join(('none', *kinds))})"
        schema[f"{field}.kind"] = key(kind, meaning, known)
        if kind != "none":
            chosen = preset(kinds, kind, f"model.{field}.kind")
            fields = config_lib.dataclass_schema(type(chosen), preset=chosen)
            schema |= config_lib.prefixed(field, fields)
    return schema


def schema(values: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, str]]:
    """All keys: dotted name -> (default, meaning), with what each takes.

    Args:
      values: dotted values known so far; `task`, `model.name` and `model.*.kind` decide which keys
        exist.
    """
    values = values or {}
    known = extension.named(*TASKS)
    task = fit("task", values.get("task", DEFAULT_TASK), known)
    return {
        **GENERAL,
        "task": key(task, "what the model learns", known),
        **by_name(task).settings(),
        **config_lib.prefixed("model", model_schema(values)),
        **config_lib.prefixed("optimizer", optimizers.defaults()),
        **config_lib.prefixed("schedule", schedules.defaults()),
    }


def default_config(model: str = "resnet", task: str = DEFAULT_TASK, **kinds: str) -> ConfigDict:
    """The locked defaults of a model, for a configuration file to fill in.

    Args:
      model: a name of `vitattn.models.MODELS`.
      task: a name of `vitattn.task.TASKS`.
      **kinds: which dataclass a nested field takes, for example `attention="augmented"`, or
        `attention="my_layers:AxialConfig"` of a module of one's own.
    """
    values = {f"model.{field}.kind": kind for field, kind in kinds.items()}
    config = config_lib.from_schema(schema({"task": task, "model.name": model, **values}))
    config.optimizer.decay_pattern = DECAYED
    return config


def sharding_rules(config: ConfigDict) -> dict[str, Any]:
    """Logical axis -> mesh axis for this configuration."""
    fit("sharding", config.sharding, choice(*RULES))
    rules = {"batch": ("replica", "data"), **dict.fromkeys(WHOLE_AXES)}
    return rules | RULES[config.sharding]


def slot_rules(config: ConfigDict) -> dict[str, Any]:
    """The same for the slots of the optimiser: `zero` splits them though not the weights."""
    return sharding_rules(config) | (RULES["fsdp"] if config.sharding == "zero" else {})


def check(config: ConfigDict, batch_parts: int) -> None:
    """Refuses what cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    config_lib.check_values(config, schema(config_lib.flatten(config)))
    config_lib.check_common(config, batch_parts)
    by_name(config.task).check(config)
