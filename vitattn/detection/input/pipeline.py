"""Batches of pictures with boxes: training batches without end, evaluation batches once and in
order.

B global batch, b its part on this host, H W image size, M boxes of an image at most. A batch is a
dict of
  image   float32 [b, H, W, 3]  normalised, zero where no picture is
  weight  float32 [b]           1, or 0 for a bad record (then blank) and for padding
  index   int64   [b]           record number in the source, -1 for padding
for training also
  boxes   float32 [b, M, 4]     (top, left, bottom, right) in network pixels, zero for padding
  classes int32   [b, M]        -1 for padding
  counts  int32   [b, 4]        what became of the boxes of the record, see `COUNTS`
and for evaluation
  scale    float32 [b, 2]       network pixels for one pixel of the picture, down and across
  original int32   [b, 2]       height and width of the upright picture
so that a box of the picture is a box of the network image divided by `scale`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from trainlib.checkpoint.write import warn
from trainlib.data.batches import Batch, Batches
from trainlib.data.order import generator
from vitattn.data import reading
from vitattn.data.unlabelled import Unlabelled
from vitattn.detection.data.source import BoxedExample, BoxedSource
from vitattn.detection.input import augment
from vitattn.images.decode import Picture, Rgb, open_picture
from vitattn.images.files import UnreadableRecord
from vitattn.images.size import Size, sides

# Columns of `counts`. Crowds are no targets and are not counted.
COUNTS = (
    "boxes",  # of the record
    "outside",  # of them, seen nowhere in this crop
    "thin",  # of them, narrower than a pixel of the network image as far as they are seen
    "beyond",  # of them, beyond `max_boxes`
)


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """How a record becomes an image and its boxes, a `vitattn.data.reading.Reader`.

    Attributes:
      source: the split.
      size: H, W.
      jitter: least and largest scale, in units of what fits; None shows each picture as evaluation
        does.
      flip: probability that left and right change places.
      flip_vertical: probability that top and bottom do.
      max_boxes: M; of more boxes the first count.
      mean: that is subtracted from the pixels, in units of the full range.
      std: that they are divided by.
      seed: of the order and the augmentation.
    """

    source: BoxedSource
    size: tuple[int, int]
    jitter: tuple[float, float] | None
    flip: float
    flip_vertical: float
    max_boxes: int
    mean: Rgb
    std: Rgb
    seed: int

    def blank(self, size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `size` examples without picture and boxes."""
        return {
            "image": np.zeros((size, *self.size, 3), np.float32),
            "boxes": np.zeros((size, self.max_boxes, 4), np.float32),
            "classes": np.full((size, self.max_boxes), -1, np.int32),
            "counts": np.zeros((size, len(COUNTS)), np.int32),
        }

    def unwritten(self, size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `blank`: `fill` writes only where a picture and boxes are."""
        return self.blank(size)

    def fill(self, arrays: dict[str, np.ndarray], number: int, record: int, epoch: int) -> None:
        """Writes one record to example `number`; see `Reader.fill`."""
        example = self.source[record]
        boxes, classes = _targets(example, self.source.num_classes)
        picture = open_picture(example.image)
        placement = self._placement(picture, record, epoch)
        exact, image = self.jitter is None, arrays["image"][number]
        augment.draw(picture, placement, image, self.mean, self.std, exact)
        boxes, seen = augment.clip_boxes(augment.move_boxes(boxes, placement), placement)
        wide = seen & augment.wide_enough(boxes)
        chosen = np.flatnonzero(wide)[: self.max_boxes]
        arrays["boxes"][number, : len(chosen)] = boxes[chosen]
        arrays["classes"][number, : len(chosen)] = classes[chosen]
        arrays["counts"][number] = (
            len(boxes),
            np.count_nonzero(~seen),
            np.count_nonzero(seen & ~wide),
            np.count_nonzero(wide) - len(chosen),
        )

    def _placement(self, picture: Picture, record: int, epoch: int) -> augment.Placement:
        shape = picture.height, picture.width
        if self.jitter is None:
            return augment.letterbox(shape, self.size)
        rng = generator(self.seed, epoch, record)
        return augment.jitter(shape, self.size, self.jitter, self.flip, self.flip_vertical, rng)


@dataclasses.dataclass(frozen=True)
class EvaluationImages:
    """How a record becomes an image of evaluation, a `vitattn.data.reading.Reader`.

    Attributes:
      source: the split, or images without boxes.
      size: H, W.
      mean: that is subtracted from the pixels, in units of the full range.
      std: that they are divided by.
      seed: of the order, which is that of the records.
    """

    source: BoxedSource | Unlabelled
    size: tuple[int, int]
    mean: Rgb
    std: Rgb
    seed: int = 0

    def blank(self, size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `size` examples without picture; their scale is 1."""
        return {
            "image": np.zeros((size, *self.size, 3), np.float32),
            "scale": np.ones((size, 2), np.float32),
            "original": np.zeros((size, 2), np.int32),
        }

    def unwritten(self, size: int) -> dict[str, np.ndarray]:
        """Returns the arrays of `blank`: `fill` writes only where a picture and boxes are."""
        return self.blank(size)

    def fill(self, arrays: dict[str, np.ndarray], number: int, record: int, epoch: int) -> None:
        """Writes one record to example `number`; see `Reader.fill`."""
        picture = open_picture(self.source[record].image)
        placement = augment.letterbox((picture.height, picture.width), self.size)
        augment.draw(picture, placement, arrays["image"][number], self.mean, self.std, exact=True)
        arrays["scale"][number] = placement.scale
        arrays["original"][number] = picture.height, picture.width


def _targets(example: BoxedExample, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes [M, 4] and classes [M] of what is no crowd.

    Raises:
      UnreadableRecord: what no source should give, a source of one's own included.
    """
    boxes = np.asarray(example.boxes, np.float64).reshape(-1, 4)
    classes, crowd = np.asarray(example.classes), np.asarray(example.crowd, bool)
    if not len(boxes) == len(classes) == len(crowd):
        raise UnreadableRecord(
            f"has {len(boxes)} boxes, {len(classes)} classes and {len(crowd)} marks of crowds"
        )
    if not np.isfinite(boxes).all():
        raise UnreadableRecord("has a box that is not finite")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise UnreadableRecord("has a box whose bottom or right lies before its top or left")
    if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
        raise UnreadableRecord(
            f"has a box of the class {classes.min() if classes.min() < 0 else classes.max()}, "
            f"outside 0..{num_classes - 1}"
        )
    return boxes[~crowd], classes[~crowd]


def train_batches(
    source: BoxedSource,
    config: ConfigDict,
    batch_size: int,
    seed: int,
    start_batch: int,
    process_index: int,
    process_count: int,
    image_size: Size,
) -> Batches:
    """Returns this host's training batches from number `start_batch` on, without end.

    Args:
      source: the training split.
      config: the `data` section of a configuration.
      batch_size: B, over all hosts.
      seed: of the order and the augmentation.
      start_batch: number of the first global batch, the `next_batch` of a checkpoint.
      process_index: number of this host, in 0..process_count-1.
      process_count: hosts that share each global batch.
      image_size: in pixels, one number for a square or (H, W).

    Raises:
      ConfigError: a setting cannot work.
    """
    mean, std = _statistics(source, config)
    reader = TrainingImages(
        source,
        sides(image_size),
        tuple(config.jitter) if config.augment == "jitter" else None,
        config.flip,
        config.flip_vertical,
        config.max_boxes,
        mean,
        std,
        seed,
    )
    note = _warn_once_beyond(source, config.max_boxes)
    return reading.train_batches(
        reader, config, batch_size, start_batch, process_index, process_count, note
    )


def _warn_once_beyond(source: BoxedSource, max_boxes: int) -> Callable[[Batch], None]:
    """Returns what looks at each batch, and warns of the first that has more boxes than fit."""
    said = False

    def note(batch: Batch) -> None:
        nonlocal said
        beyond = batch["counts"][:, COUNTS.index("beyond")]
        if said or not beyond.any():
            return
        said, worst = True, int(beyond.argmax())
        most = max_boxes + int(beyond[worst])
        where = source.describe(int(batch["index"][worst]))
        warn(
            f"{where} has {most:,} boxes to find and data.max_boxes={max_boxes} are looked at: the "
            "model learns that the others are background. Set "
            f"--config.data.max_boxes={most} or more; the metric boxes_beyond is the share of "
            "boxes that are left out so."
        )

    return note


def eval_batches(
    source: BoxedSource | Unlabelled,
    config: ConfigDict,
    batch_size: int,
    process_index: int,
    process_count: int,
    image_size: Size,
) -> Batches:
    """Returns this host's evaluation batches: each record once over all hosts, in order, without
    augmentation.

    Every host gets the same number of batches. Examples past the last record have weight 0 and
    index -1. For the arguments see `train_batches`.

    Raises:
      ConfigError: a setting cannot work.
    """
    reader = EvaluationImages(source, sides(image_size), *_statistics(source, config))
    return reading.eval_batches(reader, config, batch_size, process_index, process_count)


def image_batches(
    source: Unlabelled, config: ConfigDict, batch_size: int, image_size: Size
) -> Batches:
    """Returns batches of images without boxes, once and in order, of this process alone."""
    return eval_batches(source, config, batch_size, 0, 1, image_size)


def _statistics(source: BoxedSource | Unlabelled, config: ConfigDict) -> tuple[Rgb, Rgb]:
    return tuple(config.mean) or source.mean, tuple(config.std) or source.std
