"""Drawn shapes: boxes are exact, a record is always the same, and the set is what it says."""

import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict

from vitattn.detection.data import shapes
from vitattn.detection.data.shapes import CLASS_NAMES, Scene, Shape, Shapes, make, scene


def drawn(shape, size):
    """How far each pixel of a black ground is covered by a white shape."""
    picture = np.zeros((*size, 3), np.float32)
    shapes._lay_on(picture, shape._replace(colour=(1.0,) * 3, opacity=1.0))
    return picture[..., 0]


@pytest.mark.parametrize("kind", range(len(CLASS_NAMES)), ids=CLASS_NAMES)
def test_boxes_are_those_of_the_pixels(kind):
    """The outermost of many points inside the outline lie on the box."""
    rng = np.random.default_rng(kind)
    for _ in range(8):
        centre, radius = tuple(rng.uniform(25, 35, 2)), rng.uniform(8, 20)
        shape = Shape(kind, centre, radius, rng.uniform(0, 7), (255.0,) * 3, 1.0)
        y, x = np.linspace(0, 60, 601)[:, None], np.linspace(0, 60, 601)
        rows, columns = np.nonzero(shape.distance(y, x) < 0)
        found = np.array([rows.min(), columns.min(), rows.max(), columns.max()]) * 60 / 600
        np.testing.assert_allclose(found, shape.box(), atol=0.21)
        cover = drawn(shape, (60, 60))
        rows, columns = np.nonzero(cover > 0)
        pixels = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
        assert np.abs(pixels - shape.box()).max() < 1.6


@pytest.mark.parametrize(
    ("kind", "area"),
    [("disc", np.pi), ("square", 2.0), ("triangle", 3 * np.sqrt(3) / 4)],
)
def test_shapes_have_the_area_of_their_kind(kind, area):
    """Of radius 1: pi for a disc; 2 for a square of diagonal 2; three thirds of sin(120)/2."""
    shape = Shape(CLASS_NAMES.index(kind), (32.0, 32.0), 20.0, 0.4, (255.0,) * 3, 1.0)
    assert drawn(shape, (64, 64)).sum() == pytest.approx(area * 400, rel=0.01)


def test_an_unturned_square_covers_its_pixels_exactly():
    side = 10.0
    shape = Shape(1, (20.0, 30.0), side / np.sqrt(2), 0.0, (255.0,) * 3, 1.0)
    cover = drawn(shape, (40, 60))
    np.testing.assert_allclose(cover[15:25, 25:35], 1, atol=1e-5)
    np.testing.assert_allclose(cover.sum(), side**2, rtol=1e-5)


def test_a_record_is_the_same_whenever_it_is_drawn():
    source = Shapes("train")
    first = [source[record] for record in (3, 400)]
    other = pickle.loads(pickle.dumps(Shapes("train")))
    for record, example in zip((400, 3), reversed(first), strict=True):
        again = other[record]
        np.testing.assert_array_equal(again.image, example.image)
        np.testing.assert_array_equal(again.boxes, example.boxes)
        np.testing.assert_array_equal(again.classes, example.classes)
    assert other.digest == source.digest != Shapes("test").digest


def test_the_set_is_defined_for_ever():
    """Numbers of the first records as they were first drawn: they change with the set alone."""
    sizes = [scene("train", record).size for record in range(4)]
    assert sizes == [(140, 170), (149, 159), (109, 181), (99, 166)]
    kinds = [[shape.kind for shape in scene("test", record).shapes] for record in range(4)]
    assert kinds == [[3, 0, 1, 0], [2, 2, 1, 0, 0, 0], [], [2, 1, 0, 2]]
    box = (85.991146, 32.846263, 137.998538, 84.853655)
    np.testing.assert_allclose(scene("train", 0).boxes()[0], box, atol=1e-5)


def test_the_set_has_what_a_detector_must_learn():
    scenes = [scene("train", record) for record in range(512)]
    assert len({shown.size for shown in scenes}) > 300
    empty = sum(not shown.shapes for shown in scenes)
    assert 0.03 * 512 < empty < 0.1 * 512
    counts = np.bincount([shape.kind for shown in scenes for shape in shown.shapes])
    assert counts.min() > 280
    assert counts.max() < 1.25 * counts.min()
    overlaps = 0
    for shown in scenes:
        boxes = shown.boxes()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= shown.size).all()
        for a in range(len(boxes)):
            for b in range(a):
                high, wide = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(
                    boxes[a, :2], boxes[b, :2]
                )
                area = min(np.prod(box[2:] - box[:2]) for box in (boxes[a], boxes[b]))
                shared = max(high, 0) * max(wide, 0) / area
                assert shared <= 0.25 + 1e-9
                overlaps += shared > 0
    assert overlaps > 100
    sides = np.concatenate(
        [np.sqrt(np.diff(shown.boxes().reshape(-1, 2, 2), axis=1).prod(-1)) for shown in scenes]
    ).ravel()
    assert sides.min() < 18
    assert sides.max() > 60


def test_no_picture_is_of_both_splits():
    train = {Shapes("train")[record].image.tobytes() for record in range(64)}
    assert not train & {Shapes("test")[record].image.tobytes() for record in range(64)}


def test_the_truth_is_that_of_the_examples():
    source = Shapes("test")
    for record in range(0, 128, 9):
        example, truth = source[record], source.truth(record)
        assert example.image.shape == (truth.height, truth.width, 3)
        x, y, wide, high = truth.boxes.T
        corners = np.stack([y, x, y + high, x + wide], 1)
        np.testing.assert_allclose(example.boxes, corners, atol=1e-4)
        np.testing.assert_array_equal(example.classes, truth.classes)
        np.testing.assert_allclose(truth.area, wide * high)
    whole = source.ground_truth()
    assert len(whole["images"]) == 128
    assert [row["name"] for row in whole["categories"]] == list(CLASS_NAMES)
    assert len(whole["annotations"]) == sum(len(scene("test", r).shapes) for r in range(128))


def test_a_part_can_be_held_out():
    config = ConfigDict({"source": "shapes", "holdout": 0.25})
    train, held_out = make(config, "train"), make(config, "holdout")
    assert (len(train), len(held_out), len(make(config, "test"))) == (384, 128, 128)
    ids = {held_out.image_id(record) for record in range(128)}
    assert not ids & {train.image_id(record) for record in range(384)}


def test_a_scene_lies_on_its_part_of_the_photograph():
    shown = scene("train", 0)
    ground = Scene(*shown[:4], ()).draw()
    picture = shown.draw()
    untouched = np.ones(shown.size, bool)
    for box in shown.boxes():
        top, left, bottom, right = np.rint(box).astype(int) + (-2, -2, 2, 2)
        untouched[max(0, top) : bottom, max(0, left) : right] = False
    np.testing.assert_array_equal(picture[untouched], ground[untouched])
    assert not np.array_equal(picture, ground)
