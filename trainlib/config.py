"""Configurations as data: a schema of (default, meaning) per dotted key, locked `ConfigDict`s,
strict overrides.

A family states its keys once, as a flat schema `{"optimizer.momentum": (0.9, "what it means")}`,
with what each takes (`trainlib.keys`). Everything else follows from it: the locked
`ml_collections.ConfigDict` that config files fill in, the type and range of every value whether it
comes from the command line, JSON or Python, and what `launch.describe --explain` prints.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from trainlib import chips, commands, keys, untrusted_files
from trainlib.errors import ConfigError, nearest, shown
from trainlib.keys import Text, choice, key, number, switch, text, whole

Schema = Mapping[str, tuple[Any, str]]  # dotted key -> (default, meaning)
Options = dict[str, tuple[Any, str]]  # the schema of one section: key -> (default, meaning)

ON_CORRUPT = ("skip", "fail")
MOST_BYTES = 4 * untrusted_files.MIB  # of a configuration in JSON
MOST_LEVELS = 8  # of sections within sections there
MOST_LISTED = 12  # keys in one message


def _is_target(name: str) -> None:
    try:
        devices = chips.target(name).devices if name else 1
    except ConfigError:
        close = nearest(name, chips.names()).strip()
        raise keys.Unfit(f"there is no such target{close and f' ({close})'}") from None
    if devices > chips.MOST_DEVICES:
        raise keys.Unfit(f"it has more than {chips.MOST_DEVICES:,} devices")


# Keys that the loops of both families read.
COMMON: dict[str, tuple[Any, str]] = {
    "name": key("", "name of the configuration, for reports", text(0, 200)),
    "seed": key(0, "seed of weights, order of the data and every other random draw", whole(0)),
    "steps": key(
        1000,
        "training steps, all runs in the workdir together; follows from `epochs` where that is set",
        whole(1),
    ),
    "epochs": key(
        0.0,
        "passes over the training split, from which `steps` follows when the data are opened; "
        "warm-up, boundaries and decay_steps of the schedule keep their share of the run, unless "
        "they are set together with it; 0 = `steps` decides",
        number(above=0, high=1e6, also={0: "`steps` decides"}),
    ),
    "batch_size": key(128, "examples in one step, over all devices", whole(1)),
    "microbatches": key(
        1,
        "pieces that a batch is cut into to save memory; their gradients are summed. Batch "
        "normalisation uses the statistics of each piece; running statistics are updated once a "
        "step, from all pieces",
        whole(1),
    ),
    "ema_decay": key(
        0.0,
        "decay of the moving average of weights, float32 as they are, that is evaluated, predicts "
        "and is exported in their place; 0 = off",
        number(0, below=1),
    ),
    "max_skipped_steps": key(
        10,
        "consecutive updates that may be skipped because they are not finite; one more exits 70",
        whole(0),
    ),
    "stuck_after": key(
        60.0,
        "abort (exit 76) if a step takes longer than this many seconds and than 10 typical steps; "
        "0 = never",
        number(above=0, high=1e9, also={0: "never"}),
    ),
    "log_every": key(1, "steps between lines in metrics.jsonl", whole(1)),
    "eval_every": key(
        0,
        "steps between evaluations; 0 = only at the end",
        whole(1, also={0: "only at the end"}),
    ),
    "eval_batch_size": key(
        0, "examples in one evaluation step; 0 = batch_size", whole(1, also={0: "batch_size"})
    ),
    "checkpoint.every": key(1000, "steps between checkpoints", whole(1)),
    "checkpoint.keep": key(3, "how many of the newest checkpoints are kept", whole(1)),
    "checkpoint.best": key(
        "", "evaluation metric whose best checkpoint is kept as well; '' = none", text(0, 200)
    ),
    "checkpoint.on_corrupt": key(
        "skip",
        "what to do about a damaged checkpoint: skip it and use an older one, or fail",
        choice(*ON_CORRUPT),
    ),
    "checkpoint.compress": key(
        False,
        "compress arrays by zstd: about 7 % smaller, and slower to save and to restore",
        switch(),
    ),
    "checkpoint.max_failed_saves": key(
        3, "consecutive saves that may fail with a warning; one more exits 74", whole(0)
    ),
    "writers.extra": key(
        "",
        "your own experiment tracker, which gets every line of metrics: module:Class (several: "
        "separated by commas), found in the current directory or installed; '' = none",
        text(0, 500),
    ),
    "target": key(
        "",
        "chips that the mesh is meant for; the command `compile` compiles the step for them",
        Text(0, 100, "the name of a target, such as v5e-16,", _is_target),
    ),
    "kernels": key(
        "auto",
        "kernels and forms written for a platform: auto takes them where the step runs on theirs, "
        "plain leaves everything to the compiler, for comparison",
        choice("auto", "plain"),
    ),
    "mesh.replica": key(
        1,
        "mesh axis over which the whole model is copied; -1 = the rest",
        whole(1, also={-1: "the rest"}),
    ),
    "mesh.data": key(
        -1,
        "mesh axis over which the batch, and what `sharding` says, is split; -1 = the rest",
        whole(1, also={-1: "the rest"}),
    ),
}


def attribute_docs(cls: type) -> dict[str, str]:
    """Reads the `Attributes:` section of a docstring: field -> meaning."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:")[2].partition("\nRaises:")[0]
    entries = re.findall(r"^  (\w+): (.+?)(?=^  \w+: |\Z)", text, re.M | re.S)
    return {name: " ".join(doc.split()) for name, doc in entries}


def dataclass_schema(
    cls: type, leave_out: Container[str] = (), preset: Any = None
) -> dict[str, tuple[Any, str]]:
    """Schema of a dataclass: its defaults, the meanings that its docstring gives, and the kinds
    that its annotations declare.

    Fields without a default, or whose default is None, are not keys.

    Args:
      cls: a dataclass.
      leave_out: fields that are not keys.
      preset: an instance whose values are the defaults in place of those of `cls`.
    """
    docs, kinds = attribute_docs(cls), keys.of_fields(cls)
    defaults = {
        field.name: getattr(preset, field.name, field.default) for field in dataclasses.fields(cls)
    }
    return {
        name: key(default, docs[name], kinds.get(name) or keys.like(default))
        for name, default in defaults.items()
        if name not in leave_out and default not in (dataclasses.MISSING, None)
    }


def check_common(config: ConfigDict, batch_parts: int) -> None:
    """Refuses batches that do not divide over devices and microbatches, before anything is
    compiled.

    Args:
      config: a resolved configuration.
      batch_parts: devices that share the batch.

    Raises:
      ConfigError: with the key, its value and the nearest value that works.
    """
    values = flatten(config)
    pieces = {"batch_size": values["microbatches"], "eval_batch_size": 1}
    for name, parts in pieces.items():
        size, step = values[name], batch_parts * parts
        if size % step:
            cut = f" x {parts} microbatches" if parts > 1 else ""
            raise ConfigError(
                f"{name}={size} does not divide over {batch_parts} devices{cut}. Nearest: "
                f"{max(step, round(size / step) * step)}."
            )


def check_values(config: ConfigDict, schema: Schema) -> None:
    """Refuses a value outside of what its key takes, however it came into the configuration.

    Raises:
      ConfigError: names the key, its value and what is allowed.
    """
    for name, value in flatten(config).items():
        if name in schema:
            keys.fit(name, value, keys.kind_of(schema[name]))


def prefixed(prefix: str, schema: Schema) -> dict[str, tuple[Any, str]]:
    """The same schema below a section: `momentum` becomes `optimizer.momentum`."""
    return {f"{prefix}.{name}": field for name, field in schema.items()}


def from_schema(schema: Schema) -> ConfigDict:
    """Builds the locked configuration that holds every default of the schema, and knows what each
    key takes.
    """
    config = ConfigDict()
    kinds = {name: keys.kind_of(entry) for name, entry in schema.items()}
    for name, (default, _) in schema.items():
        section, *_, leaf = _walk(config, name)
        # No ConfigDict knows a type of "one number or two".
        free = isinstance(kinds[name], keys.Either)
        section[leaf] = FieldReference(default, field_type=object) if free else default
    object.__setattr__(config, _KINDS, kinds)
    return config.lock()


_KINDS = "kinds of the keys"  # an attribute of the object, so that it is no key


def _kinds(config: ConfigDict) -> dict[str, keys.Kind]:
    """What each key takes; in a configuration that was made by hand, any value of the type that it
    has.
    """
    known = vars(config).get(_KINDS)
    return known or {name: keys.like(value) for name, value in flatten(config).items()}


_TOGETHER = "keys that were set together"  # the same


def set_together(config: ConfigDict) -> frozenset[str]:
    """The keys that the last caller set, of a command line or in Python."""
    return vars(config).get(_TOGETHER, frozenset())


def mark_together(config: ConfigDict, names: Iterable[str]) -> None:
    """Notes which keys were set together, for what follows from one of them and not from others."""
    object.__setattr__(config, _TOGETHER, frozenset(names))


_ORIGIN = "where values were set"  # the same


def origin_of(config: ConfigDict) -> dict[str, str]:
    """Key -> where its value was set: a file, a variant, the command line, or "default"; empty for
    a configuration that was made by hand.
    """
    return vars(config).get(_ORIGIN, {})


def mark_origin(config: ConfigDict, origin: Mapping[str, str]) -> None:
    """Notes where each value was set."""
    object.__setattr__(config, _ORIGIN, dict(origin))


def _walk(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in config:
            config[parent] = ConfigDict()
        config = config[parent]
    return config, leaf


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> value."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def override(config: ConfigDict, name: str, value: Any, where: str, *, typed: bool = False) -> None:
    """Sets one dotted key, in place; strings are read as words of what the key takes.

    Args:
      config: made by `from_schema`.
      name: the key.
      value: for it.
      where: file or flag that it came from.
      typed: the value comes from JSON or Python, where a string is text and nothing else.

    Raises:
      ConfigError: unknown key (names the nearest), a section, or a value of another type or
        outside the range of the key.
    """
    kinds = _kinds(config)
    if name not in kinds:
        raise unknown(kinds, name, where)
    section, leaf = _walk(config, name)
    words = isinstance(value, str) and not typed
    new = keys.fit(name, value, kinds[name], where, words=words, present=section[leaf])
    if section.is_type_safe:
        with section.ignore_type():
            section[leaf] = new
    else:
        section[leaf] = new


# Other words for the same thing, whose spelling is not near that of the key.
USUAL_NAMES = {
    "width": "d_model",
    "hidden_size": "d_model",
    "hidden": "d_ff",
    "heads": "num_heads",
    "head_width": "head_dim",
    "d_kv": "head_dim",
    "tied_output": "tie_word_embeddings",
    "scan": "scan_layers",
    "over_layers": "loss_reduction",
    "length": "max_length",
}


def unknown(known: Mapping[str, Any], name: str, where: str) -> ConfigError:
    """The error for a key that is not there: a section, below a key, or the nearest key."""
    source, asked = shown(where), shown(name, 100)
    inside = sorted(k for k in known if k.startswith(name + "."))
    if inside:
        more = f" and {len(inside) - MOST_LISTED} more" if len(inside) > MOST_LISTED else ""
        return ConfigError(
            f"{source}: '{asked}' is a section and takes no value; set one of "
            f"{', '.join(inside[:MOST_LISTED])}{more}."
        )
    above = next((k for k in known if name.startswith(k + ".")), "")
    if above:
        return ConfigError(
            f"{source}: there is no configuration key '{asked}': '{above}' is a key with a value "
            "of its own, and nothing lies below it."
        )
    sections = sorted({k.split(".")[0] for k in known if "." in k})
    section, _, leaf = name.rpartition(".")
    usual = f"{section}.{USUAL_NAMES.get(leaf, '')}"
    close = f"Did you mean '{usual}'? " if usual in known else nearest(name, known)
    return ConfigError(
        f"{source}: there is no configuration key '{asked}'. {close}Sections: "
        f"{', '.join(sections)}; `{commands.name('describe')} --config=... --explain=SECTION` "
        "lists the keys of one."
    )


def assign(config: ConfigDict, values: Mapping[str, Any], where: str) -> None:
    """Sets dotted keys to the values of a configuration in JSON or Python, in place.

    Raises:
      ConfigError: see `override`; or an empty object in place of a value.
    """
    known = _kinds(config)
    with config.ignore_type():  # once for all of them: it walks through the whole configuration
        for name, value in values.items():
            empty = isinstance(value, Mapping) and not value
            if empty and name not in known and any(k.startswith(f"{name}.") for k in known):
                continue  # a section without keys sets nothing
            override(config, name, value, where, typed=True)


def to_json(config: ConfigDict) -> str:
    """The resolved configuration as JSON, flat, one key a line."""
    return json.dumps(flatten(config), indent=2, default=list) + "\n"


def read_json(path: str | Path, *, follow: bool = True) -> dict[str, Any]:
    """Reads what `to_json` wrote (or a nested form of it) as dotted keys.

    Args:
      path: of the file.
      follow: whether it may be a link, as a file may that a person names.

    Raises:
      ConfigError: it is missing, no regular file, too large, or not JSON of that form.
    """
    content = untrusted_files.read_json(path, MOST_BYTES, follow=follow, error=ConfigError)
    return flat(content, shown(path))


def flat(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Dotted key -> value of sections within sections; an empty one is a value.

    Raises:
      ConfigError: a key that is given twice or is no text, or more than `MOST_LEVELS` levels.
    """
    values: dict[str, Any] = {}
    open_sections = [("", content, 0)]
    while open_sections:
        prefix, section, level = open_sections.pop()
        for name, value in section.items():
            if not isinstance(name, str):
                raise ConfigError(f"{where}: the key {keys.brief(name)} is no text.")
            full = prefix + name
            if isinstance(value, Mapping) and value:
                if level == MOST_LEVELS:
                    raise ConfigError(f"{where}: '{shown(full, 100)}' lies too deep.")
                open_sections.append((f"{full}.", value, level + 1))
            elif full in values:
                raise ConfigError(f"{where} gives '{shown(full, 100)}' twice.")
            else:
                values[full] = value
    return values


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (old, new) for every key whose value differs; lists and tuples count as equal."""

    def plain(value: Any) -> Any:
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    names = sorted(set(old) | set(new))
    pairs = {name: (plain(old.get(name)), plain(new.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# A section read back: a part (optimiser, schedule) owns the table of its options.


def complete(section: str, options: Schema, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every option of a section; keys that are absent take their default.

    Raises:
      ConfigError: an unknown key (the nearest is named) or a value that its key does not take.
    """
    values = {name: default for name, (default, _) in options.items()}
    for name, value in config.items():
        if name not in options:
            raise unknown(prefixed(section, options), f"{section}.{name}", section)
        values[name] = keys.fit(f"{section}.{name}", value, keys.kind_of(options[name]))
    return values


def check_section(section: str, options: Schema, config: Mapping[str, Any]) -> None:
    """Refuses values of a whole section, or of a part of it, that their keys do not take.

    Raises:
      ConfigError: names the key, its value and what is allowed.
    """
    for name, entry in options.items():
        if name in config:
            keys.fit(f"{section}.{name}", config[name], keys.kind_of(entry))


def require(fits: bool, name: str, value: Any, rule: str) -> None:
    """Raises a ConfigError `name=value cannot work: rule.` unless `fits`."""
    if not fits:
        raise ConfigError(f"{name}={keys.brief(value)} cannot work: {rule}.")
