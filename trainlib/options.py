"""Strict reading of one section of a configuration against the table of its options.

A part (optimiser, schedule) owns its table, key -> (default, meaning); `trainlib.config` builds
configurations from the tables and `complete` reads a section back, so that a key, its default and
its meaning stand in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainlib.config import flatten, from_schema, override, prefixed
from trainlib.errors import ConfigError

Options = dict[str, tuple[Any, str]]  # key -> (default, meaning)


def complete(section: str, options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every option of a section; keys that are absent take their default.

    Raises:
      ConfigError: an unknown key (the nearest is named) or a value of another type than the
        default.
    """
    full = from_schema(prefixed(section, options))
    for key, value in config.items():
        require(value is not None, f"{section}.{key}", value, "it needs a value")
        override(full, f"{section}.{key}", value, section)
    values = flatten(full)
    return {key: values[f"{section}.{key}"] for key in options}


def require(fits: bool, key: str, value: Any, rule: str) -> None:
    """Raises a ConfigError `key=value cannot work: rule.` unless `fits`."""
    if not fits:
        raise ConfigError(f"{key}={value!r} cannot work: {rule}.")
