"""Batches of pictures with boxes: the same for any number of hosts, workers and restarts; what is
lost of boxes and records is counted."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import DataError
from vitattn.data.unlabelled import Unlabelled
from vitattn.detection.data.shapes import Shapes
from vitattn.detection.data.source import BoxedExample
from vitattn.detection.input.pipeline import COUNTS, eval_batches, image_batches, train_batches
from vitattn.detection.settings import data_settings

BATCH, SIZE = 40, (96, 128)  # two pieces for one host


def config(**values):
    defaults = {key: value for key, (value, _) in data_settings().items()}
    chosen = {"workers": 0, "max_boxes": 8, "jitter": (0.8, 2.0)}
    return ConfigDict({**defaults, **chosen, **values})


def take(reader, count):
    with reader:
        return [next(reader) for _ in range(count)]


def global_batches(hosts, start, count, seed=5, **values):
    """The examples of all hosts put together."""
    source, c = Shapes("train"), config(**values)
    parts = [
        take(train_batches(source, c, BATCH, seed, start, host, hosts, SIZE), count)
        for host in range(hosts)
    ]
    return [
        {key: np.concatenate([part[b][key] for part in parts]) for key in parts[0][b]}
        for b in range(count)
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    keys = {"image", "boxes", "classes", "counts", "weight", "index"}
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other) == keys
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope="module")
def reference():
    """512 records are 12.8 batches."""
    return global_batches(1, 0, 15)


@pytest.mark.thorough
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(reference):
    assert_same(global_batches(2, 11, 3), reference[11:14])


@pytest.mark.parametrize("start", [1, 13])
def test_a_run_that_starts_again_reads_what_an_unbroken_one_reads(reference, start):
    assert_same(global_batches(1, start, 2), reference[start : start + 2])


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(reference):
    assert_same(global_batches(1, 10, 4, workers=2), reference[10:14])


def test_shapes_types_and_padding(reference):
    batch = reference[0]
    kinds = {key: (value.shape[1:], str(value.dtype)) for key, value in batch.items()}
    assert kinds == {
        "image": ((*SIZE, 3), "float32"),
        "boxes": ((8, 4), "float32"),
        "classes": ((8,), "int32"),
        "counts": ((4,), "int32"),
        "weight": ((), "float32"),
        "index": ((), "int64"),
    }
    for batch in reference:
        real = batch["classes"] >= 0
        assert not batch["boxes"][~real].any()
        assert (batch["classes"][~real] == -1).all()
        top, left, bottom, right = np.moveaxis(batch["boxes"][real], -1, 0)
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (bottom <= SIZE[0]).all()
        assert (right <= SIZE[1]).all()
        assert (np.minimum(bottom - top, right - left) >= 1).all()


def test_every_box_of_a_record_is_a_target_or_counted(reference):
    source = Shapes("train")
    total = np.zeros(len(COUNTS), int)
    for batch in reference:
        given = [len(source[record].boxes) for record in batch["index"]]
        counts = batch["counts"]
        np.testing.assert_array_equal(counts[:, 0], given)
        targets = (batch["classes"] >= 0).sum(1)
        np.testing.assert_array_equal(targets, counts[:, 0] - counts[:, 1:].sum(1))
        total += counts.sum(0)
    assert 0 < total[1] < 0.4 * total[0], "of larger pictures some shapes are cut away"


def test_a_record_is_augmented_anew_in_each_epoch(reference):
    index = np.concatenate([b["index"] for b in reference])
    images = np.concatenate([b["image"] for b in reference])
    np.testing.assert_array_equal(np.sort(index[:512]), np.arange(512))
    again = index[512]
    first = int(np.flatnonzero(index[:512] == again)[0])
    assert not np.array_equal(images[first], images[512])


class Given:
    """A source of given examples."""

    in_memory, left_out = True, ()
    mean = std = (0.5, 0.5, 0.5)
    class_names, num_classes, category_ids, digest = ("a", "b"), 2, (1, 2), "given"

    def __init__(self, *examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, record):
        return self.examples[record]

    def describe(self, record):
        return f"given {record}"


def example(boxes, classes=None, crowd=None, image=None, shape=(60, 80)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    classes = np.zeros(len(boxes), np.int32) if classes is None else np.asarray(classes)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd)
    image = np.full((*shape, 3), 200, np.uint8) if image is None else image
    return BoxedExample(image, boxes, classes, crowd)


def only_batch(*examples, **values):
    source = Given(*examples)
    c = config(augment="none", max_bad_fraction=1.0, **values)
    with train_batches(source, c, len(examples), 0, 0, 0, 1, SIZE) as batches:
        batch = next(batches)
        order = np.argsort(batch["index"])
        return {key: value[order] for key, value in batch.items()}, batches.bad


def test_boxes_that_are_lost_are_counted_by_reason():
    """60 x 80 pixels become 96 x 128: everything is 1.6 times as large."""
    boxes = [
        (10, 10, 20, 30),
        (59.5, 0, 70, 80),  # 0.5 rows are seen: 0.8 pixels
        (30, 30, 30, 40),  # no area
        (60, 10, 70, 20),  # below the picture
        (-5, -5, 10, 10),
        (1, 1, 1.5, 40),  # 0.8 pixels
        (20, 20, 30, 30),  # a crowd
        (0, 0, 60, 80),
        (0, 0, 30, 40),
    ]
    classes = [0, 0, 0, 0, 1, 0, 0, 1, 0]
    crowd = [False] * 6 + [True] + [False] * 2
    batch, bad = only_batch(example(boxes, classes, crowd), max_boxes=3)
    assert not bad
    assert dict(zip(COUNTS, batch["counts"][0], strict=True)) == {
        "boxes": 8,
        "outside": 2,
        "thin": 2,
        "beyond": 1,
    }
    expected = [(16, 16, 32, 48), (0, 0, 16, 16), (0, 0, 96, 128)]
    np.testing.assert_allclose(batch["boxes"][0], expected, rtol=1e-6)
    np.testing.assert_array_equal(batch["classes"][0], [0, 1, 1])


def test_more_boxes_than_fit_are_said_once(capfd):
    few, many = example([(0, 0, 9, 9)] * 3), example([(0, 0, 9, 9)] * 5)
    source, c = Given(few, many, many), config(augment="none", max_boxes=3)
    with train_batches(source, c, 3, 0, 0, 0, 1, SIZE) as batches:
        for _ in range(3):
            next(batches)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("warning") == 1
    assert "has 5 boxes to find and data.max_boxes=3" in said
    assert "--config.data.max_boxes=5" in said


def test_a_picture_without_boxes_is_a_picture():
    batch, bad = only_batch(example([]), example([(0, 0, 9, 9)], crowd=[True]))
    assert not bad
    assert batch["weight"].all()
    assert (batch["classes"] == -1).all()
    assert not batch["counts"].any()


def torn():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:1500]


def test_what_cannot_be_read_has_weight_0_and_is_named():
    box = [(1, 1, 20, 20)]
    batch, bad = only_batch(
        example(box),
        example(box, image=torn()),
        example([(1, 1, np.nan, 20)]),
        example(box, classes=[2]),
        example(box, classes=[-1]),
        example([(20, 1, 10, 20)]),
        example(box, classes=[0, 0]),
        example([(1, 1, 20, np.inf)]),
        example(box, classes=[1]),
    )
    np.testing.assert_array_equal(batch["weight"], [1, 0, 0, 0, 0, 0, 0, 0, 1])
    unread = batch["weight"] == 0
    assert not batch["image"][unread].any()
    assert (batch["classes"][unread] == -1).all()
    assert not batch["counts"][unread].any()
    reasons = [why for _, why in sorted(bad)]
    words = ("truncated", "not finite", "class 2, outside 0..1", "class -1", "before its top")
    for reason, word in zip(reasons, (*words, "2 classes", "not finite"), strict=True):
        assert word in reason


def test_too_many_unreadable_records_stop_the_run():
    source = Given(*[example([(1, 1, np.nan, 9)])] * 40)
    with pytest.raises(DataError, match="given 0: has a box that is not finite"):
        next(train_batches(source, config(), 40, 0, 0, 0, 1, SIZE))


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_reads_each_record_once_in_order_and_says_how_it_was_scaled(hosts):
    source, c = Shapes("test"), config()
    parts = [list(eval_batches(source, c, 50, host, hosts, SIZE)) for host in range(hosts)]
    assert {len(part) for part in parts} == {3}
    batches = [{k: np.concatenate([p[b][k] for p in parts]) for k in parts[0][b]} for b in range(3)]
    assert set(batches[0]) == {"image", "weight", "index", "scale", "original"}
    index = np.concatenate([b["index"] for b in batches])
    np.testing.assert_array_equal(index, np.r_[np.arange(128), np.full(22, -1)])
    last = batches[2]
    np.testing.assert_array_equal(last["weight"], np.r_[np.ones(28), np.zeros(22)])
    assert not last["image"][28:].any()
    assert (last["scale"][28:] == 1).all()
    original = np.concatenate([b["original"] for b in batches])[:128]
    shapes = [source[record].image.shape[:2] for record in range(128)]
    np.testing.assert_array_equal(original, shapes)
    covered = original * np.concatenate([b["scale"] for b in batches])[:128]
    np.testing.assert_allclose(covered, np.rint(covered), atol=1e-4)
    np.testing.assert_allclose((covered / SIZE).max(1), 1, atol=1e-6)


def test_evaluation_and_unaugmented_training_see_the_same():
    source, c = Shapes("test"), config(augment="none")
    found = next(eval_batches(source, c, 16, 0, 1, SIZE))
    with train_batches(source, c, 128, 0, 0, 0, 1, SIZE) as batches:
        trained = next(batches)
    for number in range(16):
        row = int(np.flatnonzero(trained["index"] == number)[0])
        np.testing.assert_array_equal(trained["image"][row], found["image"][number])
        kept = trained["classes"][row] >= 0
        scaled = source[number].boxes * np.tile(found["scale"][number], 2)
        np.testing.assert_allclose(trained["boxes"][row][kept], scaled, atol=1e-3)


def test_images_for_prediction_are_seen_as_those_of_evaluation():
    source, c = Shapes("test"), config()
    pictures = [source[record].image for record in range(5)]
    given = Unlabelled(pictures, source.mean, source.std)
    found = next(image_batches(given, c, 8, SIZE))
    expected = next(eval_batches(source, c, 8, 0, 1, SIZE))
    for key in ("image", "scale", "original"):
        np.testing.assert_array_equal(found[key][:5], expected[key][:5])
    np.testing.assert_array_equal(found["index"], [0, 1, 2, 3, 4, -1, -1, -1])


def test_statistics_of_the_configuration_win():
    source = Given(example([]))
    found = next(eval_batches(source, config(mean=(0.1,) * 3, std=(2.0,) * 3), 1, 0, 1, SIZE))
    np.testing.assert_allclose(found["image"], (200 / 255 - 0.1) / 2, rtol=1e-5)
