"""Classifiers of a sweep compared by their top-1 accuracy: figures, table and picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import sweep

Result = dict[str, Any]  # of a run: see `measured`
COLUMNS = ("parameters", "MFLOP", "top-1 mean", "sd", "each seed")


def measured(run: sweep.Run) -> Result:
    """The figures of a finished run, from its files; FLOPs are those of one image."""
    from trainlib.model.weights import abstract
    from trainlib.run.metric_writers import read
    from vitattn.models import build, configure
    from vitattn.models.counts import forward_flops

    summary = json.loads((run.workdir / "summary.json").read_text())
    lines = [r for r in read(run.workdir / "metrics.jsonl") if r.get("kind") == "eval"]
    model = abstract(build(run.config.model))
    return {
        "kind": run.kind,
        "seed": run.seed,
        "steps": run.config.steps,
        "batch_size": run.config.batch_size,
        "params": model.param_count,
        "flops": forward_flops(model, configure(run.config.model).size),
        "top1": summary["top1"],
        "examples": summary["examples"],
        "curve": [(line["step"], line["top1"]) for line in lines],
        **sweep.cost(run),
        "workdir": str(run.workdir),
    }


def of_kind(results: Iterable[Result], kind: str) -> list[Result]:
    """The runs of one kind of network."""
    return [result for result in results if result["kind"] == kind]


def table(title: str, results: Sequence[Result], titles: Mapping[str, str]) -> list[str]:
    """Lines with mean, sample standard deviation and every seed of each kind, and what it cost.

    Args:
      title: heads the first column.
      results: of `measured`, of at least one run.
      titles: kind -> what it is called; kinds without a run are left out.
    """
    costed = all("cpu_seconds" in result for result in results)
    rows: list[tuple[str, ...]] = [(title, *COLUMNS, *(("CPU s a run",) if costed else ()))]
    for kind, name in titles.items():
        if not (runs := of_kind(results, kind)):
            continue
        top1 = [100 * result["top1"] for result in runs]
        row = [
            name,
            f"{runs[0]['params']:,}",
            f"{runs[0]['flops'] / 1e6:.1f}",
            f"{statistics.mean(top1):.2f} %",
            f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-",
            ", ".join(f"{value:.2f}" for value in top1),
        ]
        if costed:
            row.append(", ".join(f"{result['cpu_seconds']:.0f}" for result in runs))
        rows.append(tuple(row))
    return sweep.aligned(rows)


def headline(data: str, results: Sequence[Result]) -> str:
    """What the figures of a table are of."""
    one = results[0]
    seeds = len({result["seed"] for result in results})
    return (
        f"{data}: top-1 on {one['examples']:,} test images after {one['steps']} steps of "
        f"{one['batch_size']} images, {seeds} seeds"
    )


def plot(data: str, results: Sequence[Result], titles: Mapping[str, str], folder: Path) -> Path:
    """Draws accuracy over steps (mean and range of the seeds) and the last one of each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, ends = figure.subplots(1, 2, width_ratios=(2, 1))
    kinds = [kind for kind in titles if of_kind(results, kind)]
    for number, kind in enumerate(kinds):
        runs, colour = of_kind(results, kind), f"C{number}"
        steps = [step for step, _ in runs[0]["curve"]]
        by_step = list(zip(*([100 * v for _, v in r["curve"]] for r in runs), strict=True))
        curves.plot(
            steps,
            [statistics.mean(v) for v in by_step],
            "o-",
            color=colour,
            markersize=3,
            label=titles[kind],
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
    ends.set_xticks(range(len(kinds)), kinds, fontsize=8)
    ends.set_xlim(-0.5, len(kinds) - 0.5)
    for axes in (curves, ends):
        axes.grid(alpha=0.3)
    path = folder / "top1.png"
    figure.savefig(path, dpi=110)
    return path
