"""Strict reading of one section of a configuration against the table of its options.

A part (optimiser, schedule) owns its table, key -> (default, meaning) with what the key takes;
`trainlib.config` builds configurations from the tables and `complete` reads a section back, so that
a key, its default, its meaning and its range stand in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainlib.config import prefixed, unknown
from trainlib.errors import ConfigError
from trainlib.keys import brief, fit, kind_of

Options = dict[str, tuple[Any, str]]  # key -> (default, meaning)


def complete(section: str, options: Options, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every option of a section; keys that are absent take their default.

    Raises:
      ConfigError: an unknown key (the nearest is named) or a value that its key does not take.
    """
    found = {name: default for name, (default, _) in options.items()}
    for name, value in config.items():
        if name not in options:
            raise unknown(prefixed(section, options), f"{section}.{name}", section)
        found[name] = fit(f"{section}.{name}", value, kind_of(options[name]))
    return found


def check(section: str, options: Options, config: Mapping[str, Any]) -> None:
    """Refuses values of a whole section, or of a part of it, that their keys do not take.

    Raises:
      ConfigError: names the key, its value and what is allowed.
    """
    for name, entry in options.items():
        if name in config:
            fit(f"{section}.{name}", config[name], kind_of(entry))


def require(fits: bool, key: str, value: Any, rule: str) -> None:
    """Raises a ConfigError `key=value cannot work: rule.` unless `fits`."""
    if not fits:
        raise ConfigError(f"{key}={brief(value)} cannot work: {rule}.")
