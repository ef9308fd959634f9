"""Is attention better than convolution on real images at equal parameters, and do positions matter?

    make reproduce-fashion                   # Fashion-MNIST where Debian's package puts it
    make reproduce-fashion FASHION=DIR       # or in a folder with the four published files

Trains the variants of configs/reproduce_fashion.py with several seeds at equal budgets; the first
seed of all networks comes first. Each run is a workdir of its own, as `launch.train` makes it: a
comparison that was stopped goes on from the last checkpoint, what is finished is only printed
again, and a run of another configuration in its place is refused. It prints the top-1 accuracy of
the weights after the last step on the 10,000 test images (mean, sample standard deviation and each
seed), parameters, FLOPs of an image and CPU time with compilation and evaluation, and draws them.

    python -m benchmarks.reproduce_fashion --validation   # on held-out images, to choose a recipe
    python -m benchmarks.reproduce_fashion --table        # train nothing, print what is finished
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import accuracy, sweep
from launch import cli

CONFIG = "configs/reproduce_fashion.py"
TITLES = {
    "conv": "convolution",
    "aa": "augmented",
    "aa_none": "augmented, no positions",
    "sasa": "stand-alone attention",
    "sasa_none": "stand-alone, no positions",
}
GOAL = 0.935  # top-1 of the best of them
VALIDATION = {"data.holdout": "0.1", "data.eval_split": "holdout"}


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the table, draws the plot."""
    from vitattn import train

    parser = cli.parser("python -m benchmarks.reproduce_fashion", "Compare small networks.")
    parser.add_argument("--fashion", default="", metavar="DIR", help="where Fashion-MNIST lies")
    sweep.add_flags(parser, "runs/reproduce_fashion")
    parser.add_argument("--kinds", default=",".join(TITLES), metavar="A,B", help="which of them")
    parser.add_argument(
        "--validation", action="store_true", help="evaluate on held-out training images instead"
    )
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    args, overrides = cli.parse(parser, argv)
    data = {"data.dir": args.fashion} | (VALIDATION if args.validation else {})
    folder = args.runs / ("holdout" if args.validation else "test")
    runs = [
        sweep.planned(f"{CONFIG}:{kind}", folder, kind, seed, data | overrides)
        for seed in range(args.seeds)
        for kind in sweep.named("--kinds", args.kinds, TITLES)
    ]
    sweep.check(runs)
    if not args.table:
        sweep.complete(runs, sweep.costed(train.run))
    results = [accuracy.measured(run) for run in runs if sweep.finished(run)]
    print(f"{len(results)} of {len(runs)} runs are finished")
    if results:
        report("Fashion-MNIST", results, folder)
    return 0


def report(data: str, results: Sequence[accuracy.Result], folder: Path) -> None:
    """Prints the table, what all of it cost and the goal; draws the plot."""
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{accuracy.headline(data, results)}")
    print("\n".join(accuracy.table("ResNet of three stages", results, TITLES)))
    print(f"all runs: {sum(result['cpu_seconds'] for result in results) / 60:.1f} CPU minutes")
    means = {
        kind: statistics.mean(run["top1"] for run in accuracy.of_kind(results, kind))
        for kind in {result["kind"] for result in results}
    }
    best = max(means, key=lambda kind: means[kind])
    said = "met" if means[best] >= GOAL else "missed"
    print(f"goal, top-1 of the best at least {100 * GOAL:g} %: {said} ({TITLES[best]})")
    print(f"plot: {accuracy.plot(data, results, TITLES, folder)}", flush=True)


if __name__ == "__main__":
    cli.run(main)
