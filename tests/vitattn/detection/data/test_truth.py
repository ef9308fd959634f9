"""What is refused before an evaluation, and what of a split is handed on."""

import sys

import numpy as np
import pytest

from tests.vitattn.detection.evaluation.small_sets import Split, truth
from trainlib import commands
from trainlib.errors import ConfigError, DataError
from vitattn.detection.data.truth import check_truth, read_truth

BOX = [[0, 0, 20, 20]]


def split(*truths, names=("cat", "dog"), ids=(9, 4)):
    return Split(list(truths), names, ids)


def test_categories_are_in_the_order_of_their_ids():
    found = read_truth(split(truth(7, BOX * 2, [0, 1], [False, True]), truth(3, [], [])))
    assert found.category_ids.tolist() == [4, 9]
    assert found.names == ("dog", "cat")
    assert found.categories.tolist() == [9, 4]
    assert found.image_ids.tolist() == [7, 3]
    assert found.images.tolist() == [7, 7]
    assert found.boxes.shape == (2, 4)
    assert found.crowd.tolist() == [False, True]


def test_an_output_without_category_is_none():
    found = read_truth(split(truth(7, BOX, [0]), ids=(0, -1)))
    assert found.category_ids.tolist() == [0]
    assert found.names == ("cat",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (split(truth(1, [], [])), "1 images and no box to find"),
        (split(truth(1, BOX, [0], [True])), "no box to find, only 1 crowds"),
        (split(truth(1, BOX, [0]), truth(1, BOX, [0])), "two of its images have one image id"),
        (split(truth(1, BOX, [0]), ids=(4, 4)), "two of its classes have one category id"),
        (split(truth(1, BOX, [1]), ids=(4, -1)), "a class without a category id"),
        (split(truth(1, [[0, 0, np.nan, 20]], [0])), "not finite"),
        (split(truth(1, [[0, 0, -5, 20]], [0])), "negative"),
        (split(truth(1, BOX, [0], area=[-1])), "negative"),
    ],
)
def test_what_would_be_counted_wrongly_is_refused(given, words):
    with pytest.raises(DataError, match=words) as caught:
        check_truth(given)
    assert caught.value.exit_code == 65


def test_without_pycocotools_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ConfigError) as caught:
        check_truth(split(truth(1, BOX, [0])))
    assert caught.value.exit_code == 64
    assert commands.install("coco") in str(caught.value)
