"""The figures of COCO: those of pycocotools called directly on the written files, and those of the
definition by loops.
"""

import json

import numpy as np
import pytest

from tests.vitattn.detection.evaluation.slow_ap import average_precision
from tests.vitattn.detection.evaluation.small_sets import (
    Split,
    directly,
    evaluated,
    random_detections,
    random_split,
    truth,
)
from vitattn.detection.evaluation import coco_metrics
from vitattn.detection.evaluation.detections import Detections

TWELVE = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def compare(seed: int, folder, images: int = 12, classes: int = 4, most: int = 20) -> None:
    rng = np.random.default_rng(seed)
    split = random_split(rng, images, classes)
    result = evaluated(split, random_detections(rng, split, most))
    if not len(result.found.scores):  # pycocotools fails on an empty list
        assert not any(figure > 0 for figure in result.figures.values())
        return
    (folder / "truth.json").write_text(json.dumps(split.json()))
    (folder / "detections.json").write_text(json.dumps(result.results()))
    found = directly(str(folder / "truth.json"), str(folder / "detections.json"))
    expected = [np.nan if figure == -1 else figure for figure in found.stats]
    np.testing.assert_allclose([result.figures[n] for n in TWELVE], expected, rtol=0, atol=1e-12)
    by_class = found.eval["precision"][:, :, :, 0, 2].mean((0, 1))  # in the order of ids
    np.testing.assert_allclose(
        result.of_classes["ap"], np.where(by_class < 0, np.nan, by_class), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_figures_are_those_of_pycocotools_on_the_written_files(seed, tmp_path):
    compare(seed, tmp_path)


def test_more_detections_than_coco_counts(tmp_path):
    compare(1, tmp_path, images=3, classes=1, most=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_the_figures_of_200_random_sets(seed, tmp_path):
    compare(seed, tmp_path, images=1 + seed % 20, classes=1 + seed % 5, most=5 * (seed % 30))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    split = random_split(rng, 8, 3)
    found = random_detections(rng, split, 12)
    result = evaluated(split, found)
    order = np.argsort(split.category_ids)
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        expected = [average_precision(split, found, kind, threshold) for kind in order]
        np.testing.assert_allclose(result.of_classes[name], expected, rtol=0, atol=1e-12)


def test_what_is_found_exactly_is_perfect_and_what_is_missed_halves_recall():
    split = Split([truth(7, [[0, 0, 20, 20], [50, 50, 100, 100]], [0, 0])], ("thing",), (5,))
    both = Detections(np.zeros(2, np.int64), split.truth(0).boxes, np.ones(2), np.zeros(2, int))
    figures = evaluated(split, both).figures
    perfect = [figures[name] for name in ("ap", "ap_small", "ap_large", "ar_100")]
    np.testing.assert_allclose(perfect, 1)
    assert figures["ar_1"] == 0.5
    assert np.isnan(figures["ap_medium"])
    # Of 101 levels of recall 51 are reached.
    assert evaluated(split, both.at(np.array([1]))).figures["ap"] == pytest.approx(51 / 101)


def test_nothing_found_is_zero():
    split = random_split(np.random.default_rng(0))
    empty = np.zeros(0, np.int64)
    result = evaluated(split, Detections(empty, np.zeros((0, 4)), np.zeros(0), empty))
    assert all(figure == 0 for figure in result.figures.values())
    assert result.flat()["detections"] == 0


def test_a_detector_with_a_higher_limit_has_two_more_figures():
    """With 150 equal boxes for one object at rank 120, COCO's hundred miss it."""
    split = Split([truth(1, [[0, 0, 40, 40]], [0])], ("thing",), (1,))
    boxes = np.tile([100.0, 100, 40, 40], (150, 1))
    boxes[119] = 0, 0, 40, 40
    found = Detections(
        np.zeros(150, np.int64), boxes, np.linspace(1, 0.1, 150), np.zeros(150, np.int64)
    )
    figures = evaluated(split, found, limit=300).figures
    assert (figures["ar_100"], figures["ap"]) == (0, 0)
    assert figures["ar_300"] == pytest.approx(1)
    assert figures["ap_of_300"] == pytest.approx(1 / 120)
    assert coco_metrics.limits(50) == (1, 10, 100)


def test_pycocotools_is_quiet(capsys):
    rng = np.random.default_rng(3)
    split = random_split(rng)
    evaluated(split, random_detections(rng, split))
    assert capsys.readouterr().out == ""
