"""How a run stands, from the files in its workdir: `python -m launch.report --workdir=DIR`; of
several, `python -m launch.report runs/a runs/b`, how they stand side by side and in which keys of
the configuration they differ. `--plot=FILE.png` draws their curves over each other, and
`--html=FILE.html` makes one page to look at, of a run or of several.

Reads nothing but JSON, so it may be asked of a run that is training, on any host that sees the
workdir. `--json` prints the same as data.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import cli
from launch.comparing import runs
from trainlib import commands
from trainlib.errors import ConfigError, plain, shown
from trainlib.report.samples import MOST

KINDS = ("train", "eval", "goodput")
HIDDEN = ("step", "kind")  # and names with a slash: what single routers do


def main(argv: Sequence[str]) -> int:
    """Parses the command line and prints the report."""
    parser = cli.command_parser("report", "Say how a run stands.")
    cli.add_path(
        parser,
        "runs",
        metavar="RUN",
        nargs="*",
        help="directory of a run, a folder of runs or a pattern; several are compared",
    )
    cli.add_path(parser, "--workdir", metavar="DIR", action="append", help="the same, as a flag")
    parser.add_argument("--json", action="store_true", help="print JSON")
    cli.add_path(
        parser, "--plot", metavar="FILE.png", help="draw the curves of the runs over each other"
    )
    cli.add_path(
        parser,
        "--html",
        metavar="FILE.html",
        help="make a page to look at, which needs nothing else",
    )
    cli.add_path(
        parser,
        "--compare",
        metavar="RUN",
        nargs="+",
        help="further runs, as if they were named beside the others",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=_count,
        default=6,
        help="of --html: how many answers of the newest checkpoint are shown; 0: none; default: 6. "
        "They are kept in the workdir; where they are not there yet, the model answers here",
    )
    args, overrides = cli.parse(parser, argv)
    if overrides:
        raise ConfigError(
            f"{parser.prog} reads a run as it is; --config.KEY=VALUE changes nothing."
        )
    given = [*(args.workdir or []), *args.runs, *(args.compare or [])]
    if not given:
        parser.error("name a run: its directory, or several of them")
    workdirs = runs.find(given)
    if args.compare and len(workdirs) == 1:
        raise ConfigError(
            f"--compare draws runs over another one, and {shown(workdirs[0])} is the only run that "
            f"is named. Name both: `{commands.name('report')} RUN --compare OTHER`; or leave "
            "--compare out to see this one alone."
        )
    # What is refused is refused before anything is printed.
    if args.html is not None:
        from launch.reporting import make

        make.check(args.html)
    drawn: list[str] = []
    if args.plot is not None:
        from launch.comparing.overlay import draw

        drawn = draw(workdirs, args.plot)
    if len(workdirs) == 1:
        _one(workdirs[0], args.json)
    else:
        _several(workdirs, args.json, page=args.html is not None)
    if drawn and not args.json:
        print(f"\n{', '.join(drawn)} drawn in {args.plot}")
    if args.html is not None:
        from launch.reporting import make

        say = functools.partial(print, file=sys.stderr, flush=True)
        line = make.make(workdirs, args.html, report, args.samples, say, args.compile_cache)
        if not args.json:
            print(f"\n{line}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to {MOST}")
    return int(text)


def _one(workdir: Path, as_json: bool) -> None:
    facts = report(workdir)
    if as_json:
        print(json.dumps(facts))
        return
    from trainlib.run.progress import summary

    print(summary(f"{facts['name']} in {workdir}", rows(facts)))


def _several(workdirs: Sequence[Path], as_json: bool, page: bool) -> None:
    found = [runs.read(workdir, report) for workdir in workdirs]
    if page and "error" in found[0]:
        report(workdirs[0])  # raises what is wrong with it: there is no page without the first run
    if as_json:
        print(json.dumps({"runs": found, "differences": runs.differences(found)}))
        return
    from launch.comparing import table

    print(table.text(found, shutil.get_terminal_size((80, 24)).columns))


def report(workdir: Path, each: runs.Each = lambda record: None) -> dict[str, Any]:
    """What the files of a run say.

    Args:
      workdir: of the run.
      each: is given every record of its metrics, which are read once.

    Returns:
      name, steps (asked for), step (of the last line of metrics), seconds_ago (since that line),
      holder (process and host that hold the workdir; None when nobody does), left_by (the process
      that held it last and ended without giving it back; None after an orderly end), checkpoints
      (step numbers), best (step, metric and value of what `--step=best` takes; None where the run
      keeps no best or measured none), damaged_lines of the metrics, and for each kind of metrics
      its last line:
      train, eval, goodput.

    Raises:
      ConfigError: there is no run in the directory.
      DataError: its metrics are not what a run writes.
    """
    from trainlib.checkpoint import workdir_lock
    from trainlib.config import read_json
    from trainlib.run.metric_writers import read

    if not (workdir / "config.json").is_file():
        raise ConfigError(
            f"--workdir={shown(workdir)} holds no run: there is no config.json in it. Give the "
            f"directory that was the --workdir of `{commands.name('train')}`."
        )
    config = read_json(workdir / "config.json")
    metrics = workdir / "metrics.jsonl"
    last: dict[str, dict[str, Any]] = {}
    damaged: list[int] = []
    for record in read(metrics, damaged.append) if metrics.exists() else ():
        last[record.get("kind", "train")] = record
        each(record)
    held = workdir_lock.holder(workdir)
    gone = held is not None and held.gone is True
    return {
        "name": str(config.get("name", "")),
        "steps": _steps(config.get("steps")),
        "step": max((record["step"] for record in last.values()), default=0),
        "seconds_ago": time.time() - metrics.stat().st_mtime if metrics.exists() else None,
        "holder": held.name if held and not gone else None,
        "left_by": held.name if held and gone else None,
        "sure": held is not None and held.gone is False,
        "checkpoints": _checkpoints(workdir / "checkpoints"),
        "best": _best(workdir / "checkpoints", config.get("checkpoint.best")),
        "damaged_lines": sum(damaged),
        **{kind: last.get(kind, {}) for kind in KINDS},
    }


def _best(folder: Path, metric: Any) -> dict[str, Any] | None:
    from trainlib.checkpoint import manifest

    if not isinstance(metric, str) or not metric:
        return None
    manifests = {}
    for step in _checkpoints(folder):
        # A step that is damaged, of a later version or just being removed is not the best.
        with contextlib.suppress(*manifest.NOT_READ, OSError):
            manifests[step] = manifest.read(folder / str(step))
    best = manifest.best(manifests, metric, larger_is_better=manifest.larger_is_better(metric))
    if best is None:
        return None
    return {"step": best, "metric": metric, "value": manifests[best].metrics[metric]}


def _steps(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ConfigError(
            f"The config.json of this run has steps={shown(repr(value), 60)}, which is no number "
            "of steps: it was changed since."
        )
    return value


def _checkpoints(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(n) for n in names if n.isascii() and n.isdecimal() and len(n) < 20)


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as rows (name, text)."""
    from trainlib.run.goodput import percent, phrase
    from trainlib.run.progress import duration, number

    done = facts["step"] >= facts["steps"]
    ago = "" if facts["seconds_ago"] is None else f", written {duration(facts['seconds_ago'])} ago"
    if facts["holder"]:
        doubt = "" if facts["sure"] else " (or left by it, if it was killed)"
        state = f"held by {facts['holder']}{doubt}"
    elif facts["left_by"]:
        state = (
            f"not running: {facts['left_by']} held it and is gone; rerun the same command to resume"
        )
    else:
        state = "complete" if done else "not running"
    table = [("state", state), ("step", f"{facts['step']} of {facts['steps']}{ago}")]
    for kind in ("train", "eval"):
        figures = [
            f"{plain(name)} {number(value)}"
            for name, value in facts[kind].items()
            if name not in HIDDEN and "/" not in name and isinstance(value, int | float)
        ]
        if figures:
            table.append((f"{kind}, step {facts[kind]['step']}", ", ".join(figures)))
    spent = {n: v for n, v in facts["goodput"].items() if isinstance(v, int | float)}
    if spent:
        speed = spent.get("examples_per_second")
        examples = "unknown" if speed is None else f"{number(speed)} examples/s"
        mfu = f", MFU {percent(spent['mfu'], 1)}" if "mfu" in spent else ""
        table += [("speed", examples + mfu), ("time went to", phrase(spent))]
    table.append(("checkpoints", ", ".join(map(str, facts["checkpoints"])) or "none"))
    if facts["best"]:
        best = facts["best"]
        value = f"{shown(best['metric'])} {number(best['value'])}"
        table.append(("best", f"step {best['step']}, {value}"))
    if facts["damaged_lines"]:
        table.append(("damaged", f"{facts['damaged_lines']} lines of metrics were passed over"))
    return table


if __name__ == "__main__":
    cli.run(main)
