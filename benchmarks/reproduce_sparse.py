"""Does sparsity pay on the Brown corpus, and from how many tokens on? A table and a picture.

    make reproduce-sparse BROWN=DIR         # about 60 CPU minutes
    python -m benchmarks.reproduce_sparse --brown=DIR --so-far        # what is there by now

Trains the variants of configs/reproduce_sparse.py: a sparse model, a dense one of equal FLOPs a
token and a dense one of equal parameters, by bytes and by a SentencePiece vocabulary, which is
trained first, on the training texts alone. Seeds are the outer loop, so that a command that was
stopped leaves whole comparisons. Each run is a workdir of its own, as `launch.train` makes it: a
stopped one goes on from its checkpoint, a finished one is only printed again. With more time, give
more `--steps`.

The rate of learning does not depend on how many steps a run has, so that runs which are not
finished can be compared with `--so-far`: after the last step that all of them have evaluated.

Losses are nats a target token. Those of bytes and of pieces are not compared: spans of three tokens
are hidden, which are three letters of a word or three words, and so are not one task.

CPU time is that of training steps alone, from the median of a run (`benchmarks.harness.cpu_clock`).
"""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.harness import cpu_clock, sweep
from configs.common import load
from launch import cli
from trainlib import commands
from trainlib.errors import ConfigError, DataError, shown

CONFIG = "configs/reproduce_sparse.py"
SPARSE, DENSE = "sparse", ("dense_flops", "dense_params")
TITLES = {
    SPARSE: "sparse, 8 experts",
    "dense_flops": "dense, equal FLOPs",
    "dense_params": "dense, equal parameters",
}
VOCABULARIES = {"bytes": "", "pieces": "_pieces"}  # name -> what follows the variant
COLUMNS = (
    "model",
    "parameters",
    "MFLOP a row",
    "CPU s a step",
    "nats a token",
    "sd",
    "each seed",
)

Result = dict[str, Any]
Curve = list[tuple[float, float]]


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the tables, draws the picture."""
    from moe import train

    parser = cli.parser("python -m benchmarks.reproduce_sparse", "Compare sparse and dense models.")
    cli.add_path(parser, "--brown", required=True, metavar="DIR", help="the Brown corpus")
    sweep.add_flags(parser, "runs/reproduce_sparse")
    parser.add_argument("--steps", default=0, type=int, metavar="N", help="0: as configured")
    parser.add_argument(
        "--vocabularies", default=",".join(VOCABULARIES), metavar="A,B", help="bytes, pieces"
    )
    parser.add_argument("--kinds", default=",".join(TITLES), metavar="A,B", help="which models")
    parser.add_argument(
        "--so-far", action="store_true", help="print what is measured by now, and train nothing"
    )
    args, overrides = cli.parse(parser, argv)
    vocabularies = sweep.named("--vocabularies", args.vocabularies, VOCABULARIES)
    kinds = sweep.named("--kinds", args.kinds, TITLES)
    if not args.brown.is_dir():
        raise DataError(f"--brown={shown(args.brown)} is no folder.")
    given = {"data.source": f"brown:{args.brown}", "writers.extra": cpu_clock.NAME} | overrides
    if args.steps:
        given["steps"] = str(args.steps)
    words = {"bytes": {}}
    if "pieces" in vocabularies:
        words["pieces"] = {
            "data.vocabulary": f"sentencepiece:{pieces(args.runs, given, train=not args.so_far)}"
        }
    runs = [
        planned(args.runs, kind, vocabulary, seed, given | words[vocabulary])
        for seed in range(args.seeds)
        for vocabulary in vocabularies
        for kind in kinds
    ]
    sweep.check(runs)
    if not args.so_far:
        sweep.complete(runs, sweep.costed(train.run))
    results = [result for run in runs if (result := measured(run))["curve"]]
    if not results:
        print("Nothing is evaluated yet.", flush=True)
        return 0
    (args.runs / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for vocabulary in vocabularies:
        if of_vocabulary := [r for r in results if r["vocabulary"] == vocabulary]:
            print_table(vocabulary, of_vocabulary, args.seeds)
    spent = sum(result.get("cpu_seconds", 0.0) for result in results) / 60
    print(f"\nall: {spent:.1f} CPU minutes with compilation and evaluation")
    print(f"plot: {plot(results, args.runs)}\n", flush=True)
    return 0


def pieces(folder: Path, overrides: dict[str, str], *, train: bool = True) -> Path:
    """Trains a SentencePiece vocabulary on the training texts, with the ids of T5 and as many
    pieces as the model has words beside the sentinels; one that is there is kept, and without
    `train` only its name is told.

    Raises:
      ConfigError: the package sentencepiece is not installed.
      DataError: the corpus is too small for so many; or see `moe.text.brown`.
    """
    from moe.text.brown import Brown
    from moe.text.fingerprint import digest
    from trainlib.files import write_atomically

    config = load.from_flags(f"{CONFIG}:{SPARSE}_pieces", overrides).config
    size = config.model.vocab_size - config.data.extra_ids
    corpus = Brown(config.data.source.partition(":")[2], config.data.holdout, False)
    settings = {
        "vocab_size": size,
        "model_type": "unigram",
        "byte_fallback": True,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "num_threads": 1,  # sums of several threads would come in another order each time
        "minloglevel": 2,
    }
    known = digest(corpus.fingerprint(), config.data.holdout, settings)
    path = folder / f"brown_{size}_{known}.model"
    if path.exists() or not train:
        return path
    try:
        import sentencepiece  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise ConfigError(
            "A vocabulary of pieces needs the package sentencepiece: "
            f"{commands.install('text')}, or leave it out with --vocabularies=bytes."
        ) from None
    print(f"training a vocabulary of {size:,} pieces: {path}", flush=True)
    lines = (
        line
        for document in corpus.documents(0, 1)
        for line in document.text["targets"].splitlines()
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, max_sentence_length=1 << 20, **settings
        )
    except RuntimeError as error:
        raise DataError(
            f"No vocabulary of {size:,} pieces can be made of {corpus.name} ({shown(error)}). Take "
            "--vocabularies=bytes, or another --config.model.vocab_size."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, model.getvalue())
    return path


def planned(
    folder: Path, kind: str, vocabulary: str, seed: int, overrides: dict[str, str]
) -> sweep.Run:
    """One model with one seed, and its workdir."""
    variant = kind + VOCABULARIES[vocabulary]
    return sweep.planned(f"{CONFIG}:{variant}", folder, variant, seed, overrides)


def measured(run: sweep.Run) -> Result:
    """The figures of a run, from its files; without curves where it has not begun."""
    from moe.describe import describe
    from trainlib.run.metric_writers import read

    file = run.workdir / "metrics.jsonl"
    lines = list(read(file)) if file.exists() else []
    summary = {}
    if sweep.finished(run):
        summary = json.loads((run.workdir / "summary.json").read_text())
    facts = describe(run.config)
    kind = run.kind.removesuffix(VOCABULARIES["pieces"])
    return {
        "kind": kind,
        "vocabulary": "bytes" if kind == run.kind else "pieces",
        "seed": run.seed,
        "steps": run.config.steps,
        "tokens_a_step": run.config.batch_size * text_tokens(run.config),
        "params": facts["params"],
        "flops": facts["flops_per_example"],
        "finished": bool(summary),
        "unigram": summary.get("unigram_entropy"),
        "tokens": summary.get("tokens"),
        "curve": [(r["step"], r["cross_entropy"]) for r in lines if r["kind"] == "eval"],
        "train": [(r["step"], r["cross_entropy"]) for r in lines if r["kind"] == "train"],
        "step_cpu_seconds": cpu_clock.seconds_a_step(run.workdir),
        **sweep.cost(run),
        "workdir": str(run.workdir),
    }


def text_tokens(config: ConfigDict) -> int:
    """How many tokens of text become a row: before some of them are hidden."""
    from moe.data.denoisers.span_corruption import SpanCorruption, window_length

    data, size = config.data, config.model.vocab_size
    corruption = SpanCorruption(data.noise_density, data.mean_span, size)
    return window_length(data.encoder_length, data.decoder_length, data.extra_ids, corruption)


def last_common(results: Sequence[Result]) -> int:
    """How many evaluations all of some runs have."""
    return min(len(result["curve"]) for result in results)


def of_kind(results: Sequence[Result], kind: str) -> list[Result]:
    """The runs of one kind of model."""
    return [result for result in results if result["kind"] == kind]


def mean_curve(results: Sequence[Result], *, cpu: bool = False) -> Curve:
    """The mean held-out loss of some runs over tokens of text, or over CPU seconds of training."""
    one = results[0]
    unit = one["tokens_a_step"]
    if cpu:
        unit = statistics.mean(result["step_cpu_seconds"] for result in results)
    by_step = zip(*(result["curve"][: last_common(results)] for result in results), strict=True)
    return [(at[0][0] * unit, statistics.mean(value for _, value in at)) for at in by_step]


def pays_from(sparse: Curve, dense: Curve) -> float | None:
    """From where on the sparse curve stays below the dense one, as far as both go; None if at the
    end it does not, NaN if they have nothing in common.

    Args:
      sparse: (tokens or seconds, loss), of each evaluation.
      dense: the same; they are compared at the evaluations of either, and between two of its own a
        curve is taken as straight.
    """
    curves = [np.asarray(curve).T for curve in (sparse, dense)]
    first, last = (f(places[end] for places, _ in curves) for f, end in ((max, 0), (min, -1)))
    places = np.unique(np.concatenate([places for places, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):
        return math.nan
    ours, theirs = (np.interp(places, *curve) for curve in curves)
    above = np.flatnonzero(ours >= theirs)
    if not len(above):
        return float(places[0])
    return None if above[-1] == len(places) - 1 else float(places[above[-1] + 1])


def print_table(vocabulary: str, results: list[Result], seeds: int) -> None:
    """Prints each model with every seed, and what sparsity gives or takes."""
    last = last_common(results) - 1
    one = next((result for result in results if result["finished"]), results[0])
    rows: list[tuple[str, ...]] = [COLUMNS]
    for kind, title in TITLES.items():
        if not (runs := of_kind(results, kind)):
            rows.append((title, *["no run"] * (len(COLUMNS) - 1)))
            continue
        losses = [run["curve"][last][1] for run in runs]
        rows.append(
            (
                title,
                f"{runs[0]['params']:,}",
                f"{runs[0]['flops'] / 1e6:.1f}",
                f"{statistics.mean(run['step_cpu_seconds'] for run in runs):.3f}",
                f"{statistics.mean(losses):.4f}",
                f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else "-",
                ", ".join(f"{loss:.4f}" for loss in losses),
            )
        )
    counts = ", ".join(f"{len(of_kind(results, kind))} {kind}" for kind in TITLES)
    print(
        f"\nBrown corpus by {vocabulary}: held-out loss after {one['curve'][last][0]} of "
        f"{one['steps']} steps of {one['tokens_a_step']:,} tokens of text; runs of {seeds} seeds: "
        f"{counts}; finished: {sum(result['finished'] for result in results)}"
    )
    if one["finished"]:
        print(
            f"{one['tokens']:,} target tokens are held out, whose unigram entropy is "
            f"{one['unigram']:.4f} nats"
        )
    print("\n".join(sweep.aligned(rows)))
    for dense in DENSE:
        compare(results, dense)


def compare(results: list[Result], dense: str) -> None:
    """Prints the difference of the sparse model to a dense one over the seeds that both have, after
    all steps and at equal CPU time, and from where on the sparse one is better.
    """
    sparse = {run["seed"]: run for run in of_kind(results, SPARSE)}
    pairs = [(sparse[r["seed"]], r) for r in of_kind(results, dense) if r["seed"] in sparse]
    if not pairs:
        return
    ours, theirs = zip(*pairs, strict=True)
    last = last_common([*ours, *theirs]) - 1
    each = [ours["curve"][last][1] - theirs["curve"][last][1] for ours, theirs in pairs]
    shown_each = ", ".join(f"{value:+.4f}" for value in each)
    print(
        f"sparse minus {TITLES[dense]}, step {ours[0]['curve'][last][0]}: "
        f"{statistics.mean(each):+.4f} nats a token ({shown_each})"
    )
    for clock, cpu in (("tokens of text", False), ("CPU seconds of training", True)):
        place = pays_from(mean_curve(ours, cpu=cpu), mean_curve(theirs, cpu=cpu))
        if place is None:
            said = "is not below it at the end"
        elif math.isnan(place):
            said = "not known: they were not evaluated at the same time"
        else:
            said = f"stays below from {place:,.0f} on"
        print(f"  by {clock}: {said}")


def plot(results: list[Result], folder: Path) -> Path:
    """Draws the held-out loss over tokens and over CPU time, a row for each vocabulary: every seed,
    and the mean.
    """
    from matplotlib.figure import Figure

    names = [name for name in VOCABULARIES if any(r["vocabulary"] == name for r in results)]
    figure = Figure(figsize=(10, 3.6 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for row, vocabulary in zip(panels, names, strict=True):
        for number, (kind, title) in enumerate(TITLES.items()):
            runs = [r for r in of_kind(results, kind) if r["vocabulary"] == vocabulary]
            for axes, cpu in zip(row, (False, True), strict=True) if runs else ():
                unit = 1.0 if cpu else 1e6
                for run in runs:
                    x, y = np.asarray(mean_curve([run], cpu=cpu)).T
                    axes.plot(x / unit, y, color=f"C{number}", alpha=0.3, lw=1)
                x, y = np.asarray(mean_curve(runs, cpu=cpu)).T
                label = f"{title} ({len(runs)} seed{'s' * (len(runs) != 1)})"
                axes.plot(x / unit, y, "o-", color=f"C{number}", markersize=3, label=label)
        row[0].set_ylabel("held-out loss, nats a token")
        row[0].set_xlabel("million tokens of text")
        row[1].set_xlabel("CPU seconds of training steps")
        row[0].legend(fontsize=8)
        for axes in row:
            axes.set_title(f"Brown corpus by {vocabulary}", fontsize=10)
            axes.grid(alpha=0.3)
    path = folder / "sparse.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    cli.run(main)
