"""What a detector finds beside what is there, against a slow and plain matching."""

import io

import numpy as np
import pytest
from PIL import Image

from vitattn.detection.answers import sample as samples
from vitattn.detection.data.source import BoxedExample

NAMES = ("cat", "dog")


def overlap(a, b):
    """Intersection over union of two boxes, on a grid of whole pixels."""
    grids = []
    for y0, x0, y1, x1 in (a, b):
        grid = np.zeros((40, 40), bool)
        grid[int(y0) : int(y1), int(x0) : int(x1)] = True
        grids.append(grid)
    return (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()


def slowly(boxes, classes, true_boxes, true_classes):
    free, partners = set(range(len(true_boxes))), []
    for box, kind in zip(boxes, classes, strict=True):
        choices = [(overlap(box, true_boxes[n]), -n) for n in free if true_classes[n] == kind]
        share, place = max(choices, default=(0, 0))
        partners.append(-place if share >= 0.5 else -1)
        free.discard(partners[-1])
    return partners


@pytest.mark.parametrize("seed", range(4))
def test_detections_are_matched_as_a_person_would(seed):
    random = np.random.default_rng(seed)
    low = random.integers(0, 24, (6, 2))
    true_boxes = np.concatenate([low, low + random.integers(6, 16, (6, 2))], -1)
    boxes = np.repeat(true_boxes, 2, 0) + random.integers(-2, 3, (12, 4))
    boxes = np.clip(boxes[random.permutation(12)], 0, 40)
    classes, true_classes = random.integers(0, 2, 12), random.integers(0, 2, 6)
    found = samples.matched(boxes, classes, true_boxes, true_classes)
    assert found.tolist() == slowly(boxes, classes, true_boxes, true_classes)
    assert (found >= 0).any()


def test_objects_are_counted_and_drawn():
    image = np.zeros((30, 40, 3), np.uint8)
    boxes = np.array([[2, 2, 12, 12], [15, 20, 28, 38], [0, 0, 30, 40]], np.float32)
    example = BoxedExample(image, boxes, np.array([0, 1, 1]), np.array([False, False, True]))
    outputs = {
        "boxes": np.array([[2, 2, 12, 13], [3, 2, 12, 12], [15, 20, 28, 38]], np.float64),
        "scores": np.array([0.9, 0.8, 0.1], np.float32),
        "classes": np.array([0, 0, 1], np.int32),
    }
    sample = samples.sample(example, outputs, NAMES, Image.fromarray(image))
    cat, dog = sample.compared
    assert (cat.name, cat.truth, cat.answer, cat.right) == (
        *("cat", "1", "1 found, 1 that are none"),
        False,
    )
    assert (dog.name, dog.truth, dog.answer, dog.right) == ("dog", "1", "0 found", False)
    assert sample.right is None
    captions = [picture.caption for picture in sample.pictures]
    assert captions == ["the truth, 2 boxes", "what is found, 2 boxes from the score 0.3 on"]
    for picture in sample.pictures:
        drawn = np.asarray(Image.open(io.BytesIO(picture.content)))
        assert drawn.shape == (360, 480, 3)
        assert drawn.max() > 200


def test_nothing_is_there_and_nothing_found():
    image = np.zeros((30, 40, 3), np.uint8)
    empty = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "classes": np.zeros(0, np.int32)}
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    sample = samples.sample(BoxedExample(image, *nothing), empty, NAMES, Image.fromarray(image))
    assert sample.compared == ()
    assert len(sample.pictures) == 2
