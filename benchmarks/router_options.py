"""What the options of routers do to a small model: quality, balance and drops of each.

    python -m benchmarks.router_options --runs=runs/router_options

Trains `configs/st_moe_tiny.py`, made smaller and with two sparse blocks of eight experts in each
stack, once for each option and seed: the options that ST-MoE (arXiv 2202.08906, appendices C and J)
reports without gain, and those of today's routers. Every option starts from the same weights and
reads the same batches as the baseline of its seed, as far as it has the same weights. What is added
to the loss of training is not in the quality, which is held-out cross-entropy.

Each run is a workdir of its own: a stopped sweep goes on where it was, and `--table` prints what is
finished. A model of 0.7 million parameters and a few hundred steps says how an option behaves, not
what it is worth at scale.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import sweep
from configs.common import load
from launch import cli
from trainlib.errors import one_of

CONFIG = "configs/st_moe_tiny.py"
SMALLER = {
    **{"model.d_model": "32", "model.d_ff": "64", "model.num_heads": "2", "model.head_dim": "16"},
    **{"model.encoder_blocks": "2", "model.decoder_blocks": "2", "model.sparse_period": "1"},
    **{"routing.num_experts": "8", "routing.group_sequences": "4"},
    **{"data.encoder_length": "64", "data.decoder_length": "32", "data.workers": "0"},
    **{"batch_size": "16", "steps": "200", "eval_every": "200", "checkpoint.every": "200"},
    **{"log_every": "10", "eval_batches": "20", "checkpoint.keep": "1"},
}
# Option -> (what it is, its keys).
PAPER = {
    "history": ("how often layers took a token, to the router", {"model.router_history": "true"}),
    "embedding": ("embedding of the expert, in the output", {"model.expert_embedding": "true"}),
    "dropout": ("noise: dropout 0.1", {"model.dropout": "0.1"}),
    "whole": ("noise: whole experts dropped, 0.1", {"routing.whole_expert_dropout": "0.1"}),
    "entropy": ("noise: loss for entropy, 0.01", {"routing.entropy_loss_weight": "0.01"}),
    "later": ("balance of the later choices, 0.5", {"routing.later_balance_weight": "0.5"}),
    "word": ("router sees words alone", {"model.router_input": "word"}),
    "both": ("router sees words, added", {"model.router_input": "both"}),
    "stopped": (
        "the same, without its gradient into words",
        {"model.router_input": "both", "model.router_input_gradient": "false"},
    ),
    "additive": ("additive expert bias", {"model.expert_bias": "additive"}),
    "multiplicative": ("multiplicative expert bias", {"model.expert_bias": "multiplicative"}),
}
TODAY = {
    "sigmoid": ("sigmoid scores", {"routing.scores": "sigmoid"}),
    "bias": (
        "bias in place of a balance loss",
        {"routing.balance_bias": "true", "routing.bias_update_rate": "0.01"}
        | {"routing.balance_loss_weight": "0"},
    ),
    "none": ("no balance loss, no bias", {"routing.balance_loss_weight": "0"}),
    "shared": ("one shared expert", {"model.shared_experts": "1"}),
    "fine": (
        "fine-grained: 16 experts of half the width, top-4",
        {"routing.num_experts": "16", "routing.top_k": "4", "model.expert_d_ff": "32"}
        | {"routing.capacity_factor": "2.5", "routing.capacity_factor_eval": "4"},
    ),
    "groups": (
        "4 groups of experts, 2 for each token",
        {"routing.expert_groups": "4", "routing.groups_per_token": "2"},
    ),
    "sequence": ("balance of each sequence", {"routing.balance_over": "sequence"}),
    "batch": ("balance of the batch", {"routing.balance_over": "batch"}),
}
KINDS: Mapping[str, tuple[str, dict[str, str]]] = {"": ("baseline", {})} | PAPER | TODAY
LATE = 0.25  # share of the training records, the last ones, that balance and drops are the mean of
HEADER = (
    "option",
    "held-out cross-entropy",
    "against the baseline",
    "violation, mean of layers",
    "largest",
    "dropped choices",
    "dropped tokens",
)


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, and prints the table."""
    from moe import train

    parser = cli.parser("python -m benchmarks.router_options", "Compare options of routers.")
    parser.add_argument("--runs", default="runs/router_options", type=Path, metavar="DIR")
    parser.add_argument("--seeds", default=3, type=int, metavar="N", help="seeds of each option")
    parser.add_argument(
        "--options", default=",".join(KINDS), metavar="NAMES", help="some of them, by comma"
    )
    parser.add_argument("--table", action="store_true", help="train nothing, print what there is")
    args, overrides = cli.parse(parser, argv)
    kinds = [kind.strip() for kind in args.options.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise one_of("--options", kind, [name or "'' (the baseline)" for name in KINDS])
    runs = [
        planned(args.runs, kind, seed, overrides) for seed in range(args.seeds) for kind in kinds
    ]
    if not args.table:
        sweep.check(runs)
        sweep.complete(runs, train.run)
    finished = [run for run in runs if (run.workdir / "summary.json").exists()]
    print("\n".join(table([measured(run) for run in finished])), flush=True)
    return 0


def planned(folder: Path, kind: str, seed: int, overrides: dict[str, str]) -> sweep.Run:
    """One option with one seed, and its workdir."""
    keys = SMALLER | KINDS[kind][1] | overrides | {"seed": str(seed)}
    config = load.from_flags(CONFIG, keys).config
    return sweep.Run(kind, seed, config, folder / f"{kind or 'baseline'}_seed{seed}")


def measured(run: sweep.Run) -> dict[str, Any]:
    """The figures of a finished run, from its metrics.jsonl."""
    from trainlib.run.metric_writers import read

    lines = list(read(run.workdir / "metrics.jsonl"))
    training = [line for line in lines if line["kind"] == "train"]
    late = training[-max(1, round(LATE * len(training))) :]
    evaluated = [line["cross_entropy"] for line in lines if line["kind"] == "eval"]
    return {"kind": run.kind, "seed": run.seed, "loss": evaluated[-1]} | balance(late)


def balance(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Violation max_e load_e * E - 1, its mean over records and layers and that of the worst layer;
    and the shares of choices and tokens that were dropped, in all layers.
    """
    layers = {name.rpartition("/")[0] for name in records[0] if "/load_" in name}
    violations = {}
    for layer in sorted(layers):
        loads = [
            [v for n, v in record.items() if n.startswith(f"{layer}/load_")] for record in records
        ]
        violations[layer] = statistics.mean(max(load) * len(load) - 1 for load in loads)
    dropped = {
        name: statistics.mean(record[f"{layer}/{name}"] for record in records for layer in layers)
        for name in ("dropped_choices", "dropped_tokens")
    }
    return {
        "violation": statistics.mean(violations.values()),
        "largest": max(violations.values()),
        **dropped,
    }


def table(results: Iterable[dict[str, Any]]) -> list[str]:
    """Lines of a table in Markdown; differences are of equal seeds, mean and range."""
    by_kind: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_kind.setdefault(result["kind"], {})[result["seed"]] = result
    base = by_kind.get("", {})
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    for kind, (title, _) in KINDS.items():
        runs = by_kind.get(kind)
        if not runs:
            continue
        differences = [runs[s]["loss"] - base[s]["loss"] for s in sorted(runs) if s in base]
        against = "-"
        if kind and differences:
            against = (
                f"{statistics.mean(differences):+.3f} "
                f"({min(differences):+.3f} to {max(differences):+.3f})"
            )
        means = {
            name: statistics.mean(run[name] for run in runs.values())
            for name in ("loss", "violation", "largest", "dropped_choices", "dropped_tokens")
        }
        cells = (
            title,
            f"{means['loss']:.3f}",
            against,
            f"{means['violation']:.2f}",
            f"{means['largest']:.2f}",
            f"{100 * means['dropped_choices']:.1f} %",
            f"{100 * means['dropped_tokens']:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({seed for runs in by_kind.values() for seed in runs})
    return [*lines, "", f"Seeds: {', '.join(map(str, seeds))}."]


if __name__ == "__main__":
    cli.run(main)
