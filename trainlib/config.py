"""Configurations as data: a schema of (default, meaning) per dotted key, locked `ConfigDict`s,
strict overrides.

A family states its keys once, as a flat schema `{"optimizer.momentum": (0.9, "what it means")}`.
Everything else follows from it: the locked `ml_collections.ConfigDict` that config files fill in,
the type of every override on the command line, and what `launch.describe --explain` prints.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from trainlib.errors import ConfigError, nearest, one_of

# Keys that take one whole number or two of them: no ConfigDict knows such a type.
NUMBER_OR_PAIR = ("model.image_size",)

Schema = Mapping[str, tuple[Any, str]]

ON_CORRUPT = ("skip", "fail")


# Keys that the loops of both families read.
COMMON: dict[str, tuple[Any, str]] = {
    "name": ("", "name of the configuration, for reports"),
    "seed": (0, "seed of weights, data order and everything else that is drawn"),
    "steps": (1000, "training steps, all runs in the workdir together"),
    "batch_size": (128, "examples in one step, over all devices"),
    "microbatches": (
        1,
        "pieces a batch is cut into to save memory; gradients are summed. Batch normalisation "
        "normalises each piece by itself; running statistics move once a step, by all pieces",
    ),
    "max_skipped_steps": (10, "updates in a row that may be skipped as not finite; then exit 70"),
    "stuck_after": (60.0, "seconds of a step, or 10 usual ones if longer, then exit 76; 0 = never"),
    "log_every": (1, "steps between lines in metrics.jsonl"),
    "eval_every": (0, "steps between evaluations; 0 = only at the end"),
    "eval_batch_size": (0, "examples in one evaluation step; 0 = batch_size"),
    "checkpoint.every": (1000, "steps between checkpoints"),
    "checkpoint.keep": (3, "newest checkpoints that stay"),
    "checkpoint.best": ("", "evaluation metric whose best checkpoint stays as well; '' = none"),
    "checkpoint.on_corrupt": ("skip", "a damaged checkpoint: skip it for an older one, or fail"),
    "checkpoint.max_failed_saves": (3, "saves in a row that may fail with a warning; then exit 74"),
    "target": ("", "pod that the mesh is meant for; `python -m launch.compile` compiles for it"),
    "mesh.replica": (1, "mesh axis of whole copies of the model"),
    "mesh.data": (-1, "mesh axis that splits the batch (and what `sharding` says); -1 = the rest"),
}


def attribute_docs(cls: type) -> dict[str, str]:
    """Reads the `Attributes:` section of a docstring: field -> meaning."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^  (\w+): (.+?)(?=^  \w+: |\Z)", text, re.M | re.S)
    return {name: " ".join(doc.split()) for name, doc in entries}


def dataclass_schema(cls: type, leave_out: Container[str] = ()) -> dict[str, tuple[Any, str]]:
    """Schema of a dataclass: its defaults, and the meanings that its docstring gives.

    Fields without a default, or whose default is None, are not keys.
    """
    docs = attribute_docs(cls)
    return {
        field.name: (field.default, docs[field.name])
        for field in dataclasses.fields(cls)
        if field.name not in leave_out and field.default not in (dataclasses.MISSING, None)
    }


def check_common(config: ConfigDict, batch_parts: int) -> None:
    """Refuses values of the common keys that cannot work, before anything is compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    values = flatten(config)
    least = {"eval_every": 0, "eval_batch_size": 0, "max_skipped_steps": 0}
    least["checkpoint.max_failed_saves"] = 0
    if values["checkpoint.on_corrupt"] not in ON_CORRUPT:
        raise one_of("checkpoint.on_corrupt", values["checkpoint.on_corrupt"], ON_CORRUPT)
    least |= dict.fromkeys(("steps", "batch_size", "microbatches", "log_every"), 1)
    least |= {"stuck_after": 0}
    least |= dict.fromkeys(("checkpoint.every", "checkpoint.keep"), 1)
    for key, smallest in least.items():
        if values[key] < smallest:
            raise ConfigError(f"{key}={values[key]} must be at least {smallest}.")
    pieces = {"batch_size": values["microbatches"], "eval_batch_size": 1}
    for key, parts in pieces.items():
        size, step = values[key], batch_parts * parts
        if size % step:
            cut = f" x {parts} microbatches" if parts > 1 else ""
            raise ConfigError(
                f"{key}={size} does not divide over {batch_parts} devices{cut}. Nearest: "
                f"{max(step, round(size / step) * step)}."
            )


def prefixed(prefix: str, schema: Schema) -> dict[str, tuple[Any, str]]:
    """The same schema below a section: `momentum` becomes `optimizer.momentum`."""
    return {f"{prefix}.{key}": field for key, field in schema.items()}


def from_schema(schema: Schema) -> ConfigDict:
    """Builds the locked configuration that holds every default of the schema."""
    config = ConfigDict()
    for key, (default, _) in schema.items():
        section, *_, leaf = _walk(config, key)
        free = key in NUMBER_OR_PAIR
        section[leaf] = FieldReference(default, field_type=object) if free else default
    return config.lock()


def _walk(config: Any, key: str) -> tuple[Any, str]:
    *parents, leaf = key.split(".")
    for parent in parents:
        if parent not in config:
            config[parent] = ConfigDict()
        config = config[parent]
    return config, leaf


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def _parse(text: str, kind: type) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return words[text.lower()]
    if kind is int:
        return int(text.replace("_", ""))
    if kind is float:
        return float(text)
    if kind in (tuple, list):
        value = ast.literal_eval(text) if text.startswith(("(", "[")) else _words(text)
        return kind(value) if isinstance(value, tuple | list) else kind((value,))
    return text


def _words(text: str) -> tuple:
    words = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            words.append(ast.literal_eval(word))
        except (SyntaxError, ValueError):
            words.append(word)
    return tuple(words)


def override(config: ConfigDict, key: str, value: Any, where: str) -> None:
    """Sets one dotted key, in place; strings are read as the type that the key has.

    Raises:
      ConfigError: unknown key (names the nearest), a section, or a value of another type.
    """
    known = flatten(config)
    if key not in known:
        sections = sorted({k.split(".")[0] for k in known if "." in k})
        inside = sorted(k for k in known if k.startswith(key + "."))
        if inside:
            raise ConfigError(f"{where}: '{key}' is a section; set one of {', '.join(inside)}.")
        raise ConfigError(
            f"{where}: there is no configuration key '{key}'. {nearest(key, known)}Sections: "
            f"{', '.join(sections)}; `python -m launch.describe --config=... --explain=SECTION` "
            "lists the keys of one."
        )
    old = known[key]
    kind = str if old is None else type(old)
    if key in NUMBER_OR_PAIR:
        paired = "," in value if isinstance(value, str) else isinstance(value, tuple | list)
        kind = tuple if paired else int
    try:
        new = _parse(value, kind) if isinstance(value, str) else _coerce(value, kind)
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise ConfigError(
            f"{where}: {key}={value!r} is not of type {kind.__name__}; the present value is "
            f"{old!r}. Give a value of that type."
        ) from None
    section, leaf = _walk(config, key)
    with section.ignore_type():
        section[leaf] = new


def _coerce(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (tuple, list) and isinstance(value, tuple | list):
        return kind(tuple(v) if isinstance(v, list) else v for v in value)
    if (value is not None and not isinstance(value, kind)) or isinstance(value, bool) != (
        kind is bool
    ):
        raise TypeError
    return value


def to_json(config: ConfigDict) -> str:
    """The resolved configuration as JSON, flat, one key a line."""
    return json.dumps(flatten(config), indent=2, default=list) + "\n"


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads what `to_json` wrote (or a nested form of it) as dotted keys.

    Raises:
      ConfigError: when the file is missing or is not JSON of that form.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"The configuration {path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"The configuration {path} must hold one JSON object of keys and values.")
    return _flat(content)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values = {}
    for key, value in content.items():
        nested = isinstance(value, dict)
        values |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (old, new) for every key whose value differs; lists and tuples count as equal."""

    def plain(value: Any) -> Any:
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    keys = sorted(set(old) | set(new))
    pairs = {key: (plain(old.get(key)), plain(new.get(key))) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
