"""Boxes and labels on pictures: where they stand, in which colours, in which letters."""

import itertools

import numpy as np
import pytest
from PIL import Image

from vitattn.detection.answers import drawing, fonts
from vitattn.detection.answers.results import as_xywh, in_original


def drawn(size, boxes, names=("cell",), classes=None):
    """The picture, and where something was drawn on it."""
    ground = Image.new("RGB", size, (123, 50, 200))
    numbers = np.zeros(len(boxes), np.int32) if classes is None else np.asarray(classes)
    scores = np.linspace(0.9, 0.4, len(boxes))
    picture = drawing.draw(ground, np.asarray(boxes, float), scores, numbers, names)
    return picture, (np.asarray(picture) != (123, 50, 200)).any(-1)


@pytest.mark.parametrize("size", [(1, 1), (32, 24), (640, 480), (3000, 2000), (2000, 40)])
def test_boxes_are_where_they_should_be_and_labels_inside(size):
    width, height = size
    corners = [(0, 0), (width * 0.7, 0), (0, height * 0.7), (width * 0.7, height * 0.7)]
    boxes = [(x, y, x + width * 0.3, y + height * 0.3) for x, y in corners]
    picture, marks = drawn(size, boxes)
    factor = picture.width // width
    assert picture.size == (width * factor, height * factor)
    assert max(picture.size) >= drawing.READABLE
    for box in boxes:
        left, top, right, bottom = (round(side * factor) for side in box)
        assert marks[top, left:right].all()
        assert marks[bottom - 1, left:right].all()
        assert marks[top:bottom, left].all()
        assert marks[top:bottom, right - 1].all()


def test_labels_avoid_one_another_while_there_is_room():
    boxes = [(100, 100 + n, 300, 300) for n in range(4)]
    places = []
    for box in boxes:
        places.append(drawing._place(box, (80, 20), (640, 480), places))
    for a, b in itertools.combinations(places, 2):
        assert drawing._shared(a, b) == 0
    for left, top, right, bottom in places:
        assert left >= 0
        assert top >= 0
        assert right <= 640
        assert bottom <= 480


def test_classes_have_colours_that_are_told_apart_and_letters_that_stand_out():
    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [p / 12.92 if p <= 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(set(map(drawing.colour_of, range(7)))) == 7
    assert drawing.colour_of(0) == drawing.colour_of(7)
    for colour in drawing.PALETTE:
        low, high = sorted((luminance(colour), luminance(drawing._ink(colour))))
        assert (high + 0.05) / (low + 0.05) > 4.5  # WCAG 2, level AA


@pytest.mark.parametrize("name", ["érythrocyte", "Тромбоциты", "x" * 300, "", "a\nb"])
def test_names_of_any_letters_and_length_are_drawn(name):
    picture, marks = drawn((200, 150), [(5, 60, 195, 140)], (name,))
    assert marks.any()
    text, font = drawing._label(name, 0, 0.9, picture.size)
    assert text.endswith("90 %")
    assert drawing._extent(text, font)[0] <= picture.width


def test_letters_that_no_font_holds_are_replaced_by_the_number(monkeypatch):
    monkeypatch.setattr(fonts, "_system_files", lambda: iter(()))
    monkeypatch.setattr(fonts, "_known_files", lambda: iter(("nowhere.ttf",)))
    fonts._file_with.cache_clear()
    text, font = drawing._label("细胞", 7, 0.5, (640, 480))
    fonts._file_with.cache_clear()
    assert text == "class 7 50 %"
    assert font is not None


def test_nothing_detected_leaves_the_picture_as_it_is():
    picture, marks = drawn((700, 300), [])
    assert picture.size == (700, 300)
    assert not marks.any()


def test_boxes_go_back_to_the_picture_exactly():
    boxes = np.array([[8, 16, 40, 640], [-3, 0, 700, 2]], np.float32)
    original = in_original(boxes, np.array([2, 4], np.float32), np.array([300, 155]))
    np.testing.assert_array_equal(original, [[4, 4, 20, 155], [0, 0, 300, 0.5]])
    np.testing.assert_array_equal(as_xywh(original), [[4, 4, 151, 16], [0, 0, 0.5, 300]])
