"""Do detectors with convolution, augmented and stand-alone attention learn on real photographs?

    make reproduce-detection BCCD=DIR       # under 40 CPU minutes on 2 cores

Trains the variants of configs/reproduce_detection.py with several seeds at equal budgets, in
workdirs of their own as `launch.train` makes them: what is finished is only printed again. DIR
holds instances_train.json, instances_test.json and images/. The test images are looked at once, by
the weights after the last step. It prints COCO's AP, AP50 and AP75 (mean, sample standard deviation
and each seed), parameters, FLOPs of an image, and the time that training, evaluation and
compilation took, and draws what the best kind of network found on 12 test images beside the truth.

    python -m benchmarks.reproduce_detection --bccd=DIR --validation   # to choose a recipe by
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import sweep
from configs.common import load
from launch import cli
from trainlib.errors import DataError, shown

CONFIG = "configs/reproduce_detection.py"
TITLES = {"conv": "convolution", "aa": "augmented", "sasa": "stand-alone attention"}
COLUMNS = ("backbone", "parameters", "GFLOP", "AP %", "AP50 %", "AP75 %", "AP50 of each seed")
FIGURES = ("ap", "ap50", "ap75")
GOAL, AIM = 0.75, 0.85  # AP50 of the best of the three
SHOWN, LEAST_SCORE = 12, 0.4  # images of the picture; what of their detections is drawn
PANEL, MARGIN, PAIRS = (224, 168), 6, 4  # of a panel and beside a pair, pixels; pairs in a row


def main(argv: Sequence[str]) -> int:
    """Trains what is not trained yet, prints the table, draws the picture."""
    from vitattn import train

    parser = cli.parser("python -m benchmarks.reproduce_detection", "Compare three detectors.")
    cli.add_path(parser, "--bccd", required=True, metavar="DIR", help="where BCCD lies")
    sweep.add_flags(parser, "runs/reproduce_detection")
    parser.add_argument("--kinds", default=",".join(TITLES), metavar="A,B", help="which of them")
    parser.add_argument(
        "--validation", action="store_true", help="evaluate on the validation split instead"
    )
    args, overrides = cli.parse(parser, argv)
    split = "val" if args.validation else "test"
    data = {
        "data.source": f"coco:{args.bccd / 'instances_train.json'}",
        "data.images": str(args.bccd / "images"),
        "data.eval_json": str(args.bccd / f"instances_{split}.json"),
    }
    if not args.bccd.is_dir():
        raise DataError(f"--bccd={shown(args.bccd)} is no folder.")
    runs = [
        sweep.planned(f"{CONFIG}:{kind}", args.runs / split, kind, seed, data | overrides)
        for seed in range(args.seeds)
        for kind in sweep.named("--kinds", args.kinds, TITLES)
    ]
    sweep.check(runs)
    sweep.complete(runs, sweep.costed(train.run))
    results = [measured(run) for run in runs]
    (args.runs / split / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print_table(split, results)
    best = max(results, key=lambda result: mean_of(results, result["kind"], "ap50"))
    picture = compare(Path(best["workdir"]), args.bccd, split, args.runs / split)
    print(f"picture of {TITLES[best['kind']]}, seed {best['seed']}: {picture}", flush=True)
    return 0


def measured(run: sweep.Run) -> dict[str, Any]:
    """The figures of a finished run, from its files."""
    from vitattn.models.counts import forward_flops
    from vitattn.plan import make

    plan = make(run.config)
    summary = json.loads((run.workdir / "summary.json").read_text())
    return {
        "kind": run.kind,
        "seed": run.seed,
        "steps": run.config.steps,
        "batch_size": run.config.batch_size,
        "image_size": plan.model.size,
        "params": plan.abstract.param_count,
        "flops": forward_flops(plan.abstract, plan.model.size),
        **{name: summary[name] for name in (*FIGURES, "examples")},
        **sweep.cost(run),
        "workdir": str(run.workdir),
    }


def of_kind(results: Sequence[dict[str, Any]], kind: str, name: str) -> list[float]:
    """A figure of each run of one kind of network."""
    return [result[name] for result in results if result["kind"] == kind]


def mean_of(results: Sequence[dict[str, Any]], kind: str, name: str) -> float:
    """The mean of a figure over the runs of one kind of network."""
    return statistics.mean(of_kind(results, kind, name))


def print_table(split: str, results: list[dict[str, Any]]) -> None:
    """Prints mean, spread and every seed of each kind, what they cost, and the goal."""
    one, kinds = results[0], list(dict.fromkeys(result["kind"] for result in results))
    rows: list[tuple[str, ...]] = [COLUMNS]
    for kind in kinds:
        row = [TITLES[kind], f"{mean_of(results, kind, 'params'):,.0f}"]
        row.append(f"{mean_of(results, kind, 'flops') / 1e9:.2f}")
        row += [spread(of_kind(results, kind, name)) for name in FIGURES]
        each = ", ".join(f"{100 * value:.1f}" for value in of_kind(results, kind, "ap50"))
        rows.append((*row, each))
    height, width = one["image_size"]
    print(
        f"\nBCCD, {split} split, {one['examples']:,} images of {width} x {height} pixels, after "
        f"{one['steps']} steps of {one['batch_size']} images, {len(results) // len(kinds)} seeds"
    )
    print("\n".join(sweep.aligned(rows)))
    for kind in kinds:
        cpu, wall = (of_kind(results, kind, f"{clock}_seconds") for clock in ("cpu", "wall"))
        each = ", ".join(f"{seconds:.0f}" for seconds in cpu)
        print(f"{TITLES[kind]}: {each} CPU seconds a run; {sum(wall) / 60:.1f} minutes in all")
    print(f"all runs: {sum(result['cpu_seconds'] for result in results) / 60:.1f} CPU minutes")
    best = max(mean_of(results, kind, "ap50") for kind in kinds)
    for name, least in (("goal", GOAL), ("aim", AIM)):
        said = "met" if best >= least else "missed"
        print(f"{name}, AP50 of the best at least {100 * least:.0f} %: {said}", flush=True)


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    deviation = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def compare(workdir: Path, bccd: Path, split: str, folder: Path) -> Path:
    """Draws evenly chosen images twice, with their true boxes and with what a run found.

    The run is evaluated once more, for `launch.evaluate` writes the detections themselves.
    """
    from vitattn import evaluate

    if not (workdir / "detections.json").exists():
        evaluate.run(load.of_workdir(workdir, {}), workdir)
    truth = json.loads((bccd / f"instances_{split}.json").read_text())
    found = json.loads((workdir / "detections.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    records = truth["images"]
    chosen = [records[at] for at in np.linspace(0, len(records) - 1, SHOWN).round().astype(int)]
    rows = -(-SHOWN // PAIRS)
    pair = 2 * PANEL[0] + MARGIN, PANEL[1] + MARGIN
    sheet = Image.new("RGB", (PAIRS * pair[0], rows * pair[1]), "white")
    for place, record in enumerate(chosen):
        with Image.open(bccd / "images" / record["file_name"]) as picture:
            for half, boxes in enumerate((truth["annotations"], found)):
                panel = drawn(picture, [b for b in boxes if b["image_id"] == record["id"]], names)
                row, column = divmod(place, PAIRS)
                corner = (column * pair[0] + half * PANEL[0], row * pair[1])
                sheet.paste(panel.resize(PANEL, Image.Resampling.LANCZOS), corner)
    path = folder / "detections.jpg"
    sheet.save(path, quality=60)
    return path


def drawn(picture: Image.Image, boxes: list[dict[str, Any]], names: dict[int, str]) -> Image.Image:
    """The picture with the true boxes of it, or the likelier ones of those that were found."""
    from vitattn.detection.answers.drawing import draw

    seen = [box for box in boxes if box.get("score", 1.0) >= LEAST_SCORE]
    seen.sort(key=lambda box: -box.get("score", 1.0))
    corners = np.asarray([box["bbox"] for box in seen], float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    scores = np.asarray([box.get("score", 1.0) for box in seen])
    ids = sorted(names)
    classes = np.asarray([ids.index(box["category_id"]) for box in seen], np.int32)
    return draw(picture, corners, scores, classes, [names[number] for number in ids])


if __name__ == "__main__":
    cli.run(main)
