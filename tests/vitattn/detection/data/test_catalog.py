"""What `data.source` can name, data sets of one's own among it."""

import pytest

from tests.vitattn.detection.data.sets import config
from trainlib.errors import ConfigError
from vitattn.detection.data import catalog
from vitattn.detection.data.catalog import make_source, statistics
from vitattn.detection.settings import data_settings

MINE = """
from vitattn.data import Kind
from vitattn.detection.data.shapes import Shapes

def make(config, split):
    return Shapes("test" if split == "test" else "train")

KIND = Kind(("mine",), make, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), lambda source: ())
"""


def test_a_module_of_ones_own_can_offer_a_kind(tmp_path, monkeypatch):
    (tmp_path / "my_boxes.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    c = config(source="module:my_boxes:KIND")
    assert make_source(c, "test").truth(0).image_id == 1
    assert statistics(c)[0] == (0.1, 0.2, 0.3)


def test_the_table_of_kinds_makes_the_help_and_the_messages():
    with pytest.raises(ConfigError) as caught:
        make_source(config(source="nothing"), "train")
    for text in (str(caught.value), data_settings()["source"][1]):
        assert "coco, coco:TRAIN.json, coco/2017, voc:DIR, yolo:DIR" in text
    named = {form.partition(":")[0] for form in catalog.usage().split(", ")}
    assert named == {*catalog.KINDS, "module"}


def test_unknown_names_and_splits_are_named():
    with pytest.raises(ConfigError, match=r"Did you mean 'shapes'\?"):
        make_source(config(source="shape"), "train")
    with pytest.raises(ConfigError, match="'shapes' takes nothing after a colon"):
        make_source(config(source="shapes:3"), "train")
    with pytest.raises(ConfigError, match="split='val' is not known"):
        make_source(config(source="shapes"), "val")
