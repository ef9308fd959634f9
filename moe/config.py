"""Every configuration key of the mixture-of-experts family: its default and what it means, stated
once.

Keys of `model.`, `routing.` and `objective.` come from their dataclasses, those of `data.`,
`optimizer.` and `schedule.` from the module that reads them. `default_config` gives configuration
files a locked `ConfigDict` of a named size to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moe import models
from moe.decoding.model import Decoding
from moe.decoding.waiting import Batching
from moe.models.architecture import Architecture
from moe.objective import Objective
from moe.observatory.options import RouterOptions
from moe.routing.config import RoutingConfig
from moe.start import tuned
from trainlib import config as config_lib
from trainlib.keys import choice, fit, key, number, text, whole
from trainlib.step import optimizers, schedules

# Sharding of dense matrices -> mesh axis that their embedding dimension is split over; as in the
# paper they are split over the data axis, or whole on each of its devices.
RULES = {"fsdp": "data", "zero": None, "replicated": None}
MODEL_AXES = ("heads", "head", "mlp", "vocab", "table", "expert_mlp")  # split over the model axis
WHOLE_AXES = ("period", "layer", "norm", "buckets", "tokens", "expert_embed", "router", "lora")
STACKED_AXES = ("period", "layer", "expert")  # Adafactor treats each index as a weight of its own

NEWEST, REST = whole(1, also={0: "the newest"}), whole(1, also={-1: "the rest"})

GENERAL = config_lib.COMMON | {
    # What is trained.
    "family": key("moe", "model family; picks the training loop", choice("moe")),
    "task": key(
        "pretrain",
        "what the run learns: pretrain, or finetune, which scores the tasks of data.source too",
        choice("pretrain", "finetune"),
    ),
    "sweep": key(
        "",
        "a number: train that setting of the paper's table 20; grid: print all settings",
        text(0, 20),
    ),
    # Where it starts.
    "init_from": key(
        "",
        "workdir, checkpoints folder or step whose weights a new run starts from; '' = none",
        text(),
    ),
    "init_from_step": key(0, "step of init_from; 0 = the newest", NEWEST),
    "upcycle.workdir": key(
        "",
        "workdir, checkpoints folder or step of a dense run whose feed-forward layers become the "
        "experts of this model; '' = none",
        text(),
    ),
    "upcycle.step": key(0, "step of upcycle.workdir; 0 = the newest", NEWEST),
    # How it is evaluated.
    "eval_batches": key(
        0,
        "evaluation steps on each part of the data; 0 = the whole held-out split",
        whole(1, also={0: "the whole split"}),
    ),
    "evaluation.split": key(
        "validation",
        "split on which tasks are scored: train, validation or test",
        choice("train", "validation", "test"),
    ),
    "evaluation.limit": key(
        0,
        "examples of each task, from the first, that are scored while training; 0 = all",
        whole(1, also={0: "all"}),
    ),
    "evaluation.metrics": key(
        "",
        "of pairs: metrics with commas between, METRIC or TASK=METRIC, the first the main one: "
        "accuracy, exact_match, f1, macro_f1, matthews, rouge, bleu, or MODULE:FUNCTION of your "
        "own; '' = accuracy of rows with choices, exact_match and f1 of others",
        text(),
    ),
    "evaluation.classify": key(
        "generate",
        "how a task with given candidates is answered: generate the words, as T5 does, or rank the "
        "candidates, which is faster",
        choice("generate", "rank"),
    ),
    # Where its arrays lie.
    "mesh.model": key(
        1, "mesh axis over which heads and feed-forward width are split; -1 = the rest", REST
    ),
    "sharding": key(
        "fsdp",
        "over the data axis: fsdp (dense weights split), zero (only their slots) or replicated",
        choice(*RULES),
    ),
    # What the paper prints.
    "published.params": key("", "parameters as the paper prints them", text(0, 200)),
    "published.source": key("", "paper and table of the published figures", text(0, 200)),
    "published.score": key(0.0, "score of the tasks in the paper, percent", number(0, 100)),
    "published.neg_log_perplexity": key(
        0.0,
        "negative log perplexity in the paper; its vocabulary and data are others, so that it "
        "cannot be compared",
        number(),
    ),
}


def schema(values: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, str]]:
    """All keys: dotted name -> (default, meaning), with what each takes.

    Args:
      values: dotted values known so far, for families in which they decide what keys exist. Here
        every model has the same keys.
    """
    from moe.data import data_defaults

    experts = {
        "num_experts": key(
            0,
            "experts of a sparse block; 0 makes every block dense",
            whole(1, 2**20, also={0: "dense blocks"}),
        )
    }
    return {
        **GENERAL,
        **config_lib.prefixed("model", config_lib.dataclass_schema(Architecture)),
        **config_lib.prefixed("routing", experts | config_lib.dataclass_schema(RoutingConfig)),
        **config_lib.prefixed("router", config_lib.dataclass_schema(RouterOptions)),
        **config_lib.prefixed("objective", config_lib.dataclass_schema(Objective)),
        **config_lib.prefixed("data", data_defaults()),
        **config_lib.prefixed("finetune", tuned.defaults()),
        **config_lib.prefixed("decoding", config_lib.dataclass_schema(Decoding)),
        **config_lib.prefixed("batching", config_lib.dataclass_schema(Batching)),
        **config_lib.prefixed("optimizer", optimizers.defaults()),
        **config_lib.prefixed("schedule", schedules.defaults()),
    }


def default_config(size: str = "") -> ConfigDict:
    """The locked defaults, for a configuration file to fill in.

    They are those of pre-training in ST-MoE: Adafactor at 1 / sqrt(max(step, 10,000)).

    Args:
      size: a name of `moe.models.sizes`, whose values are filled in; "" leaves the defaults of
        `Architecture` and `RoutingConfig`.
    """
    config = config_lib.from_schema(schema())
    if size:
        model, routing = models.size(size)
        config.model.update(model)
        config.routing.update(routing)
        config.name = size
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"
    config.schedule.learning_rate = 1.0
    return config


def sharding_rules(config: ConfigDict) -> dict[str, Any]:
    """Logical axis -> mesh axis for this configuration.

    `batch` is the residual stream and the input; `layer_batch` the same arrays inside attention and
    feed-forward layers, where the model axis splits heads and hidden units instead of sequences.
    """
    fit("sharding", config.sharding, choice(*RULES))
    return {
        "batch": ("replica", "data", "model"),
        "layer_batch": ("replica", "data"),
        "embed": RULES[config.sharding],
        "expert": "data",
        **dict.fromkeys(MODEL_AXES, "model"),
        **dict.fromkeys(WHOLE_AXES),
    }


def slot_rules(config: ConfigDict) -> dict[str, Any]:
    """The same for the slots of the optimiser: `zero` splits them though not the weights."""
    return sharding_rules(config) | ({"embed": "data"} if config.sharding == "zero" else {})


def check(config: ConfigDict, batch_parts: int) -> None:
    """Refuses what cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    config_lib.check_values(config, schema())
    config_lib.check_common(config, batch_parts)
