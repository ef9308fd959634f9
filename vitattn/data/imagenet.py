"""ImageNet (ILSVRC 2012), as TFDS prepares it."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from trainlib.errors import DataError
from vitattn.data import tfds
from vitattn.data.source import Kind, Source, hold_out

# Of the training images, in units of the full range; also the default for folders.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def make(config: ConfigDict, split: str) -> Source:
    """Opens a split of TFDS's `imagenet2012`; `test` is its validation set.

    Raises:
      DataError: it is not there; the message lists three ways to continue.
    """
    part = "validation" if split == "test" else "train"
    source = tfds.opened("imagenet2012", config.dir, part, MEAN, STD)
    if source is None:
        where = config.dir or tfds.default_directory()
        raise DataError(
            f"ImageNet was not found in {where}. Three ways to go on: prepare it with TFDS from "
            "the two archives ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in a directory "
            "DIR (one step that needs TensorFlow; training does not): tfds build imagenet2012 "
            f"--manual_dir=DIR --file_format=array_record --data_dir={where}; or use images in "
            "class folders: --config.data.source=folder:PATH; or try the recipe without data: the "
            "':digits' variant of the configuration, or --config.data.source=synthetic."
        )
    return source if split == "test" else hold_out(source, config.holdout, split)


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """Returns the WordNet identifiers of the 1000 classes in TFDS's order of labels.

    They come from TFDS's file, without its import; () where TFDS is not installed.
    """
    package = importlib.util.find_spec("tensorflow_datasets")
    for folder in (package.submodule_search_locations if package else None) or []:
        file = Path(folder) / "datasets" / "imagenet2012" / "labels.txt"
        if file.is_file():
            return tuple(file.read_text().split())
    return ()


KIND = Kind(("imagenet",), make, MEAN, STD, lambda _: wordnet_ids())
