"""Every configuration key of the mixture-of-experts family: its default and what it means, stated
once.

Keys of `model.`, `routing.` and `objective.` come from their dataclasses, those of `data.`,
`optimizer.` and `schedule.` from the module that reads them. `default_config` gives configuration
files a locked `ConfigDict` of a named size to fill in.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moe.models import size
from moe.models.architecture import Architecture
from moe.pretrain import Objective
from moe.routing_config import RoutingConfig
from trainlib import config as config_lib
from trainlib import optim, schedules
from trainlib.errors import ConfigError, one_of

# Dense matrices split over the rows of the mesh (fsdp) or whole on each row, as in the paper.
RULES = {"fsdp": "data", "replicated": None}
COLUMN_AXES = ("heads", "head", "mlp", "vocab", "table", "expert_mlp")
WHOLE_AXES = ("period", "layer", "norm", "buckets", "tokens", "expert_embed", "router")
STACKED_AXES = ("period", "layer", "expert")  # Adafactor treats each index as a weight of its own

GENERAL = {
    "name": ("", "name of the configuration, for reports"),
    "family": ("moe", "model family; picks the training loop"),
    "task": ("pretrain", "what the model learns: span corruption"),
    "seed": (0, "seed of weights, data order, noise and dropout"),
    "steps": (1000, "training steps, all runs in the workdir together"),
    "batch_size": (128, "rows in one step, over all devices"),
    "microbatches": (1, "pieces a batch is cut into to save memory; gradients are summed"),
    "max_skipped_steps": (10, "updates in a row that may be skipped as not finite; then exit 70"),
    "log_every": (1, "steps between lines in metrics.jsonl"),
    "eval_every": (0, "steps between evaluations; 0 = only at the end"),
    "eval_batch_size": (0, "rows in one evaluation step; 0 = batch_size"),
    "eval_batches": (0, "evaluation steps; 0 = the whole held-out split"),
    "checkpoint.every": (1000, "steps between checkpoints"),
    "checkpoint.keep": (3, "newest checkpoints that stay"),
    "checkpoint.best": ("", "evaluation metric whose best checkpoint stays as well; '' = none"),
    "mesh.replica": (1, "mesh axis of whole copies of the model"),
    "mesh.data": (-1, "mesh rows: batch, experts, and with fsdp weights; -1 = what is left"),
    "mesh.model": (1, "mesh columns: heads and feed-forward width"),
    "sharding": ("fsdp", "dense weights over the mesh rows: fsdp or replicated"),
    "upcycle.workdir": ("", "run of a dense model whose weights this one starts from; '' = none"),
    "upcycle.step": (0, "checkpoint of that run; 0 = the newest"),
    "published.params": ("", "parameters as the paper prints them"),
    "published.source": ("", "paper and table of the published figures"),
    "published.neg_log_perplexity": (0.0, "the paper's; its vocabulary and data, not comparable"),
}


def _field_schema(cls: type) -> dict[str, tuple[Any, str]]:
    """Field -> (default, meaning), the meaning from the `Attributes:` of the docstring."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^  (\w+): (.+?)(?=^  \w+: |\Z)", text, re.M | re.S)
    docs = {name: " ".join(doc.split()) for name, doc in entries}
    return {
        field.name: (field.default, docs[field.name])
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING and field.default is not None
    }


def schema(values: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, str]]:
    """All keys: dotted name -> (default, meaning); the same whatever `values` are."""
    del values
    from moe.data import data_defaults

    experts = {"num_experts": (0, "experts of a sparse block; 0 makes every block dense")}
    return {
        **GENERAL,
        **config_lib.prefixed("model", _field_schema(Architecture)),
        **config_lib.prefixed("routing", experts | _field_schema(RoutingConfig)),
        **config_lib.prefixed("objective", _field_schema(Objective)),
        **config_lib.prefixed("data", data_defaults()),
        **config_lib.prefixed("optimizer", optim.defaults()),
        **config_lib.prefixed("schedule", schedules.defaults()),
    }


def default_config(name: str) -> ConfigDict:
    """The locked defaults of a named size (`moe.models.sizes`), for a configuration file to fill
    in: pre-training as in ST-MoE, Adafactor at 1/sqrt(max(step, 10,000)).
    """
    config = config_lib.from_schema(schema())
    model, routing = size(name)
    config.model.update(model)
    config.routing.update(routing)
    config.name = name
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"
    config.schedule.learning_rate = 1.0
    return config


def sharding_rules(config: ConfigDict) -> dict[str, Any]:
    """Logical axis -> mesh axis for this configuration.

    `batch` is the residual stream and the input; `rows` the same arrays inside attention and
    feed-forward layers, where columns split heads and hidden units instead of sequences.
    """
    if config.sharding not in RULES:
        raise one_of("sharding", config.sharding, RULES)
    return {
        "batch": ("replica", "data", "model"),
        "rows": ("replica", "data"),
        "embed": RULES[config.sharding],
        "expert": "data",
        **dict.fromkeys(COLUMN_AXES, "model"),
        **dict.fromkeys(WHOLE_AXES),
    }


def check(config: ConfigDict, batch_parts: int) -> None:
    """Refuses what cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    values = config_lib.flatten(config)
    positive = ("steps", "batch_size", "microbatches", "checkpoint.every", "checkpoint.keep")
    for key in (*positive, "log_every"):
        if values[key] < 1:
            raise ConfigError(f"{key}={values[key]} must be at least 1.")
    for key in ("eval_every", "eval_batch_size", "eval_batches", "max_skipped_steps"):
        if values[key] < 0:
            raise ConfigError(f"{key}={values[key]} must not be negative.")
    pieces = batch_parts * config.microbatches
    for key, step in (("batch_size", pieces), ("eval_batch_size", batch_parts)):
        if values[key] % step:
            raise ConfigError(
                f"{key}={values[key]} does not divide over {batch_parts} devices"
                f"{f' x {config.microbatches} microbatches' if step != batch_parts else ''}: every "
                "device routes whole sequences of its own. Nearest: "
                f"{max(step, round(values[key] / step) * step)}."
            )
