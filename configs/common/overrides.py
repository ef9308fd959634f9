"""Sets dotted keys of a configuration: those of a command line, a Python caller and a variant.

Most keys take a value and that is all. `task`, `model.name` and every `*.kind` decide which
other keys exist, so that setting one builds the configuration anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainlib.errors import ConfigError, shown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FAMILIES = ("vitattn", "moe")


def defaults(values: Mapping[str, Any], source: str) -> ConfigDict:
    """The locked defaults of all keys that exist for dotted `values`.

    Args:
      values: at least `family`; those of the model and of kinds of layer decide which keys exist.
      source: where they come from, for errors.

    Raises:
      ConfigError: there is no family, or a value that decides does not fit.
    """
    from trainlib.config import from_schema
    from trainlib.keys import choice, fit

    if "family" not in values:
        raise ConfigError(f"{shown(source)} has no key 'family': {' or '.join(FAMILIES)}.")
    if fit("family", values["family"], choice(*FAMILIES), source) == "moe":
        from moe.config import schema
    else:
        from vitattn.config import schema
    return from_schema(schema(values))


def apply(
    config: ConfigDict, values: Mapping[str, Any], where: str, *, typed: bool = True
) -> ConfigDict:
    """The configuration with some keys set; `config` itself may be changed as well.

    Args:
      config: a locked configuration.
      values: dotted key -> value. A kind that is set takes away the keys of the kind before.
      where: file, flag or call that they come from, for errors.
      typed: the values have the types of their keys; otherwise they are words of a command line.

    Raises:
      ConfigError: unknown key (names the nearest), or a value that its key does not take.
    """
    from trainlib.config import mark_together, override

    values = _one_length(config, values, where)
    for key in sorted(values, key=lambda key: not _decides(key)):
        if _decides(key):
            config = _rebuilt(config, key, values, where, typed=typed)
        else:
            override(config, key, values[key], where, typed=typed)
    mark_together(config, values)
    return config


def _one_length(config: ConfigDict, values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The values, where `steps` alone takes the place of `epochs` that were set before.

    Raises:
      ConfigError: both are set together.
    """
    if "steps" not in values:
        return values
    if "epochs" in values and str(values["epochs"]) not in ("0", "0.0"):
        raise ConfigError(
            f"{where}: steps={shown(values['steps'])} and epochs={shown(values['epochs'])} both "
            "say how long the run is. Set one of them."
        )
    return {**values, "epochs": 0} if config.get("epochs") else values


def _decides(key: str) -> bool:
    return key in ("task", "model.name") or key.endswith(".kind")


def _rebuilt(
    config: ConfigDict, key: str, values: Mapping[str, Any], where: str, *, typed: bool
) -> ConfigDict:
    """Sets a key that decides which others exist.

    Keys that exist before and after keep their values, except those that `values` sets as well and,
    where the task changes, those of which the tasks have other defaults: a data set or an
    augmentation of the one means nothing to the other.
    """
    from trainlib.config import flatten, override

    before = flatten(config)
    rebuilt = defaults(before | {key: values[key]}, where)
    default = flatten(rebuilt)
    former = flatten(defaults(before, where)) if key == "task" else default
    for name, value in before.items():
        alike = name in default and former.get(name) == default[name]
        if name not in values and alike and value != default[name]:
            override(rebuilt, name, value, where, typed=True)
    override(rebuilt, key, values[key], where, typed=typed)
    return rebuilt
