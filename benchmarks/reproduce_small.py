"""Do the three kinds of network learn? Equal budgets, several seeds, a table and a plot.

    make reproduce-small                                   # digits, 12 to 15 minutes on 2 cores
    python -m benchmarks.reproduce_small --cifar100=DIR    # and CIFAR-100, where it lies in DIR

Trains the variants of configs/reproduce_small.py; each run is a workdir of its own, as
`launch.train` makes it, so a stopped comparison goes on where it was and a finished one is only
printed again; one of another configuration in its place is refused. The table has the accuracy
after the last step on the whole test split: mean, sample standard deviation and every seed. It says
which of these small networks learned what in this budget, and nothing about the papers' models.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import sweep
from configs.common import load
from launch import cli

CONFIG = "configs/reproduce_small.py"
KINDS = ("conv", "standalone", "augmented")
TITLES = {"conv": "convolution", "standalone": "stand-alone attention", "augmented": "augmented"}
COLUMNS = ("ResNet-26, quarter width", "parameters", "top-1 mean", "sd", "each seed")


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the tables, draws the plots."""
    from vitattn import train

    parser = cli.parser("python -m benchmarks.reproduce_small", "Compare three small networks.")
    parser.add_argument("--runs", default="runs/reproduce_small", type=Path, metavar="DIR")
    parser.add_argument("--cifar100", default="", metavar="DIR", help="where CIFAR-100 lies")
    parser.add_argument("--seeds", default=3, type=int, metavar="N", help="seeds of each network")
    parser.add_argument("--steps", default=0, type=int, metavar="N", help="0: as configured")
    args, overrides = cli.parse(parser, argv)
    if args.steps:
        overrides["steps"] = str(args.steps)
    settings = {"digits": {}} | ({"cifar100": {"data.dir": args.cifar100}} if args.cifar100 else {})
    runs = {
        data: [
            planned(args.runs / data, data, kind, seed, overrides | values)
            for seed in range(args.seeds)
            for kind in KINDS
        ]
        for data, values in settings.items()
    }
    sweep.check([run for of_data in runs.values() for run in of_data])
    for data, of_data in runs.items():
        sweep.complete(of_data, train.run)
        results = [measured(run) for run in of_data]
        folder = args.runs / data
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print_table(data, results)
        print(f"plot: {plot(data, results, folder)}\n", flush=True)
    return 0


def planned(folder: Path, data: str, kind: str, seed: int, overrides: dict[str, str]) -> sweep.Run:
    """One network with one seed, and its workdir."""
    variant = kind if data == "digits" else f"{data}_{kind}"
    config = load.from_flags(f"{CONFIG}:{variant}", overrides | {"seed": str(seed)}).config
    # The budget is part of the name: a run is never prolonged past the end of its schedule.
    return sweep.Run(kind, seed, config, folder / f"{kind}_{config.steps}_steps_seed{seed}")


def measured(run: sweep.Run) -> dict[str, Any]:
    """The figures of a finished run, from its files."""
    from trainlib.model.weights import abstract
    from trainlib.run.metric_writers import read
    from vitattn.models import build

    summary = json.loads((run.workdir / "summary.json").read_text())
    lines = [r for r in read(run.workdir / "metrics.jsonl") if r.get("kind") == "eval"]
    return {
        "kind": run.kind,
        "seed": run.seed,
        "steps": run.config.steps,
        "batch_size": run.config.batch_size,
        "params": abstract(build(run.config.model)).param_count,
        "top1": summary["top1"],
        "examples": summary["examples"],
        "curve": [(line["step"], line["top1"]) for line in lines],
        "workdir": str(run.workdir),
    }


def of_kind(results: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The runs of one kind of network."""
    return [result for result in results if result["kind"] == kind]


def print_table(data: str, results: list[dict[str, Any]]) -> None:
    """Prints mean, spread and every seed of each kind."""
    one = results[0]
    rows: list[tuple[str, ...]] = [COLUMNS]
    for kind in KINDS:
        runs = of_kind(results, kind)
        top1 = [100 * result["top1"] for result in runs]
        rows.append(
            (
                TITLES[kind],
                f"{runs[0]['params']:,}",
                f"{statistics.mean(top1):.2f} %",
                f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-",
                ", ".join(f"{value:.2f}" for value in top1),
            )
        )
    print(
        f"\n{data}: top-1 on {one['examples']:,} test images after {one['steps']} steps of "
        f"{one['batch_size']} images, {len(results) // len(KINDS)} seeds"
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def plot(data: str, results: list[dict[str, Any]], folder: Path) -> Path:
    """Draws accuracy over steps (mean and range of the seeds) and the last one of each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, ends = figure.subplots(1, 2, width_ratios=(2, 1))
    for number, kind in enumerate(KINDS):
        runs, colour = of_kind(results, kind), f"C{number}"
        steps = [step for step, _ in runs[0]["curve"]]
        by_step = list(zip(*([100 * v for _, v in r["curve"]] for r in runs), strict=True))
        curves.plot(
            steps,
            [statistics.mean(v) for v in by_step],
            "o-",
            color=colour,
            markersize=3,
            label=TITLES[kind],
        )
        lows, highs = [min(v) for v in by_step], [max(v) for v in by_step]
        curves.fill_between(steps, lows, highs, color=colour, alpha=0.2)
        last = [100 * result["top1"] for result in runs]
        ends.plot([number] * len(last), last, "o", color=colour, alpha=0.7)
        ends.plot([number - 0.2, number + 0.2], [statistics.mean(last)] * 2, color=colour)
    one = results[0]
    curves.set_title(f"{data}, {one['examples']:,} test images", fontsize=10)
    curves.set_xlabel(f"step of {one['batch_size']} images")
    curves.set_ylabel("top-1, % (mean and range of seeds)")
    curves.legend(fontsize=8)
    ends.set_title(f"after {one['steps']} steps: each seed, mean", fontsize=10)
    ends.set_xticks(range(len(KINDS)), KINDS, fontsize=8)
    ends.set_xlim(-0.5, len(KINDS) - 0.5)
    for axes in (curves, ends):
        axes.grid(alpha=0.3)
    path = folder / "top1.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    cli.run(main)
