"""Batches with sharper augmentation: off is as before, on is a function of seed and batch number on
any number of hosts and workers, repeats hold each record so often, evaluation never changes.
"""

import numpy as np
import pytest
from ml_collections import ConfigDict

from trainlib.data.order import generator, record_order
from trainlib.errors import ConfigError
from vitattn.augmentation import settings
from vitattn.data import data_defaults, eval_batches, make_source, train_batches
from vitattn.images import augment
from vitattn.images.decode import open_picture

BATCH, RECORDS = 48, 1437  # two pieces for one host
SHARP = {
    "mixup": 0.2,
    "cutmix": 1.0,
    "rand_augment": 2,
    "rand_augment_deviation": 0.5,
    "erase": 0.5,
    "repeats": 3,
}


def config(**values):
    defaults = {key: value for key, (value, _) in data_defaults().items()}
    chosen = {"source": "digits", "augment": "shift", "eval_crop": 1.0, "workers": 0}
    return ConfigDict({**defaults, **chosen, **values})


def global_batches(c, hosts, start, count, seed=5):
    """The rows of all hosts put together."""
    source, parts = make_source(c, "train"), []
    for host in range(hosts):
        with train_batches(source, c, BATCH, seed, start, host, hosts, 8) as batches:
            parts.append([next(batches) for _ in range(count)])
    return [
        {key: np.concatenate([part[b][key] for part in parts]) for key in parts[0][b]}
        for b in range(count)
    ]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope="module")
def sharp():
    return global_batches(config(**SHARP), 1, 88, 4)  # epoch 1 begins in batch 89


@pytest.mark.parametrize(("hosts", "start"), [(1, 90), (2, 88), (4, 89)])
def test_batches_do_not_depend_on_hosts_or_on_where_a_run_goes_on(sharp, hosts, start):
    found = global_batches(config(**SHARP), hosts, start, 92 - start)
    assert_same(found, sharp[start - 88 :])


@pytest.mark.thorough
def test_worker_processes_make_the_same_batches(sharp):
    assert_same(global_batches(config(**SHARP, workers=2), 1, 88, 4), sharp)


def test_off_is_crop_and_normalisation_alone():
    c = config()
    source, rows = make_source(c, "train"), record_order(5, 0, RECORDS)[:BATCH]
    (batch,) = global_batches(c, 1, 0, 1)
    assert set(batch) == {"image", "label", "weight", "index"}
    np.testing.assert_array_equal(batch["index"], rows)
    for number, record in enumerate(rows):
        picture, rng = open_picture(source[record].image), generator(5, 0, record)
        levels = augment.shift(picture, 8, rng, source.mean)
        expected = np.empty((8, 8, 3), np.float32)
        augment.normalise(levels, source.mean, source.std, expected)
        np.testing.assert_array_equal(batch["image"][number], expected)


def test_a_batch_repeats_its_records_and_an_epoch_holds_each_so_often():
    c = config(repeats=3)
    batches = global_batches(c, 1, 0, 90)  # 1440 records of 16 a batch
    for b, batch in enumerate(batches[:3]):
        first, second, third = batch["index"].reshape(3, 16)
        np.testing.assert_array_equal(first, record_order(5, 0, RECORDS)[16 * b : 16 * (b + 1)])
        np.testing.assert_array_equal(second, np.roll(first, -1))
        np.testing.assert_array_equal(third, np.roll(first, -2))
    images = batches[0]["image"].reshape(3, 16, -1)
    readings = np.stack([np.roll(image, k, 0) for k, image in enumerate(images)])
    alike = (readings == readings[0]).all((0, 2))
    assert alike.sum() < 8, "half of the readings are not moved, so an eighth of the records"
    index = np.concatenate([batch["index"] for batch in batches])
    counts = np.bincount(index, minlength=RECORDS)
    assert np.sort(counts)[:-3].tolist() == [3] * (RECORDS - 3), "three records of the next epoch"
    assert counts.sum() == 90 * BATCH
    source = make_source(c, "train")
    labels = [source[record].label for record in batches[0]["index"]]
    np.testing.assert_array_equal(batches[0]["label"], labels)


def test_mixed_batches_are_unmixed_ones_mixed(sharp):
    """Repeats, operations and erasing come first; partners are neighbours."""
    plain = global_batches(config(**{**SHARP, "mixup": 0.0, "cutmix": 0.0}), 1, 88, 1)[0]
    mixed = sharp[0]
    np.testing.assert_array_equal(mixed["index"], plain["index"])
    np.testing.assert_array_equal(mixed["partner"], plain["label"].reshape(-1, 2)[:, ::-1].ravel())
    assert (mixed["index"][0::2] != mixed["index"][1::2]).all(), "nobody meets themselves"
    # Averages: the image lies on the line between two; mixed by mixup or by pixels.
    share = mixed["share"][:, None, None, None]
    other = plain["image"].reshape(-1, 2, 8, 8, 3)[:, ::-1].reshape(plain["image"].shape)
    averaged = share * plain["image"] + (1 - share) * other
    by_mixup = np.abs(mixed["image"] - averaged).max((1, 2, 3)) < 1e-5
    from_other = (mixed["image"] == other).all(-1).sum((1, 2))
    from_own = (mixed["image"] == plain["image"]).all(-1).sum((1, 2))
    for row in np.flatnonzero(~by_mixup):
        assert from_own[row] >= round(64 * mixed["share"][row])
        assert from_own[row] + from_other[row] >= 64
    assert 10 < by_mixup.sum() < 40


def test_crops_are_those_of_a_run_without():
    """So that a comparison changes one thing: erasing draws after the crop."""
    whole = global_batches(config(), 1, 0, 1)[0]["image"]
    erased = global_batches(config(erase=1.0, erase_area=(0.1, 0.2)), 1, 0, 1)[0]["image"]
    changed = (whole != erased).any(-1)
    assert (changed.mean((1, 2)) < 0.3).all()
    assert (changed.sum((1, 2)) > 0).all()


def test_evaluation_never_changes():
    for split in ("train", "test"):
        found = []
        for values in ({}, SHARP):
            c = config(**values)
            with eval_batches(make_source(c, split), c, 20, 0, 1, 8) as batches:
                found.append([next(batches)])
        assert_same(*found)


def test_hosts_that_have_no_pairs():
    c = config(mixup=0.2)
    with pytest.raises(ConfigError, match="each of 2 hosts"):
        train_batches(make_source(c, "train"), c, 6, 0, 0, 0, 2, 8)


def test_pieces_hold_whole_pairs():
    """Images of 512 x 1024 are read in threes where nothing is mixed."""
    c, size = config(mixup=1.0), (512, 1024)
    source = make_source(c, "train")
    with train_batches(source, c, 6, 0, 0, 0, 1, size) as batches:
        mixed = next(batches)
    with train_batches(source, config(), 6, 0, 0, 0, 1, size) as batches:
        plain = next(batches)
    share = mixed["share"][3]
    expected = share * plain["image"][3] + (1 - share) * plain["image"][2]
    np.testing.assert_allclose(mixed["image"][3], expected, atol=1e-4)
    assert settings.mixes(c)
