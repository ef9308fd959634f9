"""The data sets that `data.source` can name: a table from the name before the colon to its kind.

A new data set is a file with a `KIND` and a row of `KINDS`, or a `Kind` in a module of one's own
that `data.source=module:MODULE:NAME` names.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from trainlib import extension
from trainlib.errors import ConfigError, DataError, nearest
from vitattn.data import cifar100, digits, folder, imagenet, synthetic
from vitattn.data.source import SPLITS, AnySource, Kind, Labelled, Source
from vitattn.images.decode import Rgb

KINDS: dict[str, Kind[Source]] = {
    "imagenet": imagenet.KIND,
    "folder": folder.KIND,
    "cifar100": cifar100.KIND,
    "digits": digits.KIND,
    "synthetic": synthetic.KIND,
}


def usage(kinds: Mapping[str, Kind] = KINDS) -> str:
    """Returns all values that `data.source` can have, as a phrase."""
    forms = [form for kind in kinds.values() for form in kind.usage]
    return ", ".join([*forms, f"{extension.PREFIX}{extension.FORM}[:ARGUMENT]"])


def kind_of(source: str) -> Kind[Source]:
    """Returns the kind of data set that `data.source` asks for.

    Raises:
      ConfigError: no such kind, or one that takes nothing after a colon.
    """
    return find_kind(source, KINDS)


def find_kind(source: str, kinds: Mapping[str, Kind[AnySource]]) -> Kind[AnySource]:
    """Returns the kind that `data.source` asks for, of a task's table or of a module of one's own.

    Args:
      source: the value of `data.source`.
      kinds: name before the colon -> kind.

    Raises:
      ConfigError: no such kind, or one that takes nothing after a colon.
    """
    if source.startswith(extension.PREFIX):
        reference = extension.reference_of(source)
        return extension.load(reference, "data.source", Kind, "a vitattn.data.Kind")
    name, _, argument = source.partition(":")
    if name not in kinds:
        raise ConfigError(
            f"data.source={source!r} is not known. {nearest(name, kinds)}Allowed: {usage(kinds)}."
        )
    if argument and not kinds[name].takes_argument:
        raise ConfigError(f"data.source={source!r}: '{name}' takes nothing after a colon.")
    return kinds[name]


def make_source(config: ConfigDict, split: str) -> Source:
    """Opens the split `train`, `holdout` or `test` of the data set that `config.source` names.

    Args:
      config: the `data` section of a configuration (see `data_defaults`).
      split: `test` is the official evaluation split (for ImageNet that is its validation set);
        `holdout` is the fraction `config.holdout` of the training set, which `train` then lacks.

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
    """Returns the class names that `data.source` fixes by itself, in the order of their labels.

    Empty for folders, whose classes are what lies in them, and for unknown data sets.
    """
    kind = KINDS.get(source.partition(":")[0])
    return kind.class_names(source) if kind else ()


def check_classes(source: Labelled, num_classes: int) -> None:
    """Checks that a model with `num_classes` outputs can give all labels of a data set.

    Raises:
      DataError: it has more classes.
    """
    if source.num_classes > num_classes:
        raise DataError(
            f"the data set has {source.num_classes} classes (labels 0..{source.num_classes - 1}, "
            f"the last is '{source.class_names[-1]}') and the model has {num_classes} outputs. "
            f"Set --config.model.num_classes={source.num_classes}."
        )
