"""The data sets that `data.source` can name: a table from the name before the colon to its kind.

A new data set is a file with a `KIND` and a row of `KINDS`, or a `Kind` in a module of one's own
that `data.source=module:MODULE:NAME` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Generic

from ml_collections import ConfigDict

from trainlib import extension
from trainlib.errors import ConfigError, DataError, nearest
from vitattn.data import cifar100, digits, folder, idx, imagenet, synthetic
from vitattn.data.source import SPLITS, AnySource, Kind, Labelled, Source
from vitattn.images.decode import Rgb

KINDS: dict[str, Kind[Source]] = {
    "imagenet": imagenet.KIND,
    "folder": folder.KIND,
    "cifar100": cifar100.KIND,
    "fashion_mnist": idx.FASHION,
    "idx": idx.KIND,
    "digits": digits.KIND,
    "synthetic": synthetic.KIND,
}


@dataclasses.dataclass(frozen=True)
class Catalog(Generic[AnySource]):
    """The data sets of a task, of one kind of examples.

    Attributes:
      kinds: name before the colon of `data.source` -> kind.
    """

    kinds: Mapping[str, Kind[AnySource]]

    def usage(self) -> str:
        """Returns all values that `data.source` can have, as a phrase."""
        forms = [form for kind in self.kinds.values() for form in kind.usage]
        return ", ".join([*forms, f"{extension.PREFIX}{extension.FORM}[:ARGUMENT]"])

    def kind_of(self, source: str) -> Kind[AnySource]:
        """Returns the kind that `data.source` asks for, of the table or of a module of one's own.

        Raises:
          ConfigError: no such kind, or one that takes nothing after a colon.
        """
        if source.startswith(extension.PREFIX):
            reference = extension.reference_of(source)
            return extension.load(reference, "data.source", Kind, "a vitattn.data.Kind")
        name, _, argument = source.partition(":")
        if name not in self.kinds:
            raise ConfigError(
                f"data.source={source!r} is not known. {nearest(name, self.kinds)}"
                f"Allowed: {self.usage()}."
            )
        if argument and not self.kinds[name].takes_argument:
            raise ConfigError(f"data.source={source!r}: '{name}' takes nothing after a colon.")
        return self.kinds[name]

    def make_source(self, config: ConfigDict, split: str) -> AnySource:
        """Opens the split `train`, `holdout` or `test` of the data set that `config.source` names.

        Args:
          config: the `data` section of a configuration.
          split: `test` is the official evaluation split (for ImageNet that is its validation set,
            for COCO val2017); `holdout` is the fraction `config.holdout` of the training set, which
            `train` then lacks.

        Raises:
          DataError: the data set is absent or is not what it should be.
          ConfigError: no such data set or split.
        """
        if split not in SPLITS:
            raise ConfigError(f"split={split!r} is not known. Allowed: {', '.join(SPLITS)}.")
        return self.kind_of(config.source).make(config, split)

    def statistics(self, config: ConfigDict) -> tuple[Rgb, Rgb]:
        """Returns mean and standard deviation by which images are normalised, in units of the full
        range: those of the `data` section, else those of its data set, which need not be there.

        Raises:
          ConfigError: no such data set.
        """
        kind = self.kind_of(config.source)
        return tuple(config.mean) or kind.mean, tuple(config.std) or kind.std

    def official_names(self, source: str) -> tuple[str, ...]:
        """Returns the class names that `data.source` fixes by itself, in the order of their labels.

        Empty where only the data can tell, and for unknown data sets.
        """
        kind = self.kinds.get(source.partition(":")[0])
        return kind.class_names(source) if kind else ()


CLASSIFICATION = Catalog(KINDS)
usage = CLASSIFICATION.usage
kind_of = CLASSIFICATION.kind_of
make_source = CLASSIFICATION.make_source
statistics = CLASSIFICATION.statistics
official_names = CLASSIFICATION.official_names


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
