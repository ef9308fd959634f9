"""What every process found, gathered in all of them, by image.

Each process reads its own part of every batch of images, so it alone knows which they are and how
they lie in the network's image; the detections of a batch are on all of them.

n images that a process has read, d detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from vitattn.detection.answers.results import as_xywh, in_original
from vitattn.detection.evaluation.detections import Detections

# One image: its record, whether it was read, whether all that the network gave is finite.
_IMAGE = np.dtype([("record", "<i8"), ("read", "?"), ("finite", "?")])
_DETECTION = np.dtype(
    [("record", "<i8"), ("box", "<f8", 4), ("score", "<f8"), ("class_number", "<i8")]
)


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All detections of a split.

    Attributes:
      found: by record, the best first.
      unread: i64, records that could not be read.
      not_finite: i64, records for which the network gave something that is not finite.
    """

    found: Detections
    unread: np.ndarray
    not_finite: np.ndarray


class Collector:
    """Takes the batches of this process, and gathers those of all.

    Args:
      sharding: of a batch over the devices.
    """

    def __init__(self, sharding: NamedSharding):
        self._sharding = sharding
        self._images: list[np.ndarray] = []
        self._detections: list[np.ndarray] = []

    def add(self, batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Takes one batch.

        Args:
          batch: this process's part: weight, index, scale and original.
          outputs: of the global batch, on this host: boxes [B, K, 4] in pixels of the network's
            image, scores and classes [B, K] (-1: none), finite [B].
        """
        own = own_rows(self._sharding, len(outputs["scores"]))
        boxes, scores, classes = (outputs[name][own] for name in ("boxes", "scores", "classes"))
        real = batch["index"] >= 0
        read = real & (batch["weight"] > 0)
        image, place = np.nonzero((classes >= 0) & read[:, None])
        boxes, scores, classes = (array[image, place] for array in (boxes, scores, classes))
        finite = outputs["finite"][own].copy()
        finite[image[~(np.isfinite(boxes).all(-1) & np.isfinite(scores))]] = False

        images = np.zeros(len(own), _IMAGE)
        images["record"], images["read"], images["finite"] = batch["index"], read, finite
        self._images.append(images[real])

        # Infinite sides would be cut to the image, and be no evidence any more.
        boxes = np.where(np.isfinite(boxes), boxes, np.nan)
        boxes = as_xywh(in_original(boxes, batch["scale"][image], batch["original"][image]))
        # Beside the image, in the border that fills the network's image up: no answer of `finish`.
        there = ~(boxes[:, 2:] <= 0).any(-1)
        columns = batch["index"][image], boxes, scores, classes
        rows = np.zeros(np.count_nonzero(there), _DETECTION)
        for name, column in zip(_DETECTION.names or (), columns, strict=True):
            rows[name] = column[there]
        self._detections.append(rows)

    def gathered(self, records: int) -> Gathered:
        """What all processes took together; every process must ask, and all get the same.

        Args:
          records: how many the split has. Each must have come exactly once.
        """
        images = gather(np.concatenate(self._images))
        detections = gather(np.concatenate(self._detections))
        images = images[np.argsort(images["record"], kind="stable")]
        if not np.array_equal(images["record"], np.arange(records)):
            raise RuntimeError(
                f"{len(images)} images of {records} were evaluated, "
                f"{len(np.unique(images['record']))} of them different ones"
            )
        # Stable: the detections of one image stay in their order, and are all of one process.
        detections = detections[np.argsort(detections["record"], kind="stable")]
        found = Detections(*(detections[name] for name in _DETECTION.names or ()))
        odd = np.flatnonzero(~images["finite"] & images["read"])
        return Gathered(found, np.flatnonzero(~images["read"]), odd)


def own_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """Rows of a global batch of `size` that this process put there, in the order of its part: int
    [n]; see `trainlib.step.step.put_batch`.
    """
    parts = {
        index[0].indices(size)[:2]
        for index in sharding.addressable_devices_indices_map((size,)).values()
        if index is not None
    }
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def gather(rows: np.ndarray) -> np.ndarray:
    """Rows [n of this process, ..] of any type from all processes, in the order of processes.

    All of them must ask, with rows of one shape and type.
    """
    if jax.process_count() == 1:
        return rows
    from jax.experimental import multihost_utils

    with jax.transfer_guard("allow"):
        counts = np.asarray(multihost_utils.process_allgather(np.array(len(rows), np.int32)))
        # Bytes, because JAX would make 32 bits of 64; a power of two, so that few sizes compile.
        padded = np.zeros((1 << int(counts.max()).bit_length(), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        mine = np.frombuffer(padded.tobytes(), np.uint8)
        of_all = np.asarray(multihost_utils.process_allgather(mine))
    parts = [np.frombuffer(part.tobytes(), rows.dtype).reshape(padded.shape) for part in of_all]
    return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])
