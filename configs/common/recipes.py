"""Variants of language models; to be replaced by `configs.common.variants`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from trainlib.config import override
from trainlib.errors import one_of

Variant = Callable[[ConfigDict], None]


def pick(
    file: str,
    variant: str,
    variants: Mapping[str, Variant],
    config: ConfigDict,
) -> ConfigDict:
    """Applies the variant that was asked for.

    Raises:
      ConfigError: there is no such variant; names those that are.
    """
    if variant:
        if variant not in variants:
            raise one_of("variant", variant, variants, file)
        variants[variant](config)
        config.name = f"{config.name}:{variant}"
    return config


def sets(**values: Any) -> Variant:
    """A variant that sets keys; `__` stands for the dot: sets(model__gate="se")."""

    def apply(config: ConfigDict) -> None:
        for key, value in values.items():
            override(config, key.replace("__", "."), value, "variant")

    return apply
