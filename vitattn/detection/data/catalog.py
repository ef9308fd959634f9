"""The data sets with boxes that `data.source` can name; see `vitattn.data.catalog`.

A new one is a file with a `KIND` and a row of `KINDS`, or a `vitattn.data.Kind` in a module of
one's own, whose `make` returns a `BoxedSource`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from trainlib.errors import ConfigError
from vitattn.data import catalog
from vitattn.data.source import SPLITS
from vitattn.detection.data import coco, shapes, tfds, voc, yolo
from vitattn.detection.data.source import BoxedSource, Kind
from vitattn.images.decode import Rgb

KINDS: dict[str, Kind] = {
    "coco": coco.KIND,
    "coco/2017": tfds.KIND,
    "voc": voc.KIND,
    "yolo": yolo.KIND,
    "shapes": shapes.KIND,
}


def usage() -> str:
    """Returns all values that `data.source` can have, as a phrase."""
    return catalog.usage(KINDS)


def kind_of(source: str) -> Kind:
    """Returns the kind of data set that `data.source` asks for.

    Raises:
      ConfigError: no such kind, or one that takes nothing after a colon.
    """
    return catalog.find_kind(source, KINDS)


def make_source(config: ConfigDict, split: str) -> BoxedSource:
    """Opens the split `train`, `holdout` or `test` of the data set that `config.source` names.

    Args:
      config: the `data` section of a configuration.
      split: `test` is the official evaluation split (for COCO that is val2017); `holdout` is the
        fraction `config.holdout` of the training set, which `train` then lacks.

    Raises:
      DataError: the data set is absent or is not what it should be.
      ConfigError: no such data set or split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r} is not known. Allowed: {', '.join(SPLITS)}.")
    return kind_of(config.source).make(config, split)


def statistics(config: ConfigDict) -> tuple[Rgb, Rgb]:
    """Returns mean and standard deviation by which images are normalised, in units of the full
    range: those of the `data` section, else those of its data set, which need not be there.

    Raises:
      ConfigError: no such data set.
    """
    kind = kind_of(config.source)
    return tuple(config.mean) or kind.mean, tuple(config.std) or kind.std


def official_names(source: str) -> tuple[str, ...]:
    """Returns the class names that `data.source` fixes by itself, in the order of their labels; ()
    where only the data can tell.
    """
    kind = KINDS.get(source.partition(":")[0])
    return kind.class_names(source) if kind else ()
