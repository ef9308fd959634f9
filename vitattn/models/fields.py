"""Plain data -> frozen dataclasses, strictly: an error names the unknown key, or the value that its
field does not take.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from trainlib import keys
from trainlib.errors import ConfigError, nearest, one_of

KIND = "kind"  # the key of a nested mapping that chooses among several dataclasses; "none" is None


def from_data(cls: type, data: Mapping[str, Any], where: str):
    """Builds dataclass `cls` from a mapping of its fields.

    Lists become tuples and integers become floats where the field wants one. A field of a
    dataclass type takes a mapping; where several are possible its "kind" (`kind` attribute of the
    class) says which, and "none" means None.

    Args:
      cls: a dataclass.
      data: field name -> value; absent fields have their defaults.
      where: dotted name of `data`, for messages.

    Raises:
      ConfigError: unknown field, a value that it does not take, or what `cls` itself objects to.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise ConfigError(
                f"{where}.{key} is not a field of {cls.__name__}. {nearest(key, names)}"
                f"Fields: {', '.join(names)}."
            )
    kinds = keys.of_fields(cls)
    values = {}
    for key, value in data.items():
        name = f"{where}.{key}"
        plain = key in kinds
        values[key] = keys.fit(name, value, kinds[key]) if plain else _part(hints[key], value, name)
    return cls(**values)


def _part(hint, value, where: str):
    """A field that chooses among dataclasses."""
    options = _options(hint)
    nested = {option.kind: option for option in options if dataclasses.is_dataclass(option)}
    optional = type(None) in options
    if value is None and optional:
        return None
    if not hasattr(value, "items"):
        raise ConfigError(f"{where} is {keys.brief(value)}; it must be a section with a {KIND}.")
    return _nested(nested, dict(value.items()), optional, where)


def _options(hint) -> tuple:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _nested(nested: dict[str, type], data: dict, optional: bool, where: str):
    kinds = [*nested, "none"] if optional else [*nested]
    kind = data.pop(KIND, kinds[0] if len(nested) == 1 else None)
    if kind not in kinds:
        raise one_of(f"{where}.{KIND}", kind, kinds)
    return None if kind == "none" else from_data(nested[kind], data, where)
