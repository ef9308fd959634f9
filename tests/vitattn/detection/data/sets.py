"""Small sets with boxes, written as people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vitattn.detection.settings import data_settings


def config(**values: Any) -> ConfigDict:
    """The `data` section of a configuration."""
    return ConfigDict({**{key: value for key, (value, _) in data_settings().items()}, **values})


def picture(path: Path, size: tuple[int, int] = (40, 30), orientation: int = 0) -> None:
    """Writes noise of (width, height) pixels, with an EXIF orientation unless that is 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def good() -> dict[str, Any]:
    """Annotations of three images of 40x30 and two classes whose ids have a gap."""
    return {
        "info": {"year": 2026, "nothing": None},
        "images": [
            {"id": 10 * n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (3, 1, 2)
        ],
        "annotations": [
            annotation(5, 10, 7, [1, 2, 10.5, 20]),
            annotation(6, 30, 4, [0, 0, 40, 30]),
            annotation(7, 10, 4, [30, 20, 5, 5], area=12.25),
            annotation(8, 30, 7, [3, 3, 30, 20], iscrowd=1),
        ],
        "categories": [{"id": 7, "name": "dög"}, {"id": 4, "name": "cat"}],
    }


def annotation(number: int, image: int, category: int, box: list[Any], **other: Any) -> dict:
    """One annotation as COCO has them."""
    area = box[2] * box[3] if all(isinstance(n, int | float) for n in box) else 1
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return {**entry, "area": area, "iscrowd": 0, **other}


def write(path: Path, content: Any) -> Path:
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(root: Path, content: Any = None, train: str = "instances_train.json") -> Path:
    """Writes a set with its images in `images`; returns its JSON file."""
    for number in (1, 2, 3):
        picture(root / "images" / f"{number}.png")
    return write(root / train, good() if content is None else content)
