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
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import accuracy, sweep
from launch import cli

CONFIG = "configs/reproduce_small.py"
KINDS = ("conv", "standalone", "augmented")
TITLES = {"conv": "convolution", "standalone": "stand-alone attention", "augmented": "augmented"}
TITLE = "ResNet-26, quarter width"


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the tables, draws the plots."""
    from vitattn import train

    parser = cli.parser("python -m benchmarks.reproduce_small", "Compare three small networks.")
    sweep.add_flags(parser, "runs/reproduce_small")
    parser.add_argument("--cifar100", default="", metavar="DIR", help="where CIFAR-100 lies")
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
        results = [accuracy.measured(run) for run in of_data]
        folder = args.runs / data
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"\n{accuracy.headline(data, results)}")
        print("\n".join(accuracy.table(TITLE, results, TITLES)))
        print(f"plot: {accuracy.plot(data, results, TITLES, folder)}\n", flush=True)
    return 0


def planned(folder: Path, data: str, kind: str, seed: int, overrides: dict[str, str]) -> sweep.Run:
    """One network with one seed, and its workdir."""
    variant = kind if data == "digits" else f"{data}_{kind}"
    return sweep.planned(f"{CONFIG}:{variant}", folder, kind, seed, overrides)


if __name__ == "__main__":
    cli.run(main)
