"""Plain data -> frozen dataclasses, strictly: an error names the unknown key, or the value that its
field does not take.

A field may choose among dataclasses: its data is a mapping whose "kind" names one of them, or one
of a user's own as MODULE:NAME (`trainlib.extension`). Their defaults can depend on the class that
they are part of, which then lists instances as `PRESETS`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from trainlib import extension, keys
from trainlib.config import attribute_docs
from trainlib.errors import ConfigError, nearest

KIND = "kind"  # the key of a nested mapping that chooses among several dataclasses; "none" is None


def choices(cls: type) -> dict[str, dict[str, Any]]:
    """Field -> kind -> an instance with the defaults that hold in `cls`, for the fields of a
    dataclass that choose among dataclasses.
    """
    presets = {type(preset): preset for preset in getattr(cls, "PRESETS", ())}
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        options: list[Any] = [arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)]
        if options:
            fields[name] = {option.kind: presets.get(option) or option() for option in options}
    return fields


def from_data(cls: type, data: Mapping[str, Any], where: str, preset: Any = None):
    """Builds dataclass `cls` from a mapping of its fields.

    Lists become tuples and integers become floats where the field wants one. A field of a
    dataclass type takes a mapping; where several are possible its "kind" (`kind` attribute of the
    class) says which, and "none" means None.

    Args:
      cls: a dataclass.
      data: field name -> value.
      where: dotted name of `data`, for messages.
      preset: an instance that absent fields are taken from; None: they have their defaults.

    Raises:
      ConfigError: unknown field, a value that it does not take, or what `cls` itself objects to.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise ConfigError(
                f"{where}.{key} is not a field of {cls.__name__}. {nearest(key, names)}"
                f"Fields: {', '.join(names)}."
            )
    kinds, nested = keys.of_fields(cls), choices(cls)
    values = {}
    for key, value in data.items():
        name = f"{where}.{key}"
        plain = key in kinds
        values[key] = (
            keys.fit(name, value, kinds[key]) if plain else _part(nested[key], value, name)
        )
    return cls(**values) if preset is None else dataclasses.replace(preset, **values)


def _part(presets: Mapping[str, Any], value: Any, where: str) -> Any:
    """A field that chooses among dataclasses, or None."""
    if value is None:
        return None
    if not hasattr(value, "items"):
        raise ConfigError(f"{where} is {keys.brief(value)}; it must be a section with a {KIND}.")
    data = dict(value.items())
    known = extension.named("none", *presets)
    kind = keys.fit(
        f"{where}.{KIND}", data.pop(KIND, next(iter(presets)) if len(presets) == 1 else None), known
    )
    if kind == "none":
        return None
    chosen = preset(presets, kind, f"{where}.{KIND}")
    return from_data(type(chosen), data, where, chosen)


def preset(presets: Mapping[str, Any], kind: str, key: str) -> Any:
    """The instance with the defaults of a kind.

    Args:
      presets: kind -> instance, of one field of `choices`.
      kind: one of them, or MODULE:NAME of a dataclass of one's own.
      key: the configuration key that has it as its value.

    Raises:
      ConfigError: there is no such dataclass, or not every field of it has a default and a meaning.
    """
    if kind in presets:
        return presets[kind]
    what = "a frozen dataclass with stages, every_layer and layer(...)"
    cls = extension.load(kind, key)
    built = isinstance(cls, type) and dataclasses.is_dataclass(cls)
    if not built or not all(hasattr(cls, name) for name in ("every_layer", "layer")):
        raise extension.misfit(kind, key, cls, f"{what} (vitattn.layers.attention.AttentionConfig)")
    documented = attribute_docs(cls)
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING or field.name not in documented:
            raise ConfigError(
                f"{key}='{kind}': the field '{field.name}' of {cls.__name__} needs a default value "
                "and a line in the section `Attributes:` of the docstring."
            )
    return cls()
