"""Files that a page may take for granted: `<!-- given: pictures runs/digits -->` puts them into the
directory in which its blocks are run. Runs are trained once for all pages, as small as they go.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch import train
from tests.launch.commands import TINY

CLASSES = ("cat", "dog", "owl")


def pictures(path: Path) -> None:
    """A folder of 12 pictures a class: `CLASS/NUMBER.png`."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (path / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 80, (40, 48, 3), np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(path / name / f"{number}.png")


def photos(path: Path) -> None:
    """A folder of two pictures, `a.png` and `b.png`."""
    from PIL import Image

    path.mkdir(parents=True)
    for name, grey in (("a", 60), ("b", 200)):
        Image.new("RGB", (40, 48), (grey, grey, grey)).save(path / f"{name}.png")


def questions(path: Path) -> None:
    """Three texts to answer, one JSON object a line."""
    rows = [{"inputs": f"rte hypothesis: It rains. premise: Rain falls, {n}."} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(path: Path) -> None:
    """Rows of a task of one's own, with choices."""
    rows = [
        {
            "inputs": f"Is {number} an even number?",
            "targets": ("yes", "no")[number % 2],
            "choices": ["yes", "no"],
        }
        for number in range(50)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(path: Path) -> None:
    """A folder of six text files."""
    path.mkdir(parents=True)
    for number in range(6):
        (path / f"{number}.txt").write_text(f"Text number {number}. " * 60)


# What a marker may say in short, `<!-- run: $tiny_resnet -->`: models that compile in seconds.
TINY_RESNET = (
    "--config.model.blocks=1,1,1,1",
    "--config.model.width=0.25",
    *("--config.batch_size=8", "--config.steps=2", "--config.schedule.warmup_steps=1"),
    *("--config.eval_every=0", "--config.checkpoint.every=2", "--config.data.workers=0"),
)
TINY_RETINANET = (
    *TINY_RESNET,
    *("--config.model.features=16", "--config.model.head_layers=1", "--config.model.max_level=5"),
    *("--config.model.image_size=64", "--config.epochs=0"),
)
TINY_TEXT = (
    *(f"--config.model.{key}=32" for key in ("d_model", "d_ff")),
    *(f"--config.model.{key}=1" for key in ("encoder_blocks", "decoder_blocks", "sparse_period")),
    *("--config.model.num_heads=2", "--config.model.head_dim=16", "--config.routing.num_experts=2"),
    *("--config.data.encoder_length=64", "--config.data.decoder_length=24"),
    *("--config.data.workers=0", "--config.batch_size=8", "--config.steps=2"),
    "--config.schedule.warmup_steps=1",
    *("--config.eval_every=0", "--config.checkpoint.every=2"),
)


def digits(path: Path) -> None:
    """A run on the embedded digits."""
    train.main([*TINY, "--config.steps=2", f"--workdir={path}"])


def blood(path: Path) -> None:
    """COCO json files and images, `train.json`, `val.json` and `images/NUMBER.png`: pale discs of
    two kinds.
    """
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    (path / "images").mkdir(parents=True)
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}]
    files: dict[str, dict] = {
        name: {"images": [], "annotations": [], "categories": categories}
        for name in ("train", "val")
    }
    for number in range(16):
        picture = Image.new("RGB", (80, 60), (230, 210, 200))
        draw, part = ImageDraw.Draw(picture), files["train" if number < 12 else "val"]
        file = f"{number}.png"
        part["images"].append({"id": number, "file_name": file, "width": 80, "height": 60})
        for kind in (1, 2):
            x, y = (int(v) for v in rng.integers(2, 40, 2))
            side = 10 + 8 * kind
            draw.ellipse((x, y, x + side, y + side), ((220, 120, 120), (180, 170, 220))[kind - 1])
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            one = {"id": 2 * number + kind, "image_id": number, "category_id": kind}
            part["annotations"].append(one | box)
        picture.save(path / "images" / file)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def shapes_run(path: Path) -> None:
    """A run of detection on the built-in shapes."""
    flags = ("--config=configs/retinanet_resnet50.py:shapes", *TINY_RETINANET)
    train.main([*flags, f"--workdir={path}"])


def text_run(path: Path) -> None:
    """A pre-training run on the embedded text."""
    flags = (*TINY_TEXT, "--config.model.vocab_size=384", "--config.eval_batches=1")
    train.main(["--config=configs/st_moe_tiny.py", *flags, f"--workdir={path}"])


def superglue(path: Path) -> None:
    """A fine-tuning run on embedded samples of two tasks."""
    flags = (*TINY_TEXT, "--config.data.source=sample:copa,rte", "--config.eval_batch_size=8")
    flags += ("--config.evaluation.limit=2", "--config.decoding.max_length=4")
    train.main(["--config=configs/st_moe_superglue.py:sample", *flags, f"--workdir={path}"])


PRESETS = {
    "$tiny_resnet": TINY_RESNET,
    "$tiny_retinanet": TINY_RETINANET,
    "$tiny_text": TINY_TEXT,
}
GIVEN: dict[str, Callable[[Path], None]] = {
    "pictures": pictures,
    "photos": photos,
    "questions.jsonl": questions,
    "train.jsonl": pairs,
    "texts": texts,
    "runs/aa_resnet50_digits": digits,
    "blood": blood,
    "runs/shapes": shapes_run,
    "runs/st_moe_tiny": text_run,
    "runs/superglue": superglue,
}


def provide(names: tuple[str, ...], store: Path, folder: Path) -> None:
    """Puts what a page is given into its folder; `store` holds what earlier pages asked for."""
    for name in names:
        if not (store / name).exists():
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            GIVEN[name](store / name)
        copy = shutil.copytree if (store / name).is_dir() else shutil.copyfile
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(store / name, folder / name)
