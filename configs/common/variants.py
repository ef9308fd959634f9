"""Variants of a configuration file: a table `name -> what it changes`, dotted key -> value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.common import overrides
from trainlib.errors import one_of

Variants = Mapping[str, Mapping[str, Any]]


def pick(config: ConfigDict, variant: str, variants: Variants, file: str) -> ConfigDict:
    """The configuration as the variant that was asked for changes it; "" changes nothing.

    Args:
      config: the plain one of a file.
      variant: the name after the colon of `--config=FILE:VARIANT`.
      variants: those that there are.
      file: `__file__` of the configuration, for errors.

    Raises:
      ConfigError: there is no such variant; names those that are.
    """
    if not variant:
        return config
    if variant not in variants:
        raise one_of("variant", variant, variants, file)
    config = overrides.apply(config, variants[variant], f"variant {variant}")
    config.name = f"{config.name}:{variant}"
    return config
