"""Splits of a detector: classes are matched by name, and what cannot work is refused early."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from trainlib.errors import DataError
from vitattn.data.source import Kind
from vitattn.detection.data.shapes import Shapes
from vitattn.detection.input import splits
from vitattn.detection.settings import data_settings
from vitattn.labels.class_names import ModelNames

NAMES = ("disc", "square", "triangle", "cross")


class Renumbered(Shapes):
    """The shapes with their classes in another order, and other ids."""

    class_names, category_ids = ("cross", "disc", "square", "triangle"), (40, 10, 20, 30)

    def __getitem__(self, record):
        example = super().__getitem__(record)
        return example._replace(classes=(example.classes + 1) % 4)

    def truth(self, record):
        truth = super().truth(record)
        return truth._replace(classes=(truth.classes + 1) % 4)


class Strange(Shapes):
    class_names = ("disc", "square", "triangle", "hexagon")


class Empty(Shapes):
    def truth(self, record):
        truth = super().truth(record)
        none = {name: getattr(truth, name)[:0] for name in ("boxes", "classes", "area", "crowd")}
        return truth._replace(**none)


def kind(evaluation):
    def make(config, split):
        return evaluation("test") if split == "test" else Shapes("train")

    return Kind(("own",), make, (0.5,) * 3, (0.5,) * 3, lambda _: ())


RENUMBERED, STRANGE, EMPTY = kind(Renumbered), kind(Strange), kind(Empty)


def plan(source="shapes", outputs=4):
    defaults = {key: value for key, (value, _) in data_settings().items()}
    data = ConfigDict({**defaults, "source": source, "workers": 0})
    model = SimpleNamespace(num_classes=outputs, size=(64, 64))
    return SimpleNamespace(
        config=ConfigDict({"data": data, "batch_size": 4, "seed": 0}), model=model
    )


def own(name):
    return f"module:{__name__}:{name}"


def test_training_and_evaluation_agree():
    found = splits.open_training(plan())
    assert found.names == NAMES
    assert (len(found.train), len(found.held_out)) == (512, 128)
    with splits.train_batches(plan(), found.train, 0) as batches:
        assert next(batches)["image"].shape == (4, 64, 64, 3)


@pytest.mark.parametrize("outputs", [4, 6])
def test_classes_are_matched_by_name(outputs, monkeypatch):
    found = splits.open_training(plan(own("RENUMBERED"), outputs))
    assert found.names == NAMES + (None,) * (outputs - 4)
    assert len(found.held_out.category_ids) == outputs
    assert found.held_out.category_ids[:4] == (10, 20, 30, 40)
    assert len(set(found.held_out.category_ids[:4])) == 4
    for record in (0, 1, 127):
        expected = Shapes("test")[record].classes
        np.testing.assert_array_equal(found.held_out[record].classes, expected)
        np.testing.assert_array_equal(found.held_out.truth(record).classes, expected)
    ids = {row["category_id"] for row in found.held_out.ground_truth()["annotations"]}
    assert ids == {10, 20, 30, 40}


def test_a_trained_model_is_evaluated_by_its_names():
    trained = ModelNames(("cross", None, "triangle", "square", "disc"), "run")
    source, phrase = splits.open_evaluation(plan(outputs=5), trained, Path("run"))
    assert phrase == "by name, 4 of 4 classes"
    expected = np.array([4, 3, 2, 0])[Shapes("test")[0].classes]
    np.testing.assert_array_equal(source[0].classes, expected)
    source, phrase = splits.open_evaluation(plan(), None, Path("run"))
    assert phrase.startswith("by number")
    with pytest.raises(DataError, match="does not say the names of its 5 classes"):
        splits.open_evaluation(plan(outputs=5), None, Path("run"))


def test_splits_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"4 classes .* 3 outputs.*num_classes=4"):
        splits.open_training(plan(outputs=3))
    with pytest.raises(DataError, match="not trained on: hexagon"):
        splits.open_training(plan(own("STRANGE")))
    with pytest.raises(DataError, match="box"):
        splits.open_training(plan(own("EMPTY")))
    with pytest.raises(DataError, match="box"):
        splits.open_evaluation(plan(own("EMPTY")), ModelNames(NAMES, "run"), Path("run"))
