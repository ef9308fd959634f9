"""Batches of labelled images: training batches without end, evaluation batches once and in order.

B global batch, b its part on this host, H W image size. A batch is a dict of
  image  float32 [b, H, W, 3]  normalised
  label  int32   [b]
  weight float32 [b]           1, or 0 for a bad record (then blank) and for padding
  index  int64   [b]           record number in the source, -1 for padding
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from trainlib.config import check_section
from trainlib.data.batches import Batches
from trainlib.data.order import generator
from vitattn.data import reading
from vitattn.data.options import data_defaults
from vitattn.data.source import Source
from vitattn.images import augment
from vitattn.images.decode import Rgb, guarded, open_picture
from vitattn.images.files import UnreadableRecord
from vitattn.images.size import Size, sides


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """How a record becomes an image and a label, a `vitattn.data.reading.Reader`.

    Attributes:
      source: the split.
      image_size: in pixels, one number for a square or (H, W).
      augmentation: a name of `augment.AUGMENTATIONS`; None for evaluation.
      eval_crop: part of the shorter side that evaluation sees.
      mean: that is subtracted from the pixels, in units of the full range.
      std: that they are divided by.
      seed: of the order and the augmentation.
    """

    source: Source
    image_size: Size
    augmentation: str | None
    eval_crop: float
    mean: Rgb
    std: Rgb
    seed: int

    def blank(self, size: int) -> dict[str, np.ndarray]:
        """Returns {"image": float32 [size, H, W, 3], "label": int32 [size]} of zeros."""
        return {
            "image": np.zeros((size, *sides(self.image_size), 3), np.float32),
            "label": np.zeros(size, np.int32),
        }

    def unwritten(self, size: int) -> dict[str, np.ndarray]:
        """Returns such arrays with arbitrary contents: `fill` writes all of an example."""
        return {
            "image": np.empty((size, *sides(self.image_size), 3), np.float32),
            "label": np.empty(size, np.int32),
        }

    def fill(self, arrays: dict[str, np.ndarray], number: int, record: int, epoch: int) -> None:
        """Writes one record to example `number`; see `Reader.fill`."""
        example = self.source[record]
        picture = open_picture(example.image)
        if self.augmentation is None:
            image = guarded(lambda: augment.evaluation(picture, self.image_size, self.eval_crop))
        else:
            rng = generator(self.seed, epoch, record)
            apply = augment.AUGMENTATIONS[self.augmentation]
            image = guarded(lambda: apply(picture, self.image_size, rng, self.mean))
        if not 0 <= example.label < self.source.num_classes:
            last = self.source.num_classes - 1
            raise UnreadableRecord(f"has the label {example.label}, outside 0..{last}")
        augment.normalise(image, self.mean, self.std, arrays["image"][number])
        arrays["label"][number] = example.label


def check_settings(source: Source, config: ConfigDict, image_size: Size) -> None:
    """Checks the `data` section of a configuration before anything is read.

    Raises:
      ConfigError: a value that cannot work; names the key and the allowed values.
    """
    _reader(source, config, image_size, 0, config.augment)


def train_batches(
    source: Source,
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
    reader = _reader(source, config, image_size, seed, config.augment)
    return reading.train_batches(
        reader, config, batch_size, start_batch, process_index, process_count
    )


def eval_batches(
    source: Source,
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
    reader = _reader(source, config, image_size, 0, None)
    return reading.eval_batches(reader, config, batch_size, process_index, process_count)


def _reader(
    source: Source, config: ConfigDict, image_size: Size, seed: int, augmentation: str | None
) -> LabelledImages:
    check_section("data", data_defaults(), config)
    mean, std = tuple(config.mean) or source.mean, tuple(config.std) or source.std
    return LabelledImages(source, image_size, augmentation, config.eval_crop, mean, std, seed)
