"""Where annotations and images of a set lie: the official folders, and those that people have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainlib.data.folders import LeftOut, below
from trainlib.errors import ConfigError, shown
from vitattn.detection.data.files import present
from vitattn.images import files

# In the order in which they are looked for. A year goes with the same year.
_PARTS = {
    "train": ("train2017", "train2014", "train"),
    "test": ("val2017", "val2014", "val", "valid", "validation", "test"),
}
_LOOKED_AT = 200  # files of a split, by which a folder is recognised


def official(part: str) -> str:
    """The official place of the JSON file of a part, `train` or `test`."""
    return f"annotations/instances_{_PARTS[part][0]}.json"


# ---------------------------------------------------------------- JSON files
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


def nothing_to_evaluate(place: Path, split: str, how: str = "") -> ConfigError:
    """The error of a set without a split of this name.

    Args:
      place: of the set.
      split: "test" or "holdout".
      how: a way to name images for evaluation, as the beginning of a sentence that goes on with
        "or".
    """
    return ConfigError(
        f"There is nothing to evaluate on: {shown(place)} has no split '{split}', and "
        f"data.holdout=0 keeps nothing of the training images. {how or 'Give'} "
        "--config.data.holdout=0.1."
    )


# ---------------------------------------------------------------- folders
def part_of(root: Path, part: str) -> tuple[Path, bool]:
    """Returns the folder of `train` or `test` below `root`, and whether there is one of its own: a
    set without parts is all in one folder, and one without a part for evaluation in `train`.
    """
    if not (root / "train").is_dir():
        return root, False
    names = ("train",) if part == "train" else _PARTS["test"]
    for name in names:
        if (root / name).is_dir():
            return root / name, True
    return root / "train", False


def find_files(folder: Path, suffix: str) -> list[Path]:
    """Returns the files below a folder whose names end so, in the order of their names."""
    left = LeftOut(folder, lambda name: name.lower().endswith(suffix), "")
    return [Path(path) for path in below([folder], left)]


def find_images_below(folder: Path) -> list[Path]:
    """Returns the images below a folder, in the order of their names."""
    return [Path(path) for path in below([folder], files.left_out(folder))]


class Images:
    """The images below a folder by their names without suffix, of which annotations in files of
    their own have the same.
    """

    def __init__(self, root: Path):
        self._root = root
        self._of_stem: dict[str, list[Path]] = {}
        official = root / "JPEGImages"  # beside it lie pictures of segments, of the same names
        for path in find_images_below(official if official.is_dir() else root):
            self._of_stem.setdefault(path.stem, []).append(path)

    def of(self, annotation: Path, said: str) -> str:
        """Returns the image of a file of annotations, relative to the folder.

        Of several, it is that beside the file, else one in a folder `images`, else the nearest.
        Where there is none, the name that the file gives is returned.

        Args:
          annotation: the file.
          said: the name of an image that it gives, which is often of another machine.
        """
        given = Path(said.replace("\\", "/")).name
        found = self._of_stem.get(annotation.stem) or self._of_stem.get(Path(given).stem) or []
        if not found:
            return given or f"{annotation.stem}.jpg"
        return (
            min(found, key=lambda path: _distance(path, annotation))
            .relative_to(self._root)
            .as_posix()
        )


def _distance(image: Path, annotation: Path) -> tuple[bool, bool, int]:
    common = os.path.commonpath([image, annotation])
    return image.parent != annotation.parent, image.parent.name != "images", -len(common)
