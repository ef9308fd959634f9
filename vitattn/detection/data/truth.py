"""The ground truth of a split, checked and as arrays: what evaluation asks of a source.

n annotations, K categories, N records.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from trainlib import commands
from trainlib.errors import ConfigError, DataError

# COCO's largest square, above which its tool counts no box.
_LARGEST = 1e5**2


class Truthful(Protocol):
    """What evaluation asks of a split: a part of `vitattn.detection.data.source.BoxedSource`."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def describe(self, record: int) -> str:
        """Names the file and position of the record, for messages."""
        ...

    def image_id(self, record: int) -> int:
        """Returns COCO's id of the image of a record."""
        ...

    def truth(self, record: int) -> Any:
        """Returns the exact boxes of a record: `vitattn.detection.annotations.table.Truth`."""
        ...


class GroundTruth(NamedTuple):
    """The ground truth of a split.

    Attributes:
      image_ids: i64 [N], of the records in order, all different.
      category_ids: i64 [K], ascending.
      names: of the K categories.
      images: i64 [n], image id of each annotation.
      categories: i64 [n], category id of each annotation.
      boxes: f64 [n, 4], x y width height in pixels of the original image.
      areas: f64 [n], of the objects.
      crowd: bool [n].
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


def check_truth(source: Truthful) -> None:
    """Refuses a split that could not be evaluated, before anything is computed for it.

    Raises:
      ConfigError: pycocotools is missing.
      DataError: see `read_truth`.
    """
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Detection is evaluated by pycocotools, which is not installed here. Install it: "
            f"{commands.install('coco')}."
        ) from None
    read_truth(source)


def read_truth(source: Truthful) -> GroundTruth:
    """Reads and checks the ground truth of a split.

    Raises:
      DataError: it has no box to find, or is what COCO's tool would count wrongly without a word.
    """
    ids = np.array(source.category_ids, np.int64)
    known = np.flatnonzero(ids >= 0)
    known = known[np.argsort(ids[known])]
    truths = [source.truth(record) for record in range(len(source))]
    image_ids = np.array([truth.image_id for truth in truths], np.int64)
    counts = [len(truth.classes) for truth in truths]
    truth = GroundTruth(
        image_ids,
        ids[known],
        tuple(source.class_names[number] for number in known),
        np.repeat(image_ids, counts),
        ids[_joined([truth.classes for truth in truths], np.int64)],
        _joined([truth.boxes for truth in truths], np.float64).reshape(-1, 4),
        _joined([truth.area for truth in truths], np.float64),
        _joined([truth.crowd for truth in truths], bool),
    )
    _check(truth)
    return truth


def _joined(parts: list[Any], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(part) for part in parts)], dtype=dtype)


def _check(truth: GroundTruth) -> None:
    """Most of this no source of this package gives; one of somebody's own could."""
    if len(np.unique(truth.image_ids)) < len(truth.image_ids):
        raise _wrong("two of its images have one image id")
    if len(np.unique(truth.category_ids)) < len(truth.category_ids):
        raise _wrong("two of its classes have one category id")
    if (truth.categories < 0).any():
        raise _wrong("a box has a class without a category id")
    if not (np.isfinite(truth.boxes).all() and np.isfinite(truth.areas).all()):
        raise _wrong("a box or an area is not finite")
    if (truth.boxes[:, 2:] < 0).any() or (truth.areas < 0).any():
        raise _wrong("a box has a negative width, height or area")
    if not (~truth.crowd & (truth.areas <= _LARGEST)).any():
        crowds = f", only {len(truth.crowd):,} crowds" if len(truth.crowd) else ""
        raise DataError(
            f"The evaluation split has {len(truth.image_ids):,} images and no box to find{crowds}, "
            "so no average precision is defined on it. Name another split or file "
            "(--config.data.eval_split, --config.data.eval_json), or hold a part of the training "
            "images out: --config.data.holdout=0.1 --config.data.eval_split=holdout."
        )


def _wrong(what: str) -> DataError:
    return DataError(f"The evaluation split cannot be measured: {what}.")
