"""CIFAR-100 (Krizhevsky 2009): the official binary archive, or the data set as TFDS prepares it.

A record of the binary file is 1 byte coarse label, 1 byte fine label and 3072 bytes of pixels [3,
32, 32].
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.errors import DataError
from vitattn.data import tfds_source
from vitattn.data.embedded import Arrays
from vitattn.data.sources import Source, hold_out, short_digest

_FOLDER = "cifar-100-binary"
_ARCHIVE = "cifar-100-binary.tar.gz"
_RECORD_BYTES = 2 + 3 * 32 * 32
_CLASSES = 100

# Of the 50,000 training images, in units of the full range.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)


def make(config: Any, argument: str, split: str) -> Source:
    """Opens CIFAR-100 below `data.dir`: the binary folder or archive, else a TFDS directory.

    Raises:
      DataError: it is not there, is the pickled version, or is damaged.
    """
    del argument
    part = "test" if split == "test" else "train"
    directory = Path(config.dir).expanduser() if config.dir else None
    source = _binary(directory, part) if directory else None
    if source is None:
        source = tfds_source.opened("cifar100", config.dir, part, MEAN, STD)
    if source is None:
        raise _absent(config.dir)
    return source if split == "test" else hold_out(source, config.holdout, split)


def _absent(directory: str) -> DataError:
    place = Path(directory or ".").expanduser()
    if any((place / name).exists() for name in ("cifar-100-python", "cifar-100-python.tar.gz")):
        return DataError(
            f"{place} holds the Python version of CIFAR-100. It is a pickle, which can run any "
            f"program when it is opened, so it is not read: get the binary version, {_ARCHIVE}, "
            "from the same page."
        )
    where = f"in {directory}" if directory else f"in {tfds_source.default_directory()}"
    return DataError(
        f"CIFAR-100 was not found {where}. Either put the official {_ARCHIVE} (or its folder "
        f"{_FOLDER}) in a directory and give it with --config.data.dir=DIR; or prepare it with "
        "TFDS (which needs TensorFlow for that one step): tfds build cifar100 "
        "--file_format=array_record; or try the recipe without data: the ':digits' variant of "
        "the configuration, or --config.data.source=synthetic:100."
    )


def _binary(directory: Path, part: str) -> Arrays | None:
    """Returns one split of the binary version, or None when it is not in `directory`."""
    name = f"{part}.bin"
    for folder in (directory, directory / _FOLDER):
        if (folder / name).is_file():
            names = folder / "fine_label_names.txt"
            text = names.read_text() if names.is_file() else ""
            return _arrays(str(folder / name), (folder / name).read_bytes(), text, part)
    archive = directory if directory.name == _ARCHIVE else directory / _ARCHIVE
    if not archive.is_file():
        return None
    try:
        with tarfile.open(archive, "r:gz") as tar:
            content = _member(tar, f"{_FOLDER}/{name}")
            text = _member(tar, f"{_FOLDER}/fine_label_names.txt").decode()
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): get it again.") from error
    return _arrays(f"{archive}:{name}", content, text, part)


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _arrays(where: str, content: bytes, names: str, part: str) -> Arrays:
    if not content or len(content) % _RECORD_BYTES:
        raise DataError(
            f"{where} has {len(content):,} bytes, which is no multiple of the {_RECORD_BYTES} of "
            "one record: it is truncated or another file. Get it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 1].astype(np.int64)
    if labels.max() >= _CLASSES:
        first = int(np.argmax(labels >= _CLASSES))
        raise DataError(
            f"{where} record {first} (offset {first * _RECORD_BYTES}) has the label "
            f"{labels[first]}, outside 0..{_CLASSES - 1}: the file is damaged or another one "
            "(CIFAR-10 has 10 classes and other records)."
        )
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    words = names.split()
    class_names = words if len(words) == _CLASSES else [str(c) for c in range(_CLASSES)]
    digest = short_digest("cifar100", part, len(content))
    return Arrays(where, np.ascontiguousarray(images), labels, class_names, MEAN, STD, digest)
