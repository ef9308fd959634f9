"""The data sets with boxes that `data.source` can name; see `vitattn.data.catalog`.

A new one is a file with a `KIND` and a row of `KINDS`, or a `vitattn.data.Kind` in a module of
one's own, whose `make` returns a `BoxedSource`.
"""

from __future__ import annotations

from vitattn.data.catalog import Catalog
from vitattn.detection.data import coco, shapes, tfds, voc, yolo
from vitattn.detection.data.source import Kind

KINDS: dict[str, Kind] = {
    "coco": coco.KIND,
    "coco/2017": tfds.KIND,
    "voc": voc.KIND,
    "yolo": yolo.KIND,
    "shapes": shapes.KIND,
}


DETECTION = Catalog(KINDS)
usage = DETECTION.usage
kind_of = DETECTION.kind_of
make_source = DETECTION.make_source
statistics = DETECTION.statistics
official_names = DETECTION.official_names
