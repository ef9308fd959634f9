"""Batches of images: the same rows for any number of hosts, workers and restarts; bad images;
epochs."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import ConfigError, DataError
from vitattn.data import (
    data_defaults,
    eval_batches,
    make_source,
    pipeline,
    reading,
    train_batches,
)
from vitattn.data.source import Example, Subset

BATCH = 48  # two pieces for one host, and no divisor of 1437


def config(**values):
    defaults = {key: value for key, (value, _) in data_defaults().items()}
    chosen = {"source": "digits", "augment": "shift", "eval_crop": 1.0, "workers": 0}
    return ConfigDict({**defaults, **chosen, **values})


def take(reader, count):
    with reader:
        return [next(reader) for _ in range(count)]


def global_batches(c, hosts, start, count, seed=5):
    """The rows of all hosts put together."""
    source = make_source(c, "train")
    parts = [
        take(train_batches(source, c, BATCH, seed, start, host, hosts, 8), count)
        for host in range(hosts)
    ]
    return [
        {key: np.concatenate([part[b][key] for part in parts]) for key in parts[0][b]}
        for b in range(count)
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other) == {"image", "label", "weight", "index"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope="module")
def reference():
    return global_batches(config(), 1, 0, 34)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(reference, hosts):
    assert_same(global_batches(config(), hosts, 28, 4), reference[28:32])


@pytest.mark.parametrize("start", [1, 29, 30])
def test_a_run_that_starts_again_reads_what_an_unbroken_one_reads(reference, start):
    assert_same(global_batches(config(), 1, start, 4), reference[start : start + 4])


@pytest.mark.thorough
def test_worker_processes_make_the_same_batches(reference):
    assert_same(global_batches(config(workers=2), 1, 27, 7), reference[27:34])


def test_shapes_types_and_normalisation(reference):
    batch = reference[0]
    assert batch["image"].shape == (BATCH, 8, 8, 3)
    kinds = {key: str(value.dtype) for key, value in batch.items()}
    assert kinds == {"image": "float32", "label": "int32", "weight": "float32", "index": "int64"}
    pixels = np.concatenate([b["image"] for b in reference])
    assert abs(pixels.mean()) < 0.15
    assert abs(pixels.std() - 1) < 0.15


def test_an_epoch_holds_each_record_once_with_its_own_label(reference):
    index = np.concatenate([b["index"] for b in reference])[:1437]
    np.testing.assert_array_equal(np.sort(index), np.arange(1437))
    source = make_source(config(), "train")
    labels = np.concatenate([b["label"] for b in reference])[:1437]
    np.testing.assert_array_equal(labels, source.labels[index])


def test_a_record_is_augmented_anew_in_each_epoch_and_seeds_differ(reference):
    index = np.concatenate([b["index"] for b in reference])
    pixels = np.concatenate([b["image"] for b in reference])
    again = index[1437]
    first = int(np.flatnonzero(index[:1437] == again)[0])
    assert not np.array_equal(pixels[first], pixels[1437])
    other = global_batches(config(), 1, 0, 1, seed=6)[0]
    assert not np.array_equal(other["index"], reference[0]["index"])


@pytest.mark.thorough
@pytest.mark.parametrize(("hosts", "workers"), [(1, 0), (4, 0), (1, 2)])
def test_evaluation_reads_each_record_once_in_order_and_pads(hosts, workers):
    c = config(workers=workers)
    source = make_source(c, "test")
    parts = [list(eval_batches(source, c, 100, host, hosts, 8)) for host in range(hosts)]
    assert {len(part) for part in parts} == {4}
    batches = [{k: np.concatenate([p[b][k] for p in parts]) for k in parts[0][b]} for b in range(4)]
    index = np.concatenate([b["index"] for b in batches])
    weight = np.concatenate([b["weight"] for b in batches])
    np.testing.assert_array_equal(index, np.r_[np.arange(360), np.full(40, -1)])
    np.testing.assert_array_equal(weight, np.r_[np.ones(360), np.zeros(40)])
    np.testing.assert_array_equal(batches[3]["image"][60:], 0)
    labels = np.concatenate([b["label"] for b in batches])[:360]
    np.testing.assert_array_equal(labels, source.labels)


@pytest.mark.parametrize(("size", "most"), [(8, 32), (224, 32), (640, 4), ((512, 1024), 3)])
def test_workers_make_less_at_a_time_of_larger_images(size, most):
    """20 MiB: 224 pixels are 0.6 MB, 640 are 4.9 MB, 512 x 1024 are 6.3 MB."""
    c = config()
    reader = pipeline._reader(make_source(c, "train"), c, size, 0, None)
    assert reading._piece_size(reader) == most


def test_evaluation_is_not_augmented():
    c = config()
    source = make_source(c, "test")
    batch = next(eval_batches(source, c, 8, 0, 1, 8))
    expected = (source.images[:8].astype(np.float32) / 255 - source.mean) / source.std
    np.testing.assert_allclose(batch["image"], expected, atol=1e-5)


def test_a_set_smaller_than_the_batch_repeats_within_it():
    c = config()
    source = Subset(make_source(c, "train"), np.arange(5), "five")
    batch = take(train_batches(source, c, 16, 0, 0, 0, 1, 8), 1)[0]
    # Three epochs of 5 and one record of the fourth.
    np.testing.assert_array_equal(np.sort(np.bincount(batch["index"])), [3, 3, 3, 3, 4])


def image_folder(root, bad=()):
    """60 images, of which the numbers in `bad` are torn."""
    for n in range(60):
        path = root / "train" / ("ant", "bee")[n % 2] / f"{n:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 255, (50, 70, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if n in bad:
            path.write_bytes(path.read_bytes()[:1500])
    return config(source=f"folder:{root}", augment="inception", eval_crop=0.875)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_keeps_its_row_with_weight_0_and_is_named(tmp_path, workers):
    c = image_folder(tmp_path, bad=(7, 30))
    c.workers = workers
    source = make_source(c, "train")
    names = [source.describe(n) for n in range(60)]
    torn = [n for n, name in enumerate(names) if name.endswith(("07.jpg", "30.jpg"))]
    with train_batches(source, c, 20, 0, 0, 0, 1, 32) as reader:
        batches = [next(reader) for _ in range(6)]
        bad = reader.bad
    index = np.concatenate([b["index"] for b in batches])
    weight = np.concatenate([b["weight"] for b in batches])
    np.testing.assert_array_equal(np.sort(index[:60]), np.arange(60))
    np.testing.assert_array_equal(weight == 0, np.isin(index, torn))
    images = np.concatenate([b["image"] for b in batches])
    assert not images[weight == 0].any()
    assert all(image.any() for image in images[weight == 1])
    assert sorted(where for where, _ in bad) == sorted(names[n] for n in torn)
    assert all("truncated" in why for _, why in bad)


def test_too_many_bad_images_stop_the_run_with_the_list(tmp_path):
    c = image_folder(tmp_path, bad=range(0, 60, 4))
    source = make_source(c, "train")
    with pytest.raises(DataError, match=r"max_bad_fraction=0\.001.*\.jpg: .*truncated"):
        take(train_batches(source, c, 20, 0, 0, 0, 1, 32), 6)
    c.max_bad_fraction = 0.5
    with train_batches(source, c, 20, 0, 0, 0, 1, 32) as reader:
        for _ in range(6):
            next(reader)
        assert len(reader.bad) == 15


def test_a_fraction_of_zero_stops_at_the_first_bad_image(tmp_path):
    c = image_folder(tmp_path, bad=(59,))
    c.max_bad_fraction = 0.0
    source = make_source(c, "train")
    with pytest.raises(DataError, match="1 of the 60 records"):
        list(eval_batches(source, c, 60, 0, 1, 32))


class Mislabelled:
    """A source whose third record has a label that no class has."""

    num_classes, class_names, digest, in_memory = 2, ("a", "b"), "x", True
    mean = std = (0.5, 0.5, 0.5)

    def __len__(self):
        return 100

    def __getitem__(self, record):
        return Example(np.zeros((8, 8, 3), np.uint8), 2 if record == 3 else record % 2)

    def describe(self, record):
        return f"shard 0 record {record}"


def test_a_label_out_of_range_never_reaches_the_loss():
    reader = eval_batches(Mislabelled(), config(), 100, 0, 1, 8)
    batch = next(reader)
    np.testing.assert_array_equal(np.flatnonzero(batch["weight"] == 0), [3])
    assert batch["label"].max() == 1
    assert reader.bad == [("shard 0 record 3", "has the label 2, outside 0..1")]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("augment", "inceptoin", r"Did you mean 'inception"),
        ("eval_crop", 0.0, r"eval_crop=0\.0"),
        ("eval_crop", 1.2, r"eval_crop=1\.2"),
        ("max_bad_fraction", -0.1, r"max_bad_fraction=-0\.1"),
        ("mean", (0.5,), r"data\.mean=\(0\.5,\).*list of 0 or 3"),
        ("std", (0.5, 0.0, 0.5), r"data\.std=.*entry 2 is 0\.0.*each a number from 1e-06"),
        ("workers", -3, r"data\.workers=-3"),
        ("prefetch", 0, r"data\.prefetch=0"),
    ],
)
def test_settings_that_cannot_work_are_named(key, value, message):
    c = config(**{key: value})
    with pytest.raises(ConfigError, match=message):
        train_batches(make_source(c, "train"), c, 8, 0, 0, 0, 1, 8)


def test_negative_seeds_and_undivided_batches_are_named():
    source, c = make_source(config(), "train"), config()
    with pytest.raises(ConfigError, match="seed=-1"):
        train_batches(source, c, 8, -1, 0, 0, 1, 8)
    with pytest.raises(ConfigError, match="does not divide over 3 hosts"):
        train_batches(source, c, 8, 0, 0, 0, 3, 8)
