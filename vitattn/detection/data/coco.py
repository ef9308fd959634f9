"""COCO, and any set with annotations in its JSON form: `coco` with `data.dir`, or
`coco:TRAIN.json`.

Classes are the categories in the order of their ids. Without a JSON file for evaluation, the split
`test` is the fixed part `data.holdout` of the training images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from trainlib import paths
from trainlib.errors import ConfigError, DataError, nearest, shown
from vitattn.data import imagenet
from vitattn.data.source import argument_of
from vitattn.detection.annotations import coco_json
from vitattn.detection.annotations.official import NAMES
from vitattn.detection.annotations.report import Report
from vitattn.detection.data import files, layouts
from vitattn.detection.data.files import BoxedFiles, listed, present
from vitattn.detection.data.source import Kind


def open_part(config: ConfigDict, part: str) -> tuple[BoxedFiles, Report] | None:
    """Opens the images of `train` or `test`, with what is wrong with them; None if there is no
    file for evaluation.

    Raises:
      DataError: a file is absent, or is no file of annotations.
      ConfigError: no set was named.
    """
    train, evaluation = files_of(config)
    if part == "test":
        return opened_json(evaluation, *images_of(config, evaluation)) if evaluation else None
    if train is None:
        raise DataError(
            f"{shown(argument_of(config.source) or config.dir)} holds no annotations of training: "
            f"{layouts.official('train')} was looked for, and other names that are common. Give "
            "the file itself: --config.data.source=coco:FILE.json."
        )
    return opened_json(train, config.images, "data.images")


def _nothing(config: ConfigDict, split: str) -> ConfigError:
    train, evaluation = files_of(config)
    other = layouts.beside(train) if train and not evaluation else None
    near = f"Beside it lies {shown(other)}. " if other else ""
    how = f"{near}Give --config.data.eval_json=FILE.json, or"
    return layouts.nothing_to_evaluate(
        train or Path(argument_of(config.source) or config.dir), split, how
    )


def images_of(config: ConfigDict, evaluation: Path) -> tuple[str, str]:
    """Returns the folder of the images of evaluation, "" for the one beside its annotations, and
    the key that says so.
    """
    if config.eval_images or not config.images:
        return config.eval_images, "data.eval_images"
    names = coco_json.read(evaluation)[0].file_names
    there = present(paths.resolve(config.images, "data.images"), names).any()
    return config.images if there else "", "data.images"


def files_of(config: ConfigDict) -> tuple[Path | None, Path | None]:
    """Returns the JSON files of training and of evaluation, those that there are: to evaluate a
    trained model, no other images are needed.

    Raises:
      ConfigError: none was named.
      DataError: there is none where it was said to be.
    """
    argument = argument_of(config.source)
    named = paths.resolve(config.eval_json, "data.eval_json") if config.eval_json else None
    given = argument or config.dir
    if not given:
        raise ConfigError(
            "data.source='coco' needs a folder: --config.data.dir=COCO with "
            f"{layouts.official('train')} and train2017/ in it. For a set of your own give its "
            "file: --config.data.source=coco:MY/instances_train.json."
        )
    place = paths.resolve(given, "data.source" if argument else "data.dir")
    if not place.is_dir():
        if not place.exists():
            names = listed(place.parent)
            raise DataError(
                f"There is no {shown(place)}, which data.source or data.dir names. "
                f"{nearest(place.name, names)}"
            )
        return place, named
    return layouts.find_json(place, "train"), named or layouts.find_json(place, "test")


def opened_json(json: Path, images: str, key: str) -> tuple[BoxedFiles, Report]:
    """Opens the images of one JSON file.

    Args:
      json: the annotations.
      images: their folder; "" is the folder beside that holds them.
      key: that names the folder, for messages.

    Returns:
      The images that are there, and what is wrong with the others and with their boxes; `check`
      of it says whether that can be lived with.

    Raises:
      DataError: see `coco_json.read`; or none of the images is there.
    """
    table, report = coco_json.read(json)
    folder = folder_of(json, table.file_names, images, key)
    report = report.copy()
    report.notes.append(f"images are read from {shown(folder)}")
    return files.opened(folder, table, report)


def folder_of(json: Path, names: Sequence[str], images: str, key: str) -> Path:
    """Returns the folder of the images that a JSON file names; for the arguments see `opened_json`.

    Raises:
      DataError: none of its images is there: the folder is another one, or the file is of another
        split.
    """
    if images:
        folder = paths.resolve(images, key)
        if not folder.is_dir():
            raise DataError(f"{key}: {shown(folder)} is no folder.")
        found = folder if present(folder, names).any() else None
        looked = [folder]
    else:
        found = layouts.find_images(json, names)
        looked = layouts.candidates(json)
    if found is None and names:
        raise DataError(
            f"None of the {len(names):,} images that {shown(json)} names, such as "
            f"{shown(names[0], 80)}, is in {', '.join(map(shown, looked))}. Is it the file of "
            f"another split, or do its images lie elsewhere? Give their folder: "
            f"--config.{key}=DIR."
        )
    return found or looked[0]


KIND = Kind(
    ("coco", "coco:TRAIN.json"),
    functools.partial(files.make, open_part, _nothing),
    imagenet.MEAN,
    imagenet.STD,
    lambda source: () if argument_of(source) else tuple(NAMES.values()),
)
