"""The model of a fine-tuning run: how frozen experts are stored, where adapters stand, what learns.

Everything here follows from the section `finetune` of a configuration; see `moe.models.tuned`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

from ml_collections import ConfigDict

from moe.kernels.int8 import MATRICES
from moe.layers.product import A, B
from moe.models import architecture
from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.models.tuned import FROZEN_DTYPES, Tuned, adaptable
from moe.start import subsets
from trainlib import patterns
from trainlib.errors import ConfigError
from trainlib.keys import choice, key, number, whole
from trainlib.model import weights
from trainlib.step.optimizers import matching

MOST_RANK = 2**16


def defaults() -> dict[str, tuple[Any, str]]:
    """Keys of the section `finetune`: default and meaning."""
    return {
        **subsets.defaults(),
        "frozen_dtype": key(
            "float32",
            "type in which experts that do not learn are kept: float32, bfloat16 or int8, with a "
            "float32 scale for each output channel of each expert",
            choice(*FROZEN_DTYPES),
        ),
        "lora.rank": key(
            0,
            "R of adapters (LoRA) that learn in place of the weights; 0: no adapters",
            whole(1, MOST_RANK, also={0: "no adapters"}),
        ),
        "lora.alpha": key(
            16.0, "an adapter's product is multiplied by alpha / rank", number(above=0)
        ),
        "lora.patterns": key(
            (),
            "list of regexes of the matrices that get an adapter, of attention and dense "
            "feed-forward layers; none: all of these",
            patterns.patterns(),
        ),
        "lora.also": key(
            (), "list of regexes of weights that learn beside the adapters", patterns.patterns()
        ),
    }


def tuned(config: ConfigDict) -> Architecture:
    """The model of a configuration, stored as its section `finetune` says.

    Raises:
      ConfigError: keys that cannot work together, or a pattern without a matrix.
    """
    model, options = architecture(config.model, config.routing), config.finetune
    if options.frozen_dtype != "float32" and model.routing is None:
        raise ConfigError(
            f"finetune.frozen_dtype={options.frozen_dtype!r} is for the matrices of experts, and "
            "the model has none (routing.num_experts=0). Leave it at float32."
        )
    adapted = _adapted(options.lora, model)
    if options.frozen_dtype == "float32" and not adapted:
        return model
    scale = options.lora.alpha / options.lora.rank if adapted else 1.0
    rank = options.lora.rank if adapted else 0
    found = Tuned(options.frozen_dtype, adapted, rank, scale)
    return dataclasses.replace(model, tuned=found)


def base(config: ConfigDict) -> ConfigDict:
    """The same configuration for the model as it was before, and as it is exported: float32 and
    without adapters.
    """
    config = config.copy_and_resolve_references()
    config.finetune.frozen_dtype = "float32"
    config.finetune.lora.update(rank=0, patterns=(), also=())
    return config


def _adapted(options: ConfigDict, model: Architecture) -> tuple[str, ...]:
    """The matrices that get an adapter."""
    if not options.rank:
        for name in ("patterns", "also"):
            if options[name]:
                raise ConfigError(
                    f"finetune.lora.{name} says where adapters stand or what learns beside them, "
                    "and finetune.lora.rank=0 makes none. Set a rank, such as "
                    f"--config.finetune.lora.rank=8, or leave finetune.lora.{name} out."
                )
        return ()
    bare = Transformer(model)
    sides, names = adaptable(bare), list(weights.abstract(bare).params)
    found, budget = set[str](), [patterns.BUDGET]
    for pattern in options.patterns:
        _check_experts(pattern, names, budget)
        found |= matching("finetune.lora.patterns", pattern, list(sides), budget)
    adapted = tuple(name for name in sides if name in found or not options.patterns)
    for name in adapted:
        if options.rank > min(sides[name]):
            raise ConfigError(
                f"finetune.lora.rank={options.rank} is more than the rank of '{name}', a matrix of "
                f"{sides[name][0]} x {sides[name][1]}. Use at most {min(sides[name])}; 4 to 64 are "
                "usual."
            )
    return adapted


def _check_experts(pattern: str, names: Iterable[str], budget: list[int]) -> None:
    """Refuses a pattern that finds matrices of experts."""
    for name in sorted(patterns.matching("finetune.lora.patterns", pattern, names, budget)):
        if is_expert(name):
            raise ConfigError(
                f"finetune.lora.patterns: {pattern!r} finds '{name}', the matrices of experts, and "
                "adapters stand beside dense matrices alone. Write a pattern of attention or of "
                "dense feed-forward layers, such as '[.]attention[.]' or '[.]ffn[.]up$'."
            )


def is_expert(name: str) -> bool:
    """Whether a weight is a matrix of experts, which `frozen_dtype` is about."""
    layer, _, matrix = name.rpartition(".")
    return layer.endswith(".experts") and matrix in MATRICES


def is_adapter(name: str) -> bool:
    """Whether a weight, or a slot of the optimiser, is that of an adapter."""
    return name.endswith((A, B))


def learning(options: ConfigDict, names: Collection[str]) -> set[str]:
    """The names of the weights that learn: a subset of the paper's, or adapters and what
    `lora.also` finds.

    Raises:
      ConfigError: keys that contradict each other, or a pattern without a weight.
    """
    if not options.lora.rank:
        return subsets.trained(options.train, options.router_with_moe, names)
    if options.train != "all":
        raise ConfigError(
            f"finetune.train={options.train!r} and finetune.lora.rank={options.lora.rank} both say "
            "what learns. Leave finetune.train at 'all': with a rank, adapters learn, and beside "
            "them what finetune.lora.also finds."
        )
    base_names = [name for name in names if not is_adapter(name)]
    learned, budget = {name for name in names if is_adapter(name)}, [patterns.BUDGET]
    for pattern in options.lora.also:
        learned |= matching("finetune.lora.also", pattern, base_names, budget)
    return learned


def check_frozen(config: ConfigDict, trained: Collection[str]) -> None:
    """Refuses experts that learn, or are averaged, and are stored in a type of frozen ones.

    Raises:
      ConfigError: names one of them.
    """
    options = config.finetune
    if options.frozen_dtype == "float32":
        return
    if config.ema_decay:
        raise ConfigError(
            f"ema_decay={config.ema_decay} averages all weights, and experts as "
            f"{options.frozen_dtype} (finetune.frozen_dtype) are no numbers to average; they would "
            "also be held twice. Set --config.ema_decay=0, or leave finetune.frozen_dtype at "
            "float32."
        )
    if moving := sorted(name for name in trained if is_expert(name)):
        raise ConfigError(
            f"finetune.frozen_dtype={options.frozen_dtype!r} is for experts that do not learn, and "
            f"'{moving[0]}' does. Set --config.finetune.train=non_moe, attention or ffn, or "
            "adapters by --config.finetune.lora.rank=8; or leave it at float32."
        )
