"""Looks through a data set with boxes before anything is trained: `prepare --check`.

Both splits are opened by the functions by which training opens them, so that it refuses and mends
the same; beside that, the header of every picture is read, and the two splits are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import ConfigError, DataError, UserError, shown
from trainlib.untrusted_files import open_regular
from vitattn.data.source import Checked
from vitattn.detection.annotations.report import Report
from vitattn.detection.data import catalog, coco, voc, yolo
from vitattn.detection.data.files import BoxedFiles, OpenPart
from vitattn.detection.data.source import BoxedSource
from vitattn.images.decode import BadImage, open_header
from vitattn.images.files import UnreadableRecord
from vitattn.labels import matching

PARTS: dict[str, OpenPart] = {
    "coco": coco.open_part,
    "voc": voc.open_part,
    "yolo": yolo.open_part,
}
_WORDS = {"train": "training", "test": "evaluation"}
_AREAS = (32**2, 96**2)  # pixels: COCO's borders of small, medium and large
_CLASSES = 20  # that are listed with the number of their boxes
