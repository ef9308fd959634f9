"""IDX files written here, plain and gzip: what they become, and what each mistake says."""

import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest
from ml_collections import ConfigDict

from trainlib.errors import ConfigError, DataError
from vitattn.data import Arrays, data_defaults, idx, make_source

TYPES = {"uint8": 0x08, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def config(**values):
    return ConfigDict({**{key: value for key, (value, _) in data_defaults().items()}, **values})


def packed(array):
    """An IDX file, by the text of its description: magic, sizes, numbers, all big-endian."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    content = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return bytes((0, 0, TYPES[array.dtype.name], array.ndim)) + sizes + content


def pixels(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def written(root, names=("train", "t10k"), shape=(6, 5), zipped=True, counts=(12, 4)):
    """A folder of images and labels 0, 1, 2, 0, 1, .."""
    for name, count in zip(names, counts, strict=True):
        dims = {"images": pixels(count, *shape), "labels": np.arange(count, dtype=np.uint8) % 3}
        for role, array in dims.items():
            file = root / f"{name}-{role}-idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(packed(array)) if zipped else packed(array))
    return config(source=f"idx:{root}")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (4, 7, 3)])
def test_images_and_labels_are_those_of_the_files(tmp_path, shape, zipped):
    c = written(tmp_path, shape=shape, zipped=zipped)
    train, test = make_source(c, "train"), make_source(c, "test")
    assert (len(train), len(test), train.num_classes) == (12, 4, 3)
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert [train[n].label for n in range(5)] == [0, 1, 2, 0, 1]
    expected = pixels(12, *shape)[7].reshape(*shape[:2], -1)
    np.testing.assert_array_equal(train[7].image, expected)
    c.holdout = 0.25
    assert (len(make_source(c, "train")), len(make_source(c, "holdout"))) == (9, 3)


def test_of_two_copies_the_plain_one_is_read_and_what_else_lies_there_is_said(tmp_path):
    c = written(tmp_path, zipped=False)
    digest = make_source(c, "train").digest
    (tmp_path / f"{IMAGES}.gz").write_bytes(b"never opened")
    (tmp_path / "extra").mkdir()
    train = make_source(c, "train")
    assert train.digest == digest
    assert [line.split(": ", 1)[1] for line in train.left_out] == [
        "1 .gz, no file of the data set (such as train-images-idx3-ubyte.gz)",
        "1 folder, beside the files of the data set (such as extra)",
    ]


def test_names_with_a_dot_and_wide_labels_are_read(tmp_path):
    written(tmp_path, zipped=False)
    (tmp_path / IMAGES).rename(tmp_path / "train-images.idx3-ubyte")
    labels = np.arange(12, dtype=np.int32) * 30
    (tmp_path / LABELS).write_bytes(packed(labels))
    train = make_source(config(source=f"idx:{tmp_path}"), "train")
    assert train.num_classes == 331
    assert [train[n].label for n in range(3)] == [0, 30, 60]


def test_the_digest_follows_the_pixels(tmp_path):
    c = written(tmp_path, zipped=False)
    before = make_source(c, "train").digest
    content = bytearray((tmp_path / IMAGES).read_bytes())
    content[-1] ^= 1
    (tmp_path / IMAGES).write_bytes(content)
    assert make_source(c, "train").digest != before


def flipped(content, at, value):
    return content[:at] + bytes((value,)) + content[at + 1 :]


DAMAGE = {
    "empty": (lambda b: b"", "no IDX file: it starts with the bytes \\(none\\)"),
    "a page": (lambda b: b"<!DOCTYPE html>", "no IDX file: it starts with the bytes 3c 21 44 4f"),
    "type": (lambda b: flipped(b, 2, 0x0A), "no IDX file: it starts with the bytes 00 00 0a 03"),
    "dimensions": (lambda b: flipped(b, 3, 200), "and not with 00 00, a type"),
    "half a header": (lambda b: b[:9], "ends within its header"),
    "short": (lambda b: b[:-1], "announces 12 x 6 x 5 numbers, 360 bytes, and holds 359"),
    "long": (lambda b: b + b"x", "360 bytes, and holds more"),
    "torn": (lambda b: gzip.compress(b)[:-20], "cannot be unpacked .*truncated or damaged"),
    "garbage": (lambda b: b"\x1f\x8b" + bytes(range(50)), "cannot be unpacked"),
    "bad checksum": (
        lambda b: flipped(gzip.compress(b), len(gzip.compress(b)) - 8, 0),
        "cannot be unpacked .*CRC",
    ),
    "no images": (lambda b: packed(pixels(0, 6, 5)), "holds 0 x 6 x 5 numbers: it is empty"),
    "no rows": (lambda b: packed(pixels(12, 0, 5)), "holds 12 x 0 x 5 numbers: it is empty"),
    "channels": (lambda b: packed(pixels(12, 3, 6, 5)), "last dimension has to be 1 or 3 channels"),
    "floats": (lambda b: packed(pixels(12, 6, 5).astype(np.float32)), "of the type float32"),
    "labels": (lambda b: packed(np.arange(12, dtype=np.uint8)), "holds labels .*exchanged"),
    "too many": (lambda b: b[:4] + b"\xff" * 12, "more than the 4,294,967,296 that are read"),
    "other count": (lambda b: packed(pixels(11, 6, 5)), "11 images and .* 12 labels"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_images_are_named(tmp_path, what):
    c = written(tmp_path, zipped=False)
    damage, message = DAMAGE[what]
    file = tmp_path / IMAGES
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        make_source(c, "train")
    assert IMAGES in str(caught.value)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("file", "labels", "message"),
    [
        (LABELS, np.full(12, -1, np.int16), "record 0 has the label -1, outside 0..65535"),
        (LABELS, np.full(12, 2**30, np.int32), "has the label 1073741824, outside"),
        (LABELS, np.ones(12, np.float32), "of the type float32; labels are integers"),
        (LABELS, pixels(12, 6, 5), "holds grey images .*labels have 1 dimension: .*exchanged"),
        (
            "t10k-labels-idx1-ubyte",
            np.array([0, 1, 3, 0], np.uint8),
            "record 2 has the label 3, outside 0..2",
        ),
    ],
)
def test_labels_that_cannot_be_are_named(tmp_path, file, labels, message):
    c = written(tmp_path, zipped=False)
    (tmp_path / file).write_bytes(packed(labels))
    with pytest.raises(DataError, match=message) as caught:
        make_source(c, "test" if file.startswith("t10k") else "train")
    assert file in str(caught.value)


def test_links_pipes_and_folders_are_not_opened(tmp_path):
    c = written(tmp_path, zipped=False)
    file = tmp_path / IMAGES
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(DataError, match="idx3-ubyte is a symbolic link"):
        make_source(c, "train")
    file.unlink()
    os.mkfifo(file)  # nothing waits for its writer
    with pytest.raises(DataError, match="is a named pipe"):
        make_source(c, "train")
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        make_source(c, "train")


def test_what_unpacks_to_more_than_it_announces_takes_no_memory(tmp_path):
    c = written(tmp_path)
    bomb = packed(pixels(12, 6, 5)) + bytes(2**26)
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(bomb, 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="holds more"):
        make_source(c, "train")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 3)])
def test_test_images_of_another_shape_are_refused(tmp_path, shape):
    written(tmp_path, names=("train",), counts=(12,))
    c = written(tmp_path, names=("t10k",), counts=(4,), shape=shape)
    with pytest.raises(DataError, match=r"t10k-images.*train-images.* of 6 x 5 x 1: they are not"):
        make_source(c, "test")


def test_grey_images_with_and_without_a_channel_are_alike(tmp_path):
    written(tmp_path, names=("train",), counts=(12,))
    c = written(tmp_path, names=("t10k",), counts=(4,), shape=(6, 5, 1))
    assert len(make_source(c, "test")) == 4


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a folder: .*idx:DIR"):
        make_source(config(source="idx"), "train")
    with pytest.raises(DataError, match="does not exist"):
        make_source(config(source=f"idx:{tmp_path / 'none'}"), "train")
    with pytest.raises(DataError, match=r"no file train-images-idx3-ubyte.*There is: none of them"):
        make_source(config(source=f"idx:{tmp_path}"), "train")
    written(tmp_path, names=("train",), counts=(12,))
    missing = r"no file t10k-images-idx3-ubyte\[\.gz\].*data\.holdout=0\.1 .*eval_split=holdout"
    with pytest.raises(DataError, match=missing):
        make_source(config(source=f"idx:{tmp_path}"), "test")
    assert len(make_source(config(source=f"idx:{tmp_path}"), "train")) == 12


def test_fashion_mnist_has_its_names_and_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "PACKAGED", str(tmp_path / "packaged"))
    message = "apt-get install dataset-fashion-mnist.*train-images-idx3-ubyte.gz.*data.dir=DIR"
    with pytest.raises(DataError, match=message):
        make_source(config(source="fashion_mnist"), "train")
    (tmp_path / "packaged").mkdir()
    written(tmp_path / "packaged")
    test = make_source(config(source="fashion_mnist"), "test")
    assert (test.num_classes, test.class_names[9]) == (10, "Ankle boot")
    (tmp_path / "own").mkdir()
    written(tmp_path / "own", counts=(6, 2))
    assert len(make_source(config(source="fashion_mnist", dir=str(tmp_path / "own")), "train")) == 6
    labels = np.array([10, 0], np.uint8)
    (tmp_path / "own" / "t10k-labels-idx1-ubyte").write_bytes(packed(labels))
    with pytest.raises(DataError, match=r"record 0 has the label 10, outside 0\.\.9"):
        make_source(config(source="fashion_mnist", dir=str(tmp_path / "own")), "test")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(idx.PACKAGED),
    reason="the data of Debian's dataset-fashion-mnist, 31 MB, which no Python package brings",
)
def test_fashion_mnist_where_debian_puts_it():
    train = idx.make_fashion(config(source="fashion_mnist"), "train")
    assert isinstance(train, Arrays)
    assert train.images.shape == (60000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(train.labels), [6000] * 10)
    levels = train.images / np.float32(255)
    np.testing.assert_allclose(levels.mean(), idx.FASHION_MEAN[0], atol=1e-4)
    np.testing.assert_allclose(levels.std(), idx.FASHION_STD[0], atol=1e-4)
