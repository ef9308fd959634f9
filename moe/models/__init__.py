"""Models by name: `build(config)` turns plain data into a module that has no arrays yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe.models.architecture import Architecture
from moe.models.sizes import SIZES
from moe.models.transformer import Transformer
from moe.routing_config import RoutingConfig
from trainlib.errors import one_of

ROUTING = "routing."


def architecture(model: Mapping[str, Any], routing: Mapping[str, Any]) -> Architecture:
    """The sections `model` and `routing` of a configuration as one checked dataclass.

    Args:
      model: `name` (a key of `SIZES`) and fields of `Architecture`; absent ones as the size has
        them.
      routing: fields of `RoutingConfig`; with `num_experts` 0 every block is dense.

    Raises:
      ConfigError: an unknown name, or a value that cannot work.
    """
    values = dict(model.items())
    name = values.pop("name")
    if name not in SIZES:
        raise one_of("model.name", name, SIZES)
    size = SIZES[name]
    fields = {key: value for key, value in size.items() if not key.startswith(ROUTING)}
    router = {
        key.removeprefix(ROUTING): value for key, value in size.items() if key.startswith(ROUTING)
    }
    router |= dict(routing.items())
    config = RoutingConfig(**router) if router["num_experts"] else None
    return Architecture(**(fields | values), routing=config)


def named(name: str, **changes: Any) -> Architecture:
    """The architecture of a named size, with fields changed."""
    return dataclasses.replace(architecture({"name": name}, {}), **changes)


def build(model: Mapping[str, Any], routing: Mapping[str, Any]) -> Transformer:
    """The sections `model` and `routing` of a configuration -> a model; see `architecture`."""
    return Transformer(architecture(model, routing))
