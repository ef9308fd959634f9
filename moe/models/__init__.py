"""Architectures from plain data: sections of a configuration, or the name of a size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe.models.architecture import Architecture
from moe.models.sizes import SIZES
from moe.routing.config import RoutingConfig
from trainlib.errors import ConfigError, one_of, shown


def architecture(model: Mapping[str, Any], routing: Mapping[str, Any]) -> Architecture:
    """The sections `model` and `routing` of a configuration as one checked dataclass.

    Args:
      model: fields of `Architecture` but `routing`; absent ones have their defaults.
      routing: fields of `RoutingConfig`; with `num_experts` 0 every block is dense.

    Raises:
      ConfigError: a value that cannot work.
    """
    router = dict(routing.items())
    config = RoutingConfig(**router) if router["num_experts"] else None
    return Architecture(**dict(model.items()), routing=config)


def fine_grained(model: Architecture, segments: int) -> Architecture:
    """The same model with each expert cut into `segments` narrower ones (DeepSeekMoE, arXiv
    2401.06066, section 3.1): m times as many experts of d_ff / m hidden units, of which a token
    goes to m times as many.

    Parameters of experts and FLOPs of a token stay what they are; only the router grows, by its m
    times as many columns. The capacity factor is multiplied by m, since it counts no choices, and
    shared experts are m times as many, so that they stay as wide as they were.

    Example:
      >>> fine = fine_grained(models.named("st_moe_tiny"), 4)  # 16 experts of 64, top-8
      >>> model = moe.Transformer(fine, rngs=nnx.Rngs(0))

    Raises:
      ConfigError: a dense model, or a width that the segments do not divide.
    """
    routing, width = model.routing, model.expert_width
    if routing is None:
        raise ConfigError("fine_grained cuts experts, and this model has none: give it a routing.")
    if segments < 1 or width % segments:
        fits = max(n for n in range(1, max(segments, 1) + 1) if not width % n)
        raise ConfigError(
            f"segments={segments} does not divide the {width} hidden units of an expert. Nearest "
            f"below: {fits}."
        )
    scale = 1 if routing.capacity_per_choice else segments
    routing = dataclasses.replace(
        routing,
        num_experts=routing.num_experts * segments,
        top_k=routing.top_k * segments,
        capacity_factor=routing.capacity_factor * scale,
        capacity_factor_eval=routing.capacity_factor_eval * scale,
    )
    return dataclasses.replace(
        model,
        routing=routing,
        expert_d_ff=width // segments,
        shared_experts=model.shared_experts * segments,
    )


def size(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections `model` and `routing` of a named size, as far as they differ from defaults.

    Raises:
      ConfigError: there is no such size.
    """
    if name not in SIZES:
        raise one_of("size", name, SIZES)
    values = SIZES[name]
    model = {key: value for key, value in values.items() if "." not in key}
    routing = {key.partition(".")[2]: value for key, value in values.items() if "." in key}
    return model, routing


def named(name: str, routing: Mapping[str, Any] | None = None, **model: Any) -> Architecture:
    """The architecture of a named size, with some of its fields, and of its router's, changed.

    Raises:
      ConfigError: there is no such size or field (names the nearest), or a value cannot work.
    """
    fields, router = size(name)
    routing = dict(routing or {})
    known = {f.name for f in dataclasses.fields(Architecture)} - {"routing"}
    options = {f.name for f in dataclasses.fields(RoutingConfig)}
    for key in model.keys() - known:
        if key in options:
            raise ConfigError(
                f"{key} is an option of the router, not of the model: give routing={{{key!r}: "
                f"{shown(repr(model[key]), 60)}}}."
            )
        raise one_of("model option", key, known)
    for key in routing.keys() - options:
        raise one_of("routing option", key, options)
    return architecture(fields | model, router | routing)
