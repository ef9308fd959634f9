"""The evaluation of a split: what counts, what is said, what is written."""

import json
import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.vitattn.detection.evaluation import pictures
from tests.vitattn.detection.evaluation.small_sets import (
    Split,
    evaluated,
    random_detections,
    random_split,
    truth,
)
from trainlib.errors import NumericAbort
from trainlib.run.workdir import evidence_kept
from vitattn.detection.evaluation import curves
from vitattn.detection.evaluation.detections import Detections
from vitattn.detection.evaluation.evaluation import MEASURED, over_split


def measured(split, found, batch_size=8, **options):
    plan = pictures.plan_of(batch_size)
    step = pictures.compiled(pictures.detector(split, found), plan)
    with jax.transfer_guard("disallow"):  # as in the loop of training
        return over_split(step, {}, {}, split, plan, **options)


@pytest.mark.parametrize(("images", "batch_size"), [(11, 8), (16, 8), (5, 16)])
def test_every_image_counts_once_in_pixels_of_the_original(images, batch_size):
    split, found = pictures.pictures(images)
    calls = []
    result = measured(split, found, batch_size, between=lambda: calls.append(0))
    expected = evaluated(split, found)
    assert len(result.found.scores) == len(found.scores)
    np.testing.assert_array_equal(result.found.records, found.records)
    np.testing.assert_allclose(result.found.boxes, found.boxes, atol=1e-4)
    for name, figure in expected.figures.items():
        assert result.figures[name] == pytest.approx(figure, abs=1e-6, nan_ok=True), name
    assert result.flat()["examples"] == images
    assert len(calls) == -(-images // batch_size) + 4  # batches and classes


def test_an_image_that_cannot_be_read_keeps_its_boxes():
    split, found = pictures.pictures(11)
    broken = max(range(11), key=lambda n: int((~split.truth(n).crowd).sum()))
    split.broken = (broken,)
    result = measured(split, found)
    assert not (result.found.records == broken).any()
    assert result.unread == (f"image {broken}.png",)
    expected = evaluated(split, found.at(found.records != broken))
    assert result.figures["ar_100"] == pytest.approx(expected.figures["ar_100"])
    rows = dict(result.rows(config()))
    assert "their boxes count as missed" in rows["not read"]
    assert result.record()["images_not_read"] == [f"image {broken}.png"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_what_is_not_finite_stops_with_70_and_is_kept(value, field, tmp_path):
    split, found = pictures.pictures(11)
    column = getattr(found, field).copy()
    column[-1] = value
    last = int(found.records[-1])
    with pytest.raises(NumericAbort, match=f"image {last}.png") as caught, evidence_kept(tmp_path):
        measured(split, found._replace(**{field: column}))
    assert caught.value.exit_code == 70
    assert str(tmp_path / "not_finite.json") in str(caught.value)
    kept = json.loads((tmp_path / "not_finite.json").read_text())
    assert kept["images_not_finite"] == 1
    assert kept["images"][0]["image_id"] == split.image_id(last)
    found = json.dumps(kept["images"][0]["detections"][-1])
    assert ("inf" if field == "scores" and np.isinf(value) else "nan") in found


# ---------------------------------------------------------------- what is said and written


def config():
    return ConfigDict({"data": {"eval_split": "test"}})


def test_names_of_metric_files_and_the_line_of_progress():
    split = Split([truth(3, [[0, 0, 20, 20]], [0])], ("thing",), (2,))
    found = Detections(np.zeros(1, int), split.truth(0).boxes, np.ones(1), np.zeros(1, int))
    result = evaluated(split, found)
    assert result.phrase() == "AP 100.00 %, AP50 100.00 %, AP75 100.00 % on 1 images"
    assert set(MEASURED) <= set(result.flat())
    # There is no large box, so nothing is said of them.
    assert not {"ap_medium", "ap_large", "ar_large"} & set(result.flat())
    assert all(math.isfinite(value) for value in result.flat().values())
    rows = dict(result.rows(config()))
    assert rows["AP by size"] == "small 100.00 %, medium n/a, large n/a"
    assert rows["class"].split() == ["AP", "%", "AP50", "AP75", "boxes", "detections"]
    assert rows["  thing"].split() == ["100.00", "100.00", "100.00", "1", "1"]
    assert len(rows["class"]) == len(rows["  thing"])
    assert rows["evaluated on"] == "1 images, 1 boxes (test split); 1 detections"


def test_of_many_classes_the_best_and_the_worst_are_shown():
    kinds = 40
    boxes = [[0, 0, 20, 20]] * kinds
    split = Split(
        [truth(1, boxes[:-1], range(kinds - 1))],
        tuple(f"c{n}" for n in range(kinds)),
        tuple(range(1, kinds + 1)),
    )
    good = np.arange(25)
    found = Detections(np.zeros(25, int), np.array(boxes[:25], float), np.ones(25), good)
    rows = evaluated(split, found).rows(config())
    shown = [label.strip() for label, _ in rows if label.startswith("  ")]
    best, worst = [f"c{n}" for n in range(5)], [f"c{n}" for n in range(34, 39)]
    assert shown == [*best, "..", *worst, "without box"]
    assert {("  ..", "29 more classes"), ("  without box", "1 more classes")} <= set(rows)


def test_classes_of_one_name_are_told_apart_and_outputs_without_category_are_counted():
    split = Split([truth(1, [[0, 0, 20, 20]], [0])], ("cat", "cat", "dog"), (4, 9, -1))
    found = Detections(
        np.zeros(3, int), np.tile(split.truth(0).boxes, (3, 1)), np.ones(3), np.array([1, 2, 3])
    )
    result = evaluated(split, found)
    assert result.names == ("cat (4)", "cat (9)")
    assert result.elsewhere == 2
    assert ("not judged", "2 detections of other classes") in result.rows(config())
    assert [entry["category_id"] for entry in result.results()] == [9]


def test_the_files_hold_everything(tmp_path):
    rng = np.random.default_rng(5)
    split = random_split(rng)
    result = evaluated(split, random_detections(rng, split))
    written = result.write(tmp_path / "new")
    assert [path.name for path in written.values()] == [
        "detections.json",
        "evaluation.json",
        "precision_recall.png",
    ]
    record = json.loads(written["figures"].read_text())
    assert record["figures"]["ap"] == result.figures["ap"]
    assert [kind["id"] for kind in record["classes"]] == sorted(split.category_ids)
    assert record["classes"][-1]["precision"]["0.50"][0] is not math.nan
    assert sum(kind["boxes"] + kind["crowds"] for kind in record["classes"]) == sum(
        len(truth.classes) for truth in split.truths
    )
    assert len(json.loads(written["detections"].read_text())) == record["detections"]
    assert written["curves"].read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not curves.precision_recall(tmp_path / "p.png", (), np.zeros((0, 3, 101)), np.zeros(0))
    assert "matplotlib is missing" in capsys.readouterr().out
