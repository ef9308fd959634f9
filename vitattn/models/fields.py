"""Plain data -> frozen dataclasses, strictly: an error names the unknown key or the wrong type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

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
      ConfigError: unknown field, wrong type, or what `cls` itself objects to.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise ConfigError(
                f"{where}.{key} is not a field of {cls.__name__}. {nearest(key, names)}"
                f"Fields: {', '.join(names)}."
            )
    return cls(**{key: _value(hints[key], data[key], f"{where}.{key}") for key in data})


def _options(hint) -> tuple:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _value(hint, value, where: str):
    options = _options(hint)
    nested = {option.kind: option for option in options if dataclasses.is_dataclass(option)}
    if nested and hasattr(value, "items"):
        return _nested(nested, dict(value.items()), type(None) in options, where)
    for option in options:
        if _fits(option, value):
            return float(value) if option is float else _as_tuple(value)
    wanted = " or ".join(
        str(option) if typing.get_args(option) else getattr(option, "__name__", str(option))
        for option in options
    )
    raise ConfigError(f"{where} is {value!r}, a {type(value).__name__}; it must be {wanted}.")


def _nested(nested: dict[str, type], data: dict, optional: bool, where: str):
    kinds = [*nested, "none"] if optional else [*nested]
    kind = data.pop(KIND, kinds[0] if len(nested) == 1 else None)
    if kind not in kinds:
        raise one_of(f"{where}.{KIND}", kind, kinds)
    return None if kind == "none" else from_data(nested[kind], data, where)


def _fits(option, value) -> bool:
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(option) is tuple:
        items = typing.get_args(option)
        if not isinstance(value, list | tuple):
            return False
        if items[-1] is not Ellipsis:  # a kind for each place
            return len(value) == len(items) and all(map(_fits, items, value))
        return all(_fits(items[0], item) for item in value)
    return isinstance(value, option)


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value
