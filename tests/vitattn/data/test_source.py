"""Sources: real files of every layout and kind of mistake, and what each message says."""

import gzip
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import ConfigError, DataError
from vitattn.data import catalog, check_classes, cifar100, data_defaults, make_source
from vitattn.images.files import UnreadableRecord

ROOT = Path(__file__).parents[3]


def config(**values):
    return ConfigDict({**{key: value for key, (value, _) in data_defaults().items()}, **values})


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)


def folder(root, parts=("train", "val"), classes=("ant", "bee", "cat"), images=4):
    for part in parts:
        for name in classes:
            for n in range(images):
                write_image(root / part / name / f"{n}.{('jpg', 'PNG')[n % 2]}", n)
    return config(source=f"folder:{root}")


# ---------------------------------------------------------------- digits and synthetic


def test_digits_are_those_of_scikit_learn_split_without_overlap():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    train, test = (make_source(config(source="digits"), part) for part in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    levels, targets = (
        np.concatenate([getattr(part, name) for part in (train, test)])
        for name in ("images", "labels")
    )
    rows = np.column_stack([np.rint(levels.reshape(1797, 64) / 255 * 16), targets])
    expected = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)].astype(rows.dtype)
    )
    np.testing.assert_array_equal(np.bincount(test.labels), [36] * 10)


def test_the_digits_split_never_changes():
    test = make_source(config(source="digits"), "test")
    assert test.digest == "e238b59e18568fc3"
    assert test.labels[:10].tolist() == [6, 8, 3, 6, 2, 5, 5, 6, 0, 1]


def test_digits_statistics_are_those_of_the_training_split():
    train = make_source(config(source="digits"), "train")
    assert train.mean[0] == pytest.approx(train.images.mean() / 255, abs=5e-4)
    assert train.std[0] == pytest.approx(train.images.std() / 255, abs=1e-3)


def test_a_digits_run_imports_neither_tensorflow_nor_scikit_learn():
    program = (
        "import sys; from ml_collections import ConfigDict; import vitattn.data as d;"
        "c = ConfigDict({k: v for k, (v, _) in d.data_defaults().items()});"
        "c.source, c.augment, c.workers = 'digits', 'shift', 0;"
        "b = next(d.train_batches(d.make_source(c, 'train'), c, 8, 0, 0, 0, 1, 8));"
        "print(b['image'].shape, [m for m in"
        " ('tensorflow', 'tensorflow_datasets', 'sklearn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert (done.stdout, done.stderr, done.returncode) == ("(8, 8, 8, 3) []\n", "", 0)


def test_synthetic_records_are_fixed_and_labelled_in_turn():
    source = make_source(config(source="synthetic:10"), "train")
    assert (len(source), source.num_classes) == (1_281_167, 10)
    np.testing.assert_array_equal(source[7].image, source[7].image)
    assert not np.array_equal(source[7].image, source[17].image)
    assert source[7].image.shape == (256, 256, 3)
    assert [source[n].label for n in (0, 7, 17)] == [0, 7, 7]
    with pytest.raises(ConfigError, match="number of classes"):
        make_source(config(source="synthetic:many"), "train")


def test_unknown_names_show_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'imagenet'\?"):
        make_source(config(source="imagnet"), "train")
    with pytest.raises(ConfigError, match="takes nothing after a colon"):
        make_source(config(source="digits:3"), "train")
    with pytest.raises(ConfigError, match="split='valid'"):
        make_source(config(source="digits"), "valid")


def test_the_table_of_kinds_makes_the_help_and_the_messages():
    with pytest.raises(ConfigError) as caught:
        make_source(config(source="nothing"), "train")
    _, meaning = data_defaults()["source"]
    for text in (str(caught.value), meaning):
        assert "imagenet, folder:PATH, cifar100, fashion_mnist, idx:DIR, digits, synthetic" in text
    named = {form.partition(":")[0] for form in catalog.usage().split(", ")}
    assert named == {*catalog.KINDS, "module"}  # and those of users


def test_holding_out_divides_the_training_set():
    c = config(source="digits", holdout=0.1)
    train, held = make_source(c, "train"), make_source(c, "holdout")
    assert (len(train), len(held)) == (1437 - 144, 144)
    assert not set(train.records) & set(held.records)
    assert held.describe(0) == f"digits train record {held.records[0]}"
    assert (
        len({train.digest, held.digest, make_source(config(source="digits"), "train").digest}) == 3
    )
    with pytest.raises(ConfigError, match=r"data\.holdout=0\.04"):
        make_source(config(source="digits"), "holdout")
    with pytest.raises(ConfigError, match=r"holdout=1\.5"):
        make_source(config(source="digits", holdout=1.5), "train")


def test_more_classes_than_the_model_has_is_named():
    source = make_source(config(source="digits"), "train")
    check_classes(source, 10)
    with pytest.raises(DataError, match=r"10 classes .* 7 outputs.*num_classes=10"):
        check_classes(source, 7)


# ---------------------------------------------------------------- folder


def test_a_folder_with_train_and_val(tmp_path):
    c = folder(tmp_path)
    (tmp_path / "train" / "ant" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".git").mkdir()
    train, test = make_source(c, "train"), make_source(c, "test")
    assert train.class_names == ("ant", "bee", "cat")
    assert (len(train), len(test), train.num_classes) == (12, 12, 3)
    assert [train[n].label for n in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert train.describe(5) == str(tmp_path / "train" / "bee" / "1.PNG")
    assert train[5].image == (tmp_path / "train" / "bee" / "1.PNG").read_bytes()
    again = pickle.loads(pickle.dumps(train))
    assert again[5] == train[5]


def test_validation_may_lack_classes_but_not_bring_new_ones(tmp_path):
    c = folder(tmp_path, parts=("train",))
    write_image(tmp_path / "val" / "cat" / "x.jpg")
    assert make_source(c, "test")[0].label == 2
    write_image(tmp_path / "val" / "dog" / "x.jpg")
    with pytest.raises(DataError, match=r"1 class folders that .*train lacks: dog.*ant, bee, cat"):
        make_source(c, "test")


@pytest.mark.parametrize("below", ["", "train"])
def test_without_validation_a_fixed_part_of_each_class_is_held_out(tmp_path, below):
    folder(tmp_path, parts=(below,), images=10)
    c = config(source=f"folder:{tmp_path}", holdout=0.2)
    parts = {part: make_source(c, part) for part in ("train", "test", "holdout")}
    assert parts["test"].names == parts["holdout"].names
    assert not set(parts["train"].names) & set(parts["test"].names)
    for part, count in (("train", 8), ("test", 2)):
        np.testing.assert_array_equal(np.bincount(parts[part].labels), [count] * 3)
    before = set(parts["test"].names)
    write_image(tmp_path / below / "bee" / "new.jpg")
    assert len(before - set(make_source(c, "test").names)) <= 1


def test_a_flat_folder_without_a_part_to_hold_out_says_how(tmp_path):
    folder(tmp_path, parts=("",))
    with pytest.raises(DataError, match=r"no folder val beside train.*data\.holdout=0\.1"):
        make_source(config(source=f"folder:{tmp_path}"), "test")


def test_the_digest_notices_names_sizes_and_classes(tmp_path):
    c = folder(tmp_path)
    digests = [make_source(c, "train").digest, make_source(c, "train").digest]
    assert digests[0] == digests[1]
    write_image(tmp_path / "train" / "ant" / "0.jpg", seed=9)
    digests.append(make_source(c, "train").digest)
    os.rename(tmp_path / "train" / "ant" / "1.PNG", tmp_path / "train" / "ant" / "9.PNG")
    digests.append(make_source(c, "train").digest)
    assert len(set(digests)) == 3


def make_mistake(root, name):
    """Builds a wrong layout; returns (source path, what the message must say)."""
    if name == "missing":
        return root / "nope", r"nope does not exist.*Expected: .*train/<class>"
    if name == "file":
        write_image(root / "x.jpg")
        return root / "x.jpg", "is a file"
    if name == "nothing":
        return root, "0 files, no folders"
    if name == "no classes":
        write_image(root / "x.jpg")
        return root, "1 images but no class folders"
    folder(root)
    if name == "empty class":
        (root / "train" / "dog").mkdir()
        return root, r"class folder .*dog has no images\."
    if name == "other files":
        (root / "train" / "dog").mkdir()
        (root / "train" / "dog" / "a.heic").write_text("x")
        return root, r"dog has no images \(1 other files: a\.heic\).*\.jpg"
    if name == "too deep":
        return root.parent, r"holds folders \(train, val\).*Expected"
    if name == "link to itself":
        (root / "train" / "loop").symlink_to(root / "train" / "loop")
        return root, r"train/loop cannot be opened: Too many levels"
    if name == "link to parent":
        (root / "train" / "dog").symlink_to(root / "train")
        return root, r"dog holds folders"
    raise ValueError(name)


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "file",
        "nothing",
        "no classes",
        "empty class",
        "other files",
        "too deep",
        "link to itself",
        "link to parent",
    ],
)
def test_a_wrong_layout_says_what_is_there_and_what_is_expected(tmp_path, name):
    root = tmp_path / "images"
    root.mkdir()
    path, message = make_mistake(root, name)
    with pytest.raises(DataError, match=message):
        make_source(config(source=f"folder:{path}"), "train")


def test_the_layout_that_is_expected_is_below_the_folder_that_was_named(tmp_path):
    folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "aside")
    (tmp_path / "test").mkdir()
    write_image(tmp_path / "test" / "x.jpg")
    with pytest.raises(DataError, match="test has 1 images but no class folders") as caught:
        make_source(config(source=f"folder:{tmp_path}"), "test")
    assert f"{tmp_path}/train/<class>" in str(caught.value)
    assert "test/train" not in str(caught.value)


def test_a_file_that_vanished_is_an_unreadable_record(tmp_path):
    source = make_source(folder(tmp_path), "train")
    (tmp_path / "train" / "ant" / "0.jpg").unlink()
    with pytest.raises(UnreadableRecord, match="No such file"):
        source[0]


# ---------------------------------------------------------------- CIFAR-100


def cifar_bytes(count, seed=0):
    records = np.random.default_rng(seed).integers(0, 256, (count, 3074), np.uint8)
    records[:, 0] %= 20
    records[:, 1] %= 100
    return records


def cifar_folder(root, archive=False):
    inner = root / "cifar-100-binary"
    inner.mkdir()
    for part, count in (("train", 50), ("test", 10)):
        (inner / f"{part}.bin").write_bytes(cifar_bytes(count).tobytes())
    names = "\n".join(f"thing{n}" for n in range(100))
    (inner / "fine_label_names.txt").write_text(names + "\n")
    if archive:
        with tarfile.open(root / "cifar-100-binary.tar.gz", "w:gz") as tar:
            tar.add(inner, "cifar-100-binary")
        for file in inner.iterdir():
            file.unlink()
        inner.rmdir()
    return config(source="cifar100", dir=str(root))


@pytest.mark.parametrize("archive", [False, True])
def test_cifar_100_from_the_official_binary_version(tmp_path, archive):
    c = cifar_folder(tmp_path, archive)
    source = make_source(c, "train")
    records = cifar_bytes(50)
    assert (len(source), source.num_classes, len(make_source(c, "test"))) == (50, 100, 10)
    assert source.class_names[99] == "thing99"
    assert source[3].label == records[3, 1]
    # Pixel (row 5, column 9) of the green plane is byte 2 + 1024 + 5 * 32 + 9.
    assert source[3].image[5, 9, 1] == records[3, 2 + 1024 + 5 * 32 + 9]
    c.holdout = 0.04
    assert (len(make_source(c, "train")), len(make_source(c, "holdout"))) == (48, 2)


def test_damaged_cifar_files_are_named(tmp_path):
    c = cifar_folder(tmp_path)
    file = tmp_path / "cifar-100-binary" / "train.bin"
    records = cifar_bytes(50)
    records[7, 1] = 100
    file.write_bytes(records.tobytes())
    with pytest.raises(DataError, match=r"record 7 \(offset 21518\) has the label 100"):
        make_source(c, "train")
    file.write_bytes(cifar_bytes(50).tobytes()[:-1])
    with pytest.raises(DataError, match="no multiple of the 3074"):
        make_source(c, "train")


def test_a_torn_cifar_archive_is_named(tmp_path):
    c = cifar_folder(tmp_path, archive=True)
    file = tmp_path / "cifar-100-binary.tar.gz"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be unpacked"):
        make_source(c, "train")


def hostile_archive(root, *members):
    """An archive of (name, size in bytes or TarInfo): 8 GB of zeros are 8 MB in it."""
    chunk = gzip.compress(bytes(2**26))
    with open(root / "cifar-100-binary.tar.gz", "wb") as file:
        for name, size in members:
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = size
            file.write(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
            for _ in range(size // 2**26):
                file.write(chunk)
    return config(source="cifar100", dir=str(root))


def test_a_cifar_archive_that_unpacks_to_8_gigabytes_is_refused_before_it_is_read(tmp_path):
    c = hostile_archive(tmp_path, ("train.bin", 2**33))
    assert (tmp_path / "cifar-100-binary.tar.gz").stat().st_size < 2**24
    with pytest.raises(DataError, match=r"train\.bin is no plain file of at most 153,700,000"):
        make_source(c, "train")


def test_nor_may_anything_else_in_it_unpack_to_gigabytes(tmp_path, monkeypatch):
    c = hostile_archive(tmp_path, ("readme.html", 2**33), ("train.bin", 0))
    monkeypatch.setattr(cifar100, "_MOST_UNPACKED", 2**27)
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than 134,217,728 bytes"):
        make_source(c, "train")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_links_and_sparse_members_of_a_cifar_archive_are_not_followed(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.FIFOTYPE):
        member = tarfile.TarInfo("cifar-100-binary/train.bin")
        member.type, member.linkname = kind, "/dev/zero"
        content = member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
        (tmp_path / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=r"no plain file|cannot be unpacked"):
            make_source(config(source="cifar100", dir=str(tmp_path)), "train")


def test_cifar_files_are_bounded_and_regular(tmp_path):
    c = cifar_folder(tmp_path)
    inner = tmp_path / "cifar-100-binary"
    with open(inner / "train.bin", "wb") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(DataError, match=r"train\.bin is larger than 146 MiB"):
        make_source(c, "train")
    (inner / "fine_label_names.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"holds 2 names, not 100"):
        make_source(c, "test")
    (inner / "test.bin").unlink()
    os.mkfifo(inner / "test.bin")  # is passed over, and nothing waits for its writer
    with pytest.raises(DataError, match="CIFAR-100 was not found"):
        make_source(c, "test")


def test_the_pickled_cifar_version_is_refused(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match="pickle, which can run any program"):
        make_source(config(source="cifar100", dir=str(tmp_path)), "train")


def test_absent_cifar_says_how_to_go_on(tmp_path):
    with pytest.raises(DataError, match=r"not found.*binary\.tar\.gz.*tfds build.*synthetic:100"):
        make_source(config(source="cifar100", dir=str(tmp_path)), "train")
