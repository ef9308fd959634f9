"""CIFAR-100 (Krizhevsky 2009): the official binary archive, or the data set as TFDS prepares it.

A record of the binary file is 1 byte coarse label, 1 byte fine label and 3072 bytes of pixels [3,
32, 32].
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from trainlib import paths
from trainlib.errors import DataError
from trainlib.untrusted_files import open_regular, read_small
from vitattn.data import tfds as tfds_source
from vitattn.data.source import Arrays, Kind, Source, hold_out, short_digest

_FOLDER = "cifar-100-binary"
_ARCHIVE = "cifar-100-binary.tar.gz"
_RECORD_BYTES = 2 + 3 * 32 * 32
_CLASSES = 100
_NAMES = "fine_label_names.txt"

# What the official archive holds: 6 members, 169 MB in all.
_MOST_BYTES = {
    "train.bin": 50_000 * _RECORD_BYTES,
    "test.bin": 10_000 * _RECORD_BYTES,
    _NAMES: 2**16,
}
_MOST_UNPACKED = 256 * 2**20
_MOST_MEMBERS = 100

# Of the 50,000 training images, in units of the full range.
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)

# The fine labels of CIFAR-100, as its archive lists them.
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES = tuple(_FINE.split())


def make(config: ConfigDict, split: str) -> Source:
    """Opens CIFAR-100 below `data.dir`: the binary folder or archive, else a TFDS directory.

    Raises:
      DataError: it is not there, is the pickled version, or is damaged.
    """
    part = "test" if split == "test" else "train"
    directory = paths.resolve(config.dir, "data.dir") if config.dir else None
    source = _binary(directory, part) if directory else None
    if source is None:
        source = tfds_source.opened("cifar100", config.dir, part, MEAN, STD)
    if source is None:
        raise _absent(config.dir)
    return source if split == "test" else hold_out(source, config.holdout, split)


def _absent(directory: str) -> DataError:
    folder = paths.resolve(directory or ".", "data.dir")
    if any((folder / name).exists() for name in ("cifar-100-python", "cifar-100-python.tar.gz")):
        return DataError(
            f"{folder} holds the Python version of CIFAR-100. It is a pickle, which can run any "
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
            content = _small(folder / name, _MOST_BYTES[name])
            names = folder / _NAMES
            text = _small(names, _MOST_BYTES[_NAMES]) if names.is_file() else b""
            return _arrays(str(folder / name), content, text, part)
    archive = directory if directory.name == _ARCHIVE else directory / _ARCHIVE
    if not archive.is_file():
        return None
    try:
        members = _members(archive, (name, _NAMES))
        return _arrays(f"{archive}:{name}", members[name], members[_NAMES], part)
    except (tarfile.TarError, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): get it again.") from error


def _small(file: Path, most: int) -> bytes:
    return read_small(file, most, follow=True, error=DataError)


def _members(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads members of the archive, name -> content, without trusting its headers.

    A few megabytes can unpack to gigabytes: neither a member, nor a header, nor all of it together
    may be larger than in the official one.
    """
    contents: dict[str, bytes] = {}
    with (
        open_regular(archive, follow=True, error=DataError) as file,
        gzip.open(file) as unpacked,
        tarfile.open(fileobj=_Bounded(unpacked, _MOST_UNPACKED), mode="r|") as tar,
    ):
        for count, member in enumerate(tar):
            name = member.name.removeprefix(f"{_FOLDER}/")
            if count >= _MOST_MEMBERS:
                raise ValueError(f"it has more than {_MOST_MEMBERS} members")
            if name not in names or name == member.name:
                continue
            if not member.isreg() or member.issparse() or member.size > _MOST_BYTES[name]:
                raise ValueError(
                    f"{member.name} is no plain file of at most {_MOST_BYTES[name]:,} bytes"
                )
            content = tar.extractfile(member)
            assert content is not None
            contents[name] = content.read()
            if len(contents) == len(names):
                return contents
    missing = [name for name in names if name not in contents]
    raise KeyError(f"{_FOLDER}/{missing[0]}")


class _Bounded(io.BufferedIOBase):
    """A stream that fails once more than `most` bytes were read from it."""

    def __init__(self, stream: io.BufferedIOBase, most: int):
        self._stream, self._most, self._left = stream, most, most

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes")
        return content


def _arrays(where: str, content: bytes, names: bytes, part: str) -> Arrays:
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
    class_names = names.decode("utf-8", "replace").split() if names else CLASS_NAMES
    if len(class_names) != _CLASSES:
        raise DataError(
            f"{_NAMES} beside {where} holds {len(class_names)} names, not {_CLASSES}: it is "
            "damaged or another file. Get it again, or remove it to have the official names."
        )
    digest = short_digest("cifar100", part, len(content))
    return Arrays(where, np.ascontiguousarray(images), labels, class_names, MEAN, STD, digest)


KIND = Kind(("cifar100",), make, MEAN, STD, lambda _: CLASS_NAMES)
