"""Images and labels in IDX files, the format of MNIST (LeCun, Cortes, Burges 1998), and
Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747).

A file is two zero bytes, a byte for the type of its numbers, a byte for how many dimensions they
have, each dimension as a big-endian uint32, and the numbers, big-endian. A data set is four of
them, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same after `t10k-`, plain or
gzip. N images of H x W pixels are [N, H, W], or [N, H, W, C] with 1 or 3 channels.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from trainlib import paths
from trainlib.data.folders import LeftOut, listing, some
from trainlib.errors import ConfigError, DataError, shown
from trainlib.untrusted_files import open_regular
from vitattn.data.source import Arrays, Kind, Source, argument_of, hold_out, short_digest

# Type byte -> type of the numbers; images are the first of them.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[0-9]-ubyte(\.gz)?")
_DIMENSIONS = {"images": (3, 4), "labels": (1,)}
_MEANING = {3: "grey images", 4: "images with channels", 1: "labels"}
_PREFIX = {"train": "train", "holdout": "train", "test": "t10k"}

# A header may promise anything, and a few megabytes of gzip unpack to gigabytes. MNIST has 47 MB.
_MOST_BYTES = 2**32
_MOST_CLASSES = 2**16

# Of the 60,000 training images of Fashion-MNIST, in units of the full range.
FASHION_MEAN = (0.2860, 0.2860, 0.2860)
FASHION_STD = (0.3530, 0.3530, 0.3530)
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Where Debian's and Ubuntu's package dataset-fashion-mnist puts it.
PACKAGED = "/usr/share/datasets/fashion-mnist"

# Of other data only the files know, and a run has to know without them: those of MNIST.
MEAN = (0.1307, 0.1307, 0.1307)
STD = (0.3081, 0.3081, 0.3081)


def make(config: ConfigDict, split: str) -> Source:
    """Opens a split of `idx:DIR`: the classes are the numbers up to the largest training label.

    Raises:
      DataError: no such folder or files, or what is in them is damaged.
    """
    argument = argument_of(config.source)
    if not argument:
        raise ConfigError("data.source='idx' needs a folder: --config.data.source=idx:DIR.")
    root = paths.resolve(argument, "data.source")
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.source: {shown(root)} {state}. {_expected()}")
    return _split(root, config, split, (), MEAN, STD)


def make_fashion(config: ConfigDict, split: str) -> Source:
    """Opens a split of Fashion-MNIST in `data.dir`, or where Debian's package puts it.

    Raises:
      DataError: it is not there (says where to get it), or is damaged.
    """
    root = paths.resolve(config.dir or PACKAGED, "data.dir")
    if not root.is_dir():
        raise DataError(
            f"Fashion-MNIST was not found in {shown(root)}. Either install it, on Debian and "
            "Ubuntu: apt-get install dataset-fashion-mnist. Or put the four files of "
            "github.com/zalandoresearch/fashion-mnist (train-images-idx3-ubyte.gz, "
            "train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz) "
            "into a folder and give it with --config.data.dir=DIR."
        )
    return _split(root, config, split, FASHION_NAMES, FASHION_MEAN, FASHION_STD)


def _split(
    root: Path,
    config: ConfigDict,
    split: str,
    names: tuple[str, ...],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Source:
    """Opens a split; `names` are those of the classes, () to number them."""
    files, prefix = _files(root), _PREFIX[split]
    pixels, images = _read(_file(files, prefix, "images", root), "images")
    marked, labels = _read(_file(files, prefix, "labels", root), "labels")
    if len(images) != len(labels):
        raise DataError(
            f"{shown(pixels)} holds {len(images):,} images and {shown(marked)} {len(labels):,} "
            "labels: they are not of one data set, or one is damaged. Get both again."
        )
    _check_labels(labels, marked, len(names) or _MOST_CLASSES)
    if split == "test" and (trained := files.get(("train", "images"))):
        _check_alike(pixels, images.shape, trained)
    if not names:
        known = labels
        if split == "test" and (of_training := files.get(("train", "labels"))):
            path, known = _read(of_training, "labels")
            _check_labels(known, path, _MOST_CLASSES)
            _check_labels(labels, marked, 1 + int(known.max()))
        names = tuple(str(number) for number in range(1 + int(known.max())))
    chosen = {path.name for path in files.values()}
    left = LeftOut(root, chosen.__contains__, "no file of the data set")
    for folder in listing(root, left).folders:
        left.add(str(root / folder), "beside the files of the data set", "folder")
    images = images if images.ndim == 4 else images[..., None]
    digest = short_digest(images.shape, images.tobytes(), labels.tobytes())
    source = Arrays(str(pixels), images, labels, names, mean, std, digest)
    source.left_out = left.lines()
    return source if split == "test" else hold_out(source, config.holdout, split)


def _files(root: Path) -> dict[tuple[str, str], Path]:
    """(train or t10k, images or labels) -> file; one that is there twice is taken unpacked."""
    found: dict[tuple[str, str], Path] = {}
    try:
        entries = sorted(os.listdir(root), reverse=True)
    except OSError as error:
        raise DataError(f"{shown(root)} cannot be opened: {error.strerror}.") from error
    for name in entries:  # so that name.gz comes before name
        if match := _NAME.fullmatch(name):
            found[match[1], match[2]] = root / name
    return found


def _file(files: dict[tuple[str, str], Path], prefix: str, role: str, root: Path) -> Path:
    if (prefix, role) not in files:
        there = some(sorted(path.name for path in files.values())) or "none of them"
        hint = ""
        if prefix == _PREFIX["test"]:
            hint = (
                " To evaluate on training images that are held out: --config.data.holdout=0.1 "
                "--config.data.eval_split=holdout."
            )
        raise DataError(
            f"{shown(root)} has no file {prefix}-{role}-idx{_DIMENSIONS[role][0]}-ubyte[.gz]. "
            f"{_expected()} There is: {there}.{hint}"
        )
    return files[prefix, role]


def _expected() -> str:
    return (
        "Expected is a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or with .gz."
    )


def _check_labels(labels: np.ndarray, path: Path, classes: int) -> None:
    """Refuses labels outside 0..classes-1."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{shown(path)} record {first} has the label {labels[first]}, outside "
            f"0..{classes - 1}: the file is damaged or of another data set."
        )


def _check_alike(path: Path, shape: tuple[int, ...], trained: Path) -> None:
    """Refuses test images of other sides or channels than the training images have."""
    with _opened(trained) as stream:
        header = _header(stream, trained)
    _check_header(header, trained, "images")
    own, others = ((*s[1:3], *(s[3:] or (1,))) for s in (shape, header.shape))
    if own != others:
        raise DataError(
            f"{shown(path)} holds images of {_times(own)} numbers and {shown(trained)} of "
            f"{_times(others)}: they are not of one data set. Give each a folder of its "
            "own, or images of one size as files (data.source=folder:PATH)."
        )


class _Header(NamedTuple):
    """Type and dimensions of the numbers that follow."""

    type: np.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.type.itemsize


def _read(path: Path, role: str) -> tuple[Path, np.ndarray]:
    """The file, and what it holds: images uint8 [N, H, W] or [N, H, W, C], or labels int64 [N]."""
    with _opened(path) as stream:
        content = _numbers(stream, path, role)
    return path, content if role == "images" else content.astype(np.int64)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """A file of numbers, unpacked when it is gzip."""
    with open_regular(path, error=DataError) as file:
        packed = file.peek(2)[:2] == _GZIP
        try:
            yield gzip.GzipFile(fileobj=file) if packed else file
        except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(
                f"{shown(path)} cannot be unpacked ({shown(str(error))}): it is truncated or "
                "damaged. Get it again."
            ) from error


def _numbers(stream: BinaryIO | gzip.GzipFile, path: Path, role: str) -> np.ndarray:
    header = _header(stream, path)
    _check_header(header, path, role)
    content = stream.read(header.size_bytes)
    more = stream.read(1)  # of gzip this also compares the checksum
    if len(content) != header.size_bytes or more:
        other = "more" if more else f"{len(content):,}"
        raise DataError(
            f"{shown(path)} announces {_times(header.shape)} numbers, {header.size_bytes:,} bytes, "
            f"and holds {other}: it is truncated or another file. Get it again."
        )
    return np.frombuffer(content, header.type).reshape(header.shape)


def _header(stream: BinaryIO | gzip.GzipFile, path: Path) -> _Header:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= 4:
        raise DataError(
            f"{shown(path)} is no IDX file: it starts with the bytes {start.hex(' ') or '(none)'} "
            "and not with 00 00, a type (08 for bytes) and 1 to 4 dimensions. Get it again."
        )
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise DataError(f"{shown(path)} ends within its header: it is truncated. Get it again.")
    return _Header(np.dtype(_TYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes))


def _check_header(header: _Header, path: Path, role: str) -> None:
    """Refuses what the images or labels of a data set cannot be."""
    shape, allowed = header.shape, _DIMENSIONS[role]
    if len(shape) not in allowed:
        meant = _MEANING.get(len(shape), f"{len(shape)} dimensions")
        wanted = " or ".join(map(str, allowed))
        raise DataError(
            f"{shown(path)} holds {meant} ({_times(shape)}), and {role} have {wanted} "
            f"dimension{'s' * (wanted != '1')}: were the files exchanged?"
        )
    if (role == "images" and header.type != np.uint8) or header.type.kind == "f":
        raise DataError(
            f"{shown(path)} holds numbers of the type {header.type.name}; {role} are "
            f"{'uint8' if role == 'images' else 'integers'}."
        )
    if len(shape) == 4 and shape[3] not in (1, 3):
        raise DataError(
            f"{shown(path)} holds {_times(shape)} numbers: the last dimension has to be 1 or 3 "
            "channels."
        )
    if not all(shape):
        raise DataError(f"{shown(path)} holds {_times(shape)} numbers: it is empty.")
    if header.size_bytes > _MOST_BYTES:
        raise DataError(
            f"{shown(path)} announces {_times(shape)} numbers, {header.size_bytes:,} bytes, more "
            f"than the {_MOST_BYTES:,} that are read: it is damaged, or belongs into files of its "
            "own (data.source=folder:PATH)."
        )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{side:,}" for side in shape)


KIND = Kind(("idx:DIR",), make, MEAN, STD, lambda _: ())
FASHION = Kind(("fashion_mnist",), make_fashion, FASHION_MEAN, FASHION_STD, lambda _: FASHION_NAMES)
