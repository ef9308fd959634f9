"""What stabilises a small sparse model? The seven settings of ST-MoE's tables 2 to 4.

    make reproduce-stability                     # the rough setting, six seeds: under 2 CPU hours
    python -m benchmarks.reproduce_stability --setting=calm --seeds=3

Trains the variants of configs/st_moe_stability.py, after tables 2 to 4 of ST-MoE (arXiv
2202.08906). A run counts as stable when every update was finite and its held-out cross-entropy ends
at most 0.1 nats above its best. `calm` is that configuration; `rough` a deeper model with more
experts at four times its learning rate, which was searched for because nothing fails in the calm
one: docs/results.md says what was tried. Seeds are the outer loop, so that a command that was
stopped leaves whole comparisons. Each run is a workdir of its own: a stopped sweep goes on where it
was, a finished one is only printed again; a run of another configuration in its place is refused.

The paper's column is of a model 5,000 times larger. The order of quality is compared with the
paper's by Kendall's tau over the settings with a stable run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import sweep
from launch import cli
from launch.reproduce.experiment import Setting
from launch.reproduce.runs import Record
from moe.papers.stability import stability
from trainlib.errors import one_of
from trainlib.papers.exhibit import number

CONFIG = "configs/st_moe_stability.py"
SETTINGS = {
    "rough": {
        "model.encoder_blocks": "6",
        "model.decoder_blocks": "6",
        "model.sparse_period": "2",
        "routing.num_experts": "8",
        "batch_size": "8",
        "steps": "200",
        "eval_every": "50",
        "eval_batches": "16",
        "checkpoint.every": "200",
        "schedule.learning_rate": "20",
    },
    "calm": {},
}
# Variant -> its title, and its row in tables 2 to 4 of the paper.
KINDS = {
    "": ("baseline", "Baseline"),
    "z_loss": ("router z-loss", "Router Z-Loss"),
    "jitter": ("input jitter 1e-2", "Input jitter (1e-2)"),
    "dropout": ("dropout 0.1", "Dropout (0.1)"),
    "relu": ("no GEGLU", "Remove GEGLU"),
    "no_scale": ("no RMSNorm scale", "Remove RMS Norm. Scale Param"),
    "clip": ("update clip 0.1", "Update clipping (clip = 0.1)"),
}
PUBLISHED = {label: cells for exhibit in stability() for label, cells in exhibit.rows}
COLUMNS = ("setting", "stable", "mean of stable", "sd", "each seed", "largest |logit|", "paper")


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the table, draws the plot."""
    from moe import train

    parser = cli.parser(
        "python -m benchmarks.reproduce_stability", "Compare stability interventions."
    )
    sweep.add_flags(parser, "runs/reproduce_stability", seeds=6)
    parser.add_argument("--setting", default="rough", metavar="NAME", help=", ".join(SETTINGS))
    args, overrides = cli.parse(parser, argv)
    if args.setting not in SETTINGS:
        raise one_of("--setting", args.setting, SETTINGS)
    folder = args.runs / args.setting
    given = SETTINGS[args.setting] | overrides
    runs = [planned(folder, kind, seed, given) for seed in range(args.seeds) for kind in KINDS]
    sweep.check(runs)
    sweep.complete(runs, sweep.costed(train.run))
    results = [measured(run) for run in runs]
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print_table(results)
    print(f"all runs: {sum(r.get('cpu_seconds', 0.0) for r in results) / 60:.1f} CPU minutes")
    print(f"plot: {plot(results, folder)}\n", flush=True)
    return 0


def planned(folder: Path, kind: str, seed: int, overrides: dict[str, str]) -> sweep.Run:
    """One setting with one seed, and its workdir."""
    name = f"{CONFIG}:{kind}" if kind else CONFIG
    return sweep.planned(name, folder, kind, seed, overrides, kind or "baseline")


def measured(run: sweep.Run) -> dict[str, Any]:
    """The figures of a finished run, from its files."""
    record = Record(Setting(run.kind, CONFIG), run.seed, run.workdir)
    return {
        "kind": run.kind,
        "seed": run.seed,
        "stable": bool(record.stable),
        "cross_entropy": record.last("cross_entropy"),
        "max_logit": record.largest("max_logit"),
        "curve": record.curve("cross_entropy", "eval"),
        "train": record.curve("cross_entropy", "train"),
        **sweep.cost(run),
        "workdir": str(run.workdir),
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints stable runs, mean and spread over the stable ones, and every seed."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for kind, (title, row) in KINDS.items():
        runs = [result for result in results if result["kind"] == kind]
        stable = stable_qualities(results, kind)
        rows.append(
            (
                title,
                f"{len(stable)}/{len(runs)}",
                f"{statistics.mean(stable):.3f}" if stable else "-",
                f"{statistics.stdev(stable):.3f}" if len(stable) > 1 else "-",
                ", ".join(f"{-r['cross_entropy']:.3f}" for r in runs),
                f"{max(r['max_logit'] for r in runs):.1f}",
                "  ".join(PUBLISHED[row]),
            )
        )
    print("\nNegative held-out cross-entropy (nats a token) after the last step")
    print("\n".join(sweep.aligned(rows)))
    tau, kinds = agreement(results)
    print(f"order of quality beside the paper's: Kendall's tau {tau:.2f} over {kinds} settings")


def stable_qualities(results: list[dict[str, Any]], kind: str) -> list[float]:
    """The negative cross-entropies of the stable runs of a kind, after the last step."""
    return [-r["cross_entropy"] for r in results if r["kind"] == kind and r["stable"]]


def agreement(results: list[dict[str, Any]]) -> tuple[float, int]:
    """Kendall's tau between the mean qualities here and in the paper, and over how many settings:
    those with a stable run. NaN of fewer than two.
    """
    from scipy.stats import kendalltau

    pairs = [
        (statistics.mean(stable), number(PUBLISHED[row][1]))
        for kind, (_, row) in KINDS.items()
        if (stable := stable_qualities(results, kind))
    ]
    if len(pairs) < 2:
        return math.nan, len(pairs)
    found: Any = kendalltau(*zip(*pairs, strict=True))  # scipy has no types
    return float(found.statistic), len(pairs)


def plot(results: list[dict[str, Any]], folder: Path) -> Path:
    """Draws the training loss of every run and its held-out loss, one colour a setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, curve, title in zip(
        panels, ("train", "curve"), ("training", "held out"), strict=True
    ):
        for place, (kind, (label, _)) in enumerate(KINDS.items()):
            for result in results:
                if result["kind"] == kind:
                    steps, values = zip(*result[curve], strict=True)
                    name = label if result["seed"] == 0 else None
                    axes.plot(steps, values, color=f"C{place}", alpha=0.6, lw=1, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("cross-entropy, nats a token")
    panels[1].legend(fontsize=8)
    path = folder / "stability.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    cli.run(main)
