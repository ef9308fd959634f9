"""Describes configurations without training: `python -m launch.describe`.

No argument: a table of all shipped configurations. `--config=X [--json]`: one of them, built
without arrays. `--config=X --explain=KEY`: a key's value, meaning and where it was set.
`--checkpoint=DIR [--config=X] [--json]`: what a checkpoint holds, whether it is whole, and how its
configuration differs from X.
`--table=papers [--json] [--rows=PATTERN]`: the models of the papers beside what is built here, and
every table and figure as published; with `--latency` the models alone, and what each takes to
answer a batch on this machine, or with `--latency=v5e-1` on a chip that is not here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import cli, families
from trainlib import compile_cache
from trainlib.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vitattn.papers import Compared

COLUMNS = (
    *("config", "task, data", "parameters", "FLOPs"),
    *("published top-1 / top-5 or AP / AP50 / AP75", "source"),
)
TABLES = ("papers",)
ACCURACIES, PRECISIONS = ("top1", "top5"), ("ap", "ap50", "ap75")
PAPER_COLUMNS = (
    *("model", "parameters", "printed M", "delta M", "GFLOP", "printed", "delta"),
    *("top-1 / top-5", "AP / AP50 / AP75", "source", "note"),
)


def main(argv: Sequence[str]) -> int:
    """Parses the command line and prints a table, one configuration, or one key."""
    parser = cli.command_parser("describe", "Say what the configurations are.")
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=load.CONFIG_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--table", metavar="NAME", help=f"a table: {', '.join(TABLES)}")
    parser.add_argument("--explain", metavar="KEY", help="value, meaning and origin of a key")
    _add_latency(parser)
    cli.add_path(
        parser,
        "--checkpoint",
        metavar="DIR",
        help="a workdir or a step: leaves, digests, config diff",
    )
    args, overrides = cli.parse(parser, argv)
    if args.checkpoint:
        from launch import describe_checkpoint

        given = load.from_flags(args.config, overrides).config if args.config else None
        return describe_checkpoint.describe(args.checkpoint, given, args.json)
    if args.explain:
        return explain(load.from_flags(args.config, overrides), args.explain)
    if args.table:
        return table(args.table, args)
    if args.latency or args.rows:
        raise ConfigError("--latency and --rows belong to a table: add --table=papers.")
    if args.config or overrides:
        return one(load.from_flags(args.config, overrides), args.json)
    return every(args.json, compile_cache.enable(args.compile_cache))


def _add_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", metavar="PATTERN", default="", help="rows of a table that have this in a name")
    add(
        "--latency",
        metavar="TARGET",
        nargs="?",
        const="here",
        help="of a table: measure inference on this machine, or predict it for a chip, v5e-1",
    )
    add("--batch", type=int, default=1, metavar="N", help="images of a measured batch (1)")
    add("--dtype", help="of the computation: float32 (default on a CPU) or bfloat16")
    add("--image_size", type=int, metavar="PIXELS", help="in place of the published size")


def facts_of(loaded: load.Loaded) -> dict[str, Any]:
    """What the family of a configuration says about it."""
    return families.of(loaded.config).describe.describe(loaded.config)


def one(loaded: load.Loaded, as_json: bool) -> int:
    """Prints one configuration."""
    from trainlib.run.progress import summary

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


def every(as_json: bool, cache: Path | None) -> int:
    """Prints a table of all shipped configurations.

    Args:
      as_json: as data, in place of the table.
      cache: folder where the figures are kept for the next call, by all that they depend on.
    """
    configs = [load.from_flags(str(path), {}).config for path in load.shipped()]
    facts = _kept(configs, cache)
    if as_json:
        print(json.dumps(facts))
        return 0
    rows = (families.by_name(described["family"]).describe.row(described) for described in facts)
    show([COLUMNS, *rows])
    return 0


def _kept(configs: Sequence[ConfigDict], cache: Path | None) -> list[dict[str, Any]]:
    """The facts of configurations, computed when they are not in the cache."""

    @functools.cache
    def computed() -> dict[str, str]:
        facts = []
        for config in configs:
            counting(config.name)
            facts.append(families.of(config).describe.describe(config))
        counting("")
        return {"facts": json.dumps(facts)}  # as text, so that its keys keep their order

    if cache is None:
        return json.loads(computed()["facts"])
    from launch.hosts.start import source_digest, versions
    from trainlib.config import flatten
    from trainlib.planning.search import Cache

    key = [[flatten(config) for config in configs], source_digest(), versions()]
    with contextlib.suppress(StorageError):  # a full disk is no reason to say nothing
        return json.loads(Cache(cache / "described").get(key, computed)["facts"])
    return json.loads(computed()["facts"])


def counting(what: str) -> None:
    """Says on a terminal what is being counted; "" wipes the line."""
    if sys.stderr.isatty():
        text = f"counting {what} ..." if what else ""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def show(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns as wide as their widest cell."""
    from trainlib.errors import plain

    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def table(name: str, args: argparse.Namespace) -> int:
    """Prints the published models: computed figures, printed ones, and what lies between; with
    latency where that is asked for, and otherwise all tables and figures as published.

    Raises:
      ConfigError: there is no such table, or no such row.
    """
    from trainlib.errors import one_of

    if name not in TABLES:
        raise one_of("--table", name, TABLES)
    from launch.papers import exhibits
    from launch.planning import latency
    from vitattn import papers

    beside = [] if args.latency else exhibits.chosen(args.rows)
    rows = latency.chosen(papers.published(), args.rows, also=beside)
    clock = latency.Clock.of_flags(args, len(rows)) if args.latency else None
    compared = []
    for row in rows:
        counting(row.label)
        compared.append(papers.compare(row))
    counting("")
    taken = [] if clock is None else [clock.of(row) for row in rows]
    if args.json:
        facts = [compared_facts(row) for row in compared]
        for one, found in zip(facts, taken, strict=False):
            one["latency"] = latency.facts(found)
        print(json.dumps({"models": facts, "exhibits": [e.facts() for e in beside]}))
        return 0
    cells = [list(PAPER_COLUMNS), *(compared_cells(row) for row in compared)]
    if taken:
        print(latency.heading(taken))
        more = [latency.COLUMNS, *(latency.cells(found) for found in taken)]
        cells = [[*row[:-2], *own, *row[-2:]] for row, own in zip(cells, more, strict=True)]
    if compared:
        show(cells)
    for line in exhibits.lines(beside):
        print(line)
    return 0


def compared_facts(row: Compared) -> dict[str, Any]:
    """A row of the table of papers as plain data; `published` has what the paper prints.

    Returns:
      label, source, params, gflops, published (params in millions, gflops, and in percent top1,
      top5, ap, ap50, ap75; None where nothing is printed), params_delta in millions, gflops_delta
      in percent, note.
    """
    printed = row.published
    params = float(printed.params) if printed.params else None
    gflops = float(printed.gflops) if printed.gflops else None
    return {
        "label": printed.label,
        "source": printed.source,
        "params": row.params,
        "gflops": row.flops / 1e9,
        "published": {
            "params": params,
            "gflops": gflops,
            **{name: getattr(printed, name) or None for name in (*ACCURACIES, *PRECISIONS)},
        },
        "params_delta": None if params is None else row.params / 1e6 - params,
        "gflops_delta": None if gflops is None else 100 * (row.flops / 1e9 / gflops - 1),
        "note": printed.note,
    }


def compared_cells(row: Compared) -> list[str]:
    """A row of the table of papers as text."""
    facts = compared_facts(row)
    params, gflops = facts["params_delta"], facts["gflops_delta"]

    def scores(names: Sequence[str]) -> str:
        printed = [facts["published"][name] for name in names]
        return " / ".join(f"{score:.1f}" for score in printed if score) or "-"

    return [
        row.published.label,
        f"{row.params:,}",
        row.published.params or "-",
        "-" if params is None else f"{params:+.2f}",
        f"{facts['gflops']:.2f}",
        row.published.gflops or "-",
        "-" if gflops is None else f"{gflops:+.1f} %",
        scores(ACCURACIES),
        scores(PRECISIONS),
        row.published.source,
        row.published.note,
    ]


def explain(loaded: load.Loaded, key: str) -> int:
    """Prints the value, meaning, range and origin of one key, or of all keys of a section.

    Raises:
      ConfigError: no such key or section; names the nearest.
    """
    from trainlib.config import flatten
    from trainlib.errors import ConfigError, nearest, shown
    from trainlib.keys import kind_of

    values = flatten(loaded.config)
    schema = families.of(loaded.config).config.schema(values)
    names = [key] if key in values else [k for k in values if k.startswith(key + ".")]
    if not names:
        raise ConfigError(
            f"--explain={key}: there is no such key. {nearest(key, values)}All keys: "
            f"{', '.join(values)}."
        )
    for name in names:
        print(f"{name} = {values[name]!r}")
        print(f"    meaning  {schema[name][1]}")
        print(f"    takes    {kind_of(schema[name]).words}")
        print(f"    set in   {shown(loaded.origin[name])}; default {schema[name][0]!r}")
        if name == "steps" and values.get("epochs"):
            print(f"    but      epochs={values['epochs']:g} sets it when the data are opened")
    return 0


if __name__ == "__main__":
    cli.run(main)
