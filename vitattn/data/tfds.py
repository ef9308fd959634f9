"""Data sets prepared by TensorFlow Datasets (TFDS), read at random from ArrayRecord files without
TensorFlow."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from typing import Any

from trainlib import paths
from trainlib.data import tfds_files
from trainlib.errors import DataError, UserError, shown
from vitattn.data.source import Example, Source, short_digest
from vitattn.images.decode import Rgb
from vitattn.images.files import UnreadableRecord

_MOST_CLASSES = 2**20


class Prepared:
    """One split of a prepared TFDS data set. Images stay encoded until a worker decodes them."""

    in_memory = False
    left_out: tuple[str, ...] = ()

    def __init__(self, directory: str, split: str, mean: Rgb, std: Rgb):
        """Reads the description of the data set; raises DataError if it has no random access."""
        self.directory, self.split, self.mean, self.std = directory, split, mean, std
        info = _info(directory)
        if info.file_format.value != "array_record":
            raise DataError(
                f"{directory} was prepared as {info.file_format.value}, which can only be read in "
                "sequence. Convert it (in an environment with TensorFlow): tfds convert_format "
                f"--dataset_version_dir={directory} --out_file_format=array_record --out_dir=NEW, "
                "and give NEW as --config.data.dir."
            )
        if split not in info.splits:
            raise DataError(
                f"{directory} has no split '{split}', only {', '.join(info.splits) or 'none'}: "
                "the archive of that split was missing when it was prepared. Add it and prepare "
                "again."
            )
        part = info.splits[split]
        self.class_names = self._classes(info.features)
        self.num_classes = len(self.class_names)
        self._length = part.num_examples
        try:
            self._files = tuple(part.filenames)
            self._ends = list(itertools.accumulate(part.shard_lengths))
        except Exception as error:  # TFDS makes the names from a template of the description
            raise DataError(
                f"{shown(directory)} does not say which files it has: {shown(error)}"
            ) from error
        self.digest = short_digest(
            info.full_name, split, part.shard_lengths, part.num_bytes, self._files
        )
        self._check_files()

    def _classes(self, features: Any) -> tuple[str, ...]:
        """The names of the classes; raises DataError if its examples are others than are read."""
        raise NotImplementedError

    def _check_files(self) -> None:
        """Checks that all files exist and are large enough for the records of the description."""
        from etils import epath

        missing, size = [], 0
        for file in self._files:
            try:
                size += (epath.Path(self.directory) / file).stat().length
            except OSError:
                missing.append(file)
        if missing:
            raise DataError(
                f"{self.directory}: {len(missing)} of the {len(self._files)} files of the split "
                f"'{self.split}' are missing, the first is {missing[0]}. Copy them again, or "
                "prepare the data set again."
            )
        if self._length > size:  # an image takes more than one byte
            raise DataError(
                f"{self.directory}: the split '{self.split}' is said to have {self._length:,} "
                f"records, and its files have {size:,} bytes: they are damaged. Copy the data set "
                "again."
            )

    def __len__(self) -> int:
        return self._length

    def features_of(self, record: int) -> dict[str, Any]:
        """Returns the features of a record, its image still encoded; raises UnreadableRecord."""
        try:
            return _records(self.directory, self.split)[record]
        except Exception as error:  # the reader reports damage as many types, RuntimeError included
            raise UnreadableRecord(f"cannot be read ({type(error).__name__}: {error})") from error

    def describe(self, record: int) -> str:
        shard = bisect.bisect_right(self._ends, record)
        first = self._ends[shard - 1] if shard else 0
        return f"{self.directory}/{self._files[shard]} record {record - first}"


class TfdsSource(Prepared):
    """A split of images with one class each."""

    def _classes(self, features: Any) -> tuple[str, ...]:
        return _class_names(features, self.directory)

    def __getitem__(self, record: int) -> Example:
        example = self.features_of(record)
        return Example(example["image"], int(example["label"]))


def _class_names(features: Any, directory: str) -> tuple[str, ...]:
    """The names of the classes; raises DataError unless it is a data set of classified images."""
    import tensorflow_datasets as tfds

    has: dict[str, Any] = {}
    if isinstance(features, tfds.features.FeaturesDict):
        has = dict(features.items())
    image = has.get("image")
    label: Any = has.get("label")
    if not isinstance(image, tfds.features.Image) or not is_class(label):
        kinds = ", ".join(f"{shown(k, 40)}: {type(v).__name__}" for k, v in list(has.items())[:10])
        raise DataError(
            f"{directory} is no data set of images with one class each: its features are "
            f"{kinds or 'not named'}, and 'image' must be an Image, 'label' a ClassLabel of 1 to "
            f"{_MOST_CLASSES:,} classes."
        )
    return tuple(label.names)


def is_class(feature: Any) -> bool:
    """Whether a feature is a label of a number of classes that can be."""
    import tensorflow_datasets as tfds

    label = isinstance(feature, tfds.features.ClassLabel)
    return label and 0 < (feature.num_classes or 0) <= _MOST_CLASSES


def _builder(directory: str) -> Any:
    tfds_files.check_version(directory)
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory)


def _info(directory: str) -> Any:
    try:
        return _builder(directory).info
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with the description, it cannot be used
        raise DataError(
            f"{shown(directory)} is not a TFDS data set that can be read: {shown(error, 500)}"
        ) from error


@functools.lru_cache(maxsize=8)
def _records(directory: str, split: str) -> Any:
    """Opens the files of a split once in each process; open files do not travel to workers."""
    import tensorflow_datasets as tfds

    builder = _builder(directory)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def default_directory() -> str:
    """TFDS's own data directory: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")


def find(name: str, directory: str) -> str | None:
    """Returns the directory of the newest prepared version of `name`, or None.

    `directory` may be TFDS's data directory, the data set's directory in it, or one version's.
    """
    from etils import epath

    root = epath.Path(paths.resolve(directory or default_directory(), "data.dir"))
    if (root / "dataset_info.json").exists():
        return os.fspath(root)
    for parent in (root / name, root / name.rpartition("/")[2], root):
        if parent.is_dir():
            versions = [p for p in parent.iterdir() if (p / "dataset_info.json").exists()]
            if versions:
                return os.fspath(max(versions, key=lambda path: _version(path.name)))
    return None


def _version(name: str) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in name.split(".")]


def opened(name: str, directory: str, split: str, mean: Rgb, std: Rgb) -> Source | None:
    """Opens a split of `name` below `directory` (empty is TFDS's own); None if it is not there."""
    version = find(name, directory)
    return TfdsSource(version, split, mean, std) if version else None
