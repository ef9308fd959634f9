"""Random images, as many as ImageNet has: they measure speed and prove nothing else."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import ConfigError
from vitattn.data.source import Example, Kind, Source, argument_of, hold_out, short_digest

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

_CLASSES = 1000
_SIZE = 256
_RECORDS = {"train": 1_281_167, "test": 50_000}


class Synthetic:
    """Random images of 256x256 pixels, cheap to make."""

    in_memory = True
    left_out: tuple[str, ...] = ()
    mean, std = MEAN, STD

    def __init__(self, classes: int, split: str):
        self.num_classes = classes
        self.class_names = _names(classes)
        self.split = split
        self.digest = short_digest("synthetic", classes, split)

    def __len__(self) -> int:
        return _RECORDS[self.split]

    def __getitem__(self, record: int) -> Example:
        """Returns coarse coloured noise, the same each time for one record."""
        bits = np.random.Philox(key=record, counter=len(self))
        coarse = bits.random_raw(32 * 32 * 3 // 8).view(np.uint8).reshape(32, 32, 3)
        repeat = _SIZE // 32
        image = coarse.repeat(repeat, axis=0).repeat(repeat, axis=1)
        return Example(image, record % self.num_classes)

    def describe(self, record: int) -> str:
        return f"synthetic {self.split} record {record}"


def _names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(classes))


def make(config: ConfigDict, split: str) -> Source:
    """Opens random images of 1000 classes, or of 10 with `synthetic:10`.

    Raises:
      ConfigError: what follows the colon is not a number of classes.
    """
    argument = argument_of(config.source)
    classes = int(argument) if argument.isdecimal() else 0 if argument else _CLASSES
    if classes < 1:
        raise ConfigError(
            f"data.source={config.source!r}: after 'synthetic:' comes the number of classes, for "
            "example synthetic:10."
        )
    if split == "test":
        return Synthetic(classes, "test")
    return hold_out(Synthetic(classes, "train"), config.holdout, split)


def class_names(source: str) -> tuple[str, ...]:
    """Returns "class 0", "class 1" and so on; () when what follows the colon is no sane number."""
    argument = argument_of(source)
    if not argument:
        return _names(_CLASSES)
    return _names(int(argument)) if argument.isdecimal() and len(argument) < 7 else ()


KIND = Kind(("synthetic", "synthetic:CLASSES"), make, MEAN, STD, class_names)
