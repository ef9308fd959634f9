"""Describes configurations without training: `python -m launch.describe`.

No argument: a table of all shipped configurations. `--config=X [--json]`: one of them, built
without arrays. `--config=X --explain=KEY`: a key's value, meaning and where it was set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from launch import cli

COLUMNS = ("config", "task, data", "parameters", "FLOPs", "published top-1 / top-5", "source")


def main(argv: Sequence[str]) -> int:
    """Parses the command line and prints a table, one configuration, or one key."""
    parser = cli.parser("launch.describe", "Say what the configurations are.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=cli.CONFIG_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--explain", metavar="KEY", help="value, meaning and origin of a key")
    args, overrides = cli.parse(parser, argv)
    if args.explain:
        return explain(cli.load(args.config, overrides), args.explain)
    if args.config or overrides:
        return one(cli.load(args.config, overrides), args.json)
    return every(args.json)


def facts_of(loaded: cli.Loaded) -> dict[str, Any]:
    """What the family of a configuration says about it."""
    return cli.family_module(loaded.config, "describe").describe(loaded.config)


def one(loaded: cli.Loaded, as_json: bool) -> int:
    """Prints one configuration."""
    from trainlib.progress import summary

    facts = facts_of(loaded)
    if as_json:
        print(json.dumps(facts))
        return 0
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{key}.{inner}", _cell(item)) for inner, item in value.items()]
        else:
            rows.append((key, _cell(value)))
    print(summary(facts["name"], rows))
    return 0


def _cell(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) and value >= 1000 else str(value)


def every(as_json: bool) -> int:
    """Prints a table of all shipped configurations."""
    facts = []
    for path in cli.shipped():
        if sys.stderr.isatty():
            print(f"\r\x1b[Kcounting {path.stem} ...", end="", file=sys.stderr, flush=True)
        loaded = cli.load(str(path), {})
        described = facts_of(loaded)
        facts.append((described, cli.family_module(loaded.config, "describe").row(described)))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps([described for described, _ in facts]))
        return 0
    rows = [COLUMNS, *(row for _, row in facts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0


def explain(loaded: cli.Loaded, key: str) -> int:
    """Prints the value, meaning and origin of one key, or of all keys of a section.

    Raises:
      ConfigError: no such key or section; names the nearest.
    """
    from trainlib.config import flatten
    from trainlib.errors import ConfigError, nearest

    values = flatten(loaded.config)
    schema = cli.family_module(loaded.config, "config").schema(values)
    keys = [key] if key in values else [k for k in values if k.startswith(key + ".")]
    if not keys:
        raise ConfigError(
            f"--explain={key}: there is no such key. {nearest(key, values)}All keys: "
            f"{', '.join(values)}."
        )
    for name in keys:
        print(f"{name} = {values[name]!r}")
        print(f"    meaning  {schema[name][1]}")
        print(f"    set in   {loaded.origin[name]}; default {schema[name][0]!r}")
    return 0


if __name__ == "__main__":
    cli.run(main)
