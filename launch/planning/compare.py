"""`launch.compile --compare`: one line for each value of a key, the fastest first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch import families
from launch.planning import plans

if TYPE_CHECKING:
    from trainlib.chips import Target
    from trainlib.step.plan import Plan

COMPARED = {  # short name -> key, and its values where none are given and not all are meant
    "remat": ("model.remat", ""),
    "decoder_remat": ("model.decoder_remat", "none,dots,minimal,offload,exchange,full"),
    "sharding": ("sharding", ""),
    "optimizer": ("optimizer.name", "adafactor,adamw"),
    "microbatches": ("microbatches", "1,2,4"),
}


def compare(args: Any, overrides: dict[str, str]) -> int:
    """Compiles one variation after the other and prints a line for each, by time; 70 when none
    fits.

    Values that were asked for have to work; of those that the key itself lists, the ones that do
    not go with the rest of the configuration are named and left out.

    Raises:
      ConfigError: there is no such key, or a value of it cannot work.
    """
    from trainlib.errors import ConfigError
    from trainlib.planning.report import columns

    name, _, values = args.compare.partition("=")
    key, usual = COMPARED.get(name, (name, ""))
    asked = values or usual
    if "=" in args.compare and not all(asked.split(",")):
        raise _no_values(args.compare, name)
    options = asked.split(",") if asked else _listed(args, key, name)
    # All are looked at before the first is compiled, which takes minutes.
    wanted: dict[str, tuple[Plan[Any], Target]] = {}
    impossible: dict[str, str] = {}
    for value in options:
        try:
            config = load.from_flags(args.config, overrides | {key: value}).config
            wanted[value] = plans.planned(config, args.target)
        except ConfigError as error:
            if asked or len(impossible) + 1 == len(options):
                raise
            impossible[value] = str(error).partition(". ")[0]
    report_of = plans.cached_reports(args)
    reports = {value: report_of(plan, target) for value, (plan, target) in wanted.items()}
    reports = dict(sorted(reports.items(), key=lambda item: _time(item[1])))
    if args.json:
        print(json.dumps(reports))
    else:
        plan, target = next(iter(wanted.values()))
        print(f"{plan.config.name} on {target.name}, by the time of a step\n{columns(key)}")
        for value, report in reports.items():
            print(columns(value, report))
        for value, reason in impossible.items():
            print(f"{value:<16}left out: {reason}")
    return 0 if any(report["fits"] for report in reports.values()) else plans.EXIT_DOES_NOT_FIT


def _time(report: dict[str, Any]) -> float:
    return report["step_time"]["seconds"] if report["fits"] else float("inf")


def _listed(args: Any, key: str, name: str) -> list[str]:
    """The values that a key lists.

    Raises:
      ConfigError: there is no such key, or it takes values of a range.
    """
    from trainlib.config import flatten
    from trainlib.keys import Choice, Switch, kind_of

    config = load.from_flags(args.config, {}).config
    schema = families.of(config).config.schema(flatten(config))
    kind = kind_of(schema[key]) if key in schema else None
    if isinstance(kind, Switch):
        return ["false", "true"]
    if isinstance(kind, Choice):
        return [str(option) for option in kind.options]
    raise _no_values(name, name, kind.words if kind else "", schema)


def _no_values(given: str, name: str, words: str = "", keys: Any = ()) -> Exception:
    from trainlib.errors import ConfigError, nearest

    close = "" if name in {*COMPARED, *keys} else nearest(name, (*COMPARED, *keys))
    takes = f"{name} takes {words}. " if words else ""
    return ConfigError(
        f"--compare={given} names no values. {close}{takes}Write --compare=KEY=VALUE,VALUE with "
        "any key of the configuration; --compare=KEY takes all values of a key that lists them, "
        f"and {', '.join(COMPARED)} are short names."
    )
