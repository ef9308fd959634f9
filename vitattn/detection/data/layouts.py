"""Where the JSON files and the images of a COCO set lie: the official folder, and those that people
have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vitattn.detection.data.files import present

# In the order in which they are looked for. A year goes with the same year.
_PARTS = {
    "train": ("train2017", "train2014", "train"),
    "test": ("val2017", "val2014", "val", "valid", "validation", "test"),
}
_LOOKED_AT = 200  # files of a split, by which a folder is recognised


def official(part: str) -> str:
    """The official place of the JSON file of a part, `train` or `test`."""
    return f"annotations/instances_{_PARTS[part][0]}.json"


def find_json(root: Path, part: str) -> Path | None:
    """Returns the JSON file of a part below a folder, None where there is none."""
    for name in _PARTS[part]:
        for form in (
            f"annotations/instances_{name}.json",
            f"instances_{name}.json",
            f"annotations/{name}.json",
            f"{name}.json",
            f"{name}/_annotations.coco.json",
            f"{name}/annotations.json",
        ):
            if (root / form).is_file():
                return root / form
    return None


def find_images(json: Path, names: Sequence[str]) -> Path | None:
    """Returns the folder near a JSON file that holds most of the images it names; None where no
    folder holds any.
    """
    step = max(1, len(names) // _LOOKED_AT)
    some = names[::step]
    best, most = None, 0
    for folder in candidates(json):
        count = int(present(folder, some).sum())
        if count > most:
            best, most = folder, count
    return best


def candidates(json: Path) -> list[Path]:
    """Returns the folders in which the images of a JSON file may lie, the likeliest first."""
    return list(dict.fromkeys(folder for folder in _near(json) if folder.is_dir()))


def _near(json: Path) -> Iterator[Path]:
    part = json.stem.removeprefix("instances_")
    for base in (json.parent, json.parent.parent):
        for name in (part, part.rstrip("0123456789")):
            yield base / name
            yield base / "images" / name
            yield base / name / "images"
        yield base / "images"
        yield base / "JPEGImages"
        yield base / "data"
        yield base


def beside(json: Path) -> Path | None:
    """Returns a file beside the training annotations that looks like those of an evaluation."""
    for name in _PARTS["test"]:
        other = json.with_name(f"instances_{name}.json")
        if other != json and other.is_file():
            return other
    return None
