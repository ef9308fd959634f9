"""What an evaluation of a detector says: names of metric files, a phrase, rows and files.

K categories, R levels of recall, d detections.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from trainlib.errors import StorageError, shown
from trainlib.files import write_atomically
from vitattn.detection.data.truth import GroundTruth
from vitattn.detection.evaluation import coco_metrics
from vitattn.detection.evaluation.curves import precision_recall
from vitattn.detection.evaluation.detections import Detections

# Fields of an `Evaluation` by which the best checkpoint can be chosen.
MEASURED = ("ap", "ap50", "ap75")

DETECTIONS, EVALUATION, PICTURE = "detections.json", "evaluation.json", "precision_recall.png"

_SHOWN_CLASSES = 30  # with more of them, a table shows the best and the worst
_ENDS = 5  # how many of each


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured over a split.

    Attributes:
      figures: the 12 of COCO by the names of `coco_metrics.figures`, and those of `limit`; NaN
        where the split has no box of that size.
      of_classes: the same for each category, f64 [K].
      curves: f64 [K, 3, R], see `coco_metrics.Measured`.
      truth: of the split.
      found: all detections of its categories.
      categories: i64 [d], their category ids.
      limit: detections of an image at most.
      unread: names of the images that could not be read; their boxes count as missed.
      elsewhere: detections of classes that the split does not have, which nothing can judge.
    """

    figures: dict[str, float]
    of_classes: dict[str, np.ndarray]
    curves: np.ndarray
    truth: GroundTruth
    found: Detections
    categories: np.ndarray
    limit: int
    unread: tuple[str, ...]
    elsewhere: int

    @property
    def images(self) -> int:
        """How many images the split has."""
        return len(self.truth.image_ids)

    def flat(self) -> dict[str, float]:
        """Returns name -> number, as metric files and checkpoints hold them."""
        known = {name: value for name, value in self.figures.items() if not math.isnan(value)}
        return known | {"detections": len(self.found.scores), "examples": self.images}

    def phrase(self) -> str:
        """Returns the result as part of a line of progress."""
        ap, ap50, ap75 = (_percent(self.figures[name]) for name in MEASURED)
        return f"AP {ap} %, AP50 {ap50} %, AP75 {ap75} % on {self.images:,} images"

    def rows(self, config: ConfigDict) -> list[tuple[str, str]]:
        """Returns the rows of a printed summary: label, text."""
        value = {name: _percent(figure) for name, figure in self.figures.items()}
        ar = f"{value['ar_100']} %  (1 detection {value['ar_1']}, 10 detections {value['ar_10']})"
        rows = [
            ("AP", f"{value['ap']} %  (AP50 {value['ap50']}, AP75 {value['ap75']})"),
            ("AP by size", _by_size(value, "ap")),
            ("AR", ar),
            ("AR by size", _by_size(value, "ar")),
        ]
        if f"ar_{self.limit}" in value and self.limit > coco_metrics.LIMITS[-1]:
            ap, ar = value[f"ap_of_{self.limit}"], value[f"ar_{self.limit}"]
            rows.append((f"of {self.limit} found", f"AP {ap} %, AR {ar} %  (COCO counts 100)"))
        crowds = int(self.truth.crowd.sum())
        rows += [
            *self._class_rows(),
            (
                "evaluated on",
                f"{self.images:,} images, {len(self.truth.crowd) - crowds:,} boxes"
                + (f" and {crowds:,} crowds" if crowds else "")
                + f" ({config.data.eval_split} split); {len(self.found.scores):,} detections",
            ),
        ]
        if self.elsewhere:
            rows.append(("not judged", f"{self.elsewhere:,} detections of other classes"))
        if self.unread:
            named = ", ".join(shown(name, 80) for name in self.unread[:3])
            more = f" and {len(self.unread) - 3:,} more" if self.unread[3:] else ""
            rows.append(("not read", f"{named}{more}: their boxes count as missed"))
        return rows

    def _class_rows(self) -> list[tuple[str, str]]:
        """A table with one line for each class, or for the best and the worst of many."""
        table = [("class", _columns("AP %", "AP50", "AP75", "boxes", "detections"))]
        lines = [(f"  {name}", self._class_row(k)) for k, name in enumerate(self.names)]
        if len(lines) <= _SHOWN_CLASSES:
            return table + lines
        ap = self.of_classes["ap"]
        order = [k for k in np.argsort(-ap, kind="stable") if not math.isnan(ap[k])]
        shown_ones = [*order[:_ENDS], *order[_ENDS:][-_ENDS:]]
        table += [lines[k] for k in shown_ones]
        between, without = len(order) - len(shown_ones), len(lines) - len(order)
        if between:
            table.insert(1 + _ENDS, ("  ..", f"{between} more classes"))
        if without:
            table.append(("  without box", f"{without} more classes"))
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K categories, printable and short; those that look alike carry their ids."""
        names = [shown(name, 30) for name in self.truth.names]
        return tuple(
            f"{name} ({number})" if names.count(name) > 1 else name
            for name, number in zip(names, self.truth.category_ids, strict=True)
        )

    def _class_row(self, number: int) -> str:
        boxes, _, found = self._counts(number)
        ap, ap50, ap75 = (_percent(self.of_classes[name][number]) for name in MEASURED)
        return _columns(ap, ap50, ap75, f"{boxes:,}", f"{found:,}")

    def write(self, directory: Path) -> dict[str, Path]:
        """Writes the detections as COCO takes them, all figures, and the curves as a picture (where
        matplotlib is installed); returns label -> file.

        Raises:
          ConfigError: a link, or no regular file, has one of the names.
          StorageError: the disk refuses.
        """
        files = {
            "detections": directory / DETECTIONS,
            "figures": directory / EVALUATION,
            "curves": directory / PICTURE,
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(files["detections"], _lines(self.results()))
            write_atomically(files["figures"], json.dumps(self.record(), allow_nan=False) + "\n")
            ap = [self.of_classes[name] for name in ("ap50", "ap75", "ap")]
            drawn = precision_recall(files["curves"], self.names, self.curves, np.stack(ap, -1))
        except OSError as error:
            path = error.filename or directory
            raise StorageError(
                f"{shown(path)} cannot be written: {error.strerror or error}."
            ) from error
        return files if drawn else {name: files[name] for name in ("detections", "figures")}

    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's format of results."""
        found, images = self.found, self.truth.image_ids[self.found.records]
        columns = images, self.categories, found.boxes, found.scores
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in rows
        ]

    def record(self) -> dict[str, Any]:
        """All that was measured, as JSON holds it; None for what is not defined."""
        truth, crowds = self.truth, int(self.truth.crowd.sum())
        return {
            "figures": {name: _known(value) for name, value in self.figures.items()},
            "max_detections": self.limit,
            "images": self.images,
            "boxes": len(truth.crowd) - crowds,
            "crowds": crowds,
            "detections": len(self.found.scores),
            "detections_of_other_classes": self.elsewhere,
            "images_not_read": list(self.unread),
            "recall": [
                round(level, 2) for level in np.linspace(0, 1, coco_metrics.LEVELS).tolist()
            ],
            "classes": [self._class_record(number) for number in range(len(truth.names))],
        }

    def _class_record(self, number: int) -> dict[str, Any]:
        boxes, crowds, found = self._counts(number)
        curves = zip(("0.50", "0.75", "0.50:0.95"), self.curves[number].tolist(), strict=True)
        return {
            "id": int(self.truth.category_ids[number]),
            "name": self.truth.names[number],
            "boxes": boxes,
            "crowds": crowds,
            "detections": found,
            **{name: _known(values[number]) for name, values in self.of_classes.items()},
            "precision": {name: [_known(value) for value in curve] for name, curve in curves},
        }

    def _counts(self, number: int) -> tuple[int, int, int]:
        """Boxes, crowds and detections of a category."""
        category = self.truth.category_ids[number]
        here = self.truth.categories == category
        crowds = int((here & self.truth.crowd).sum())
        return int(here.sum()) - crowds, crowds, int((self.categories == category).sum())


def _percent(fraction: float) -> str:
    return "n/a" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _columns(ap: str, ap50: str, ap75: str, boxes: str, found: str) -> str:
    return f"{ap:>6}  {ap50:>6}  {ap75:>6}  {boxes:>8}  {found:>10}"


def _by_size(value: dict[str, str], name: str) -> str:
    sizes = [(size, value[f"{name}_{size}"]) for size in coco_metrics.AREAS[1:]]
    return ", ".join(f"{size} {text}{'' if text == 'n/a' else ' %'}" for size, text in sizes)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _lines(entries: Sequence[dict[str, Any]]) -> str:
    """A JSON list with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries) + "\n]\n"
