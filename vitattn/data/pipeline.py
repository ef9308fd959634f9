"""Batches of labelled images: training batches without end, evaluation batches once and in order.

B global batch, b its part on this host, H W image size. A batch is a dict of
  image  float32 [b, H, W, 3]  normalised
  label  int32   [b]
  weight float32 [b]           1, or 0 for a bad record (then blank) and for padding
  index  int64   [b]           record number in the source, -1 for padding
and for training with mixup or CutMix, where the target is `share` of the label and the rest of the
partner's,
  partner int32   [b]          label of the image that is mixed in
  share   float32 [b]          of the image's own label, 1 where it is not mixed
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from trainlib.config import check_section
from trainlib.data.batches import Batches
from trainlib.data.order import generator
from vitattn.augmentation import settings as augmentation
from vitattn.augmentation.settings import OFF, Chosen
from vitattn.data import reading
from vitattn.data.options import data_defaults
from vitattn.data.source import Source
from vitattn.images import augment
from vitattn.images.decode import Picture, Rgb, guarded, open_picture
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
      chosen: what training images go through beyond `augmentation`.
    """

    source: Source
    image_size: Size
    augmentation: str | None
    eval_crop: float
    mean: Rgb
    std: Rgb
    seed: int
    chosen: Chosen = OFF

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
        if not 0 <= example.label < self.source.num_classes:
            last = self.source.num_classes - 1
            raise UnreadableRecord(f"has the label {example.label}, outside 0..{last}")
        picture, image = open_picture(example.image), arrays["image"][number]
        if self.augmentation is None:
            self._evaluation(picture, image)
        else:
            self._training(picture, image, generator(self.seed, epoch, record))
        arrays["label"][number] = example.label

    def _evaluation(self, picture: Picture, out: np.ndarray) -> None:
        levels = guarded(lambda: augment.evaluation(picture, self.image_size, self.eval_crop))
        augment.normalise(levels, self.mean, self.std, out)

    def _training(self, picture: Picture, out: np.ndarray, rng: np.random.Generator) -> None:
        assert self.augmentation is not None
        apply, chosen = augment.AUGMENTATIONS[self.augmentation], self.chosen
        levels = guarded(lambda: apply(picture, self.image_size, rng, self.mean))
        if chosen.rand_augment:
            levels = chosen.rand_augment.apply(levels, rng, self.mean)
        augment.normalise(levels, self.mean, self.std, out)
        if chosen.erasing:
            chosen.erasing.apply(out, rng, self.mean, self.std)


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
    augmentation.check(config, batch_size, process_count)
    return reading.train_batches(
        reader,
        config,
        batch_size,
        start_batch,
        process_index,
        process_count,
        repeats=config.repeats,
        mixing=reader.chosen.mixing,
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
    source: Source, config: ConfigDict, image_size: Size, seed: int, augment: str | None
) -> LabelledImages:
    """Of training with this augmentation, or of evaluation with None."""
    check_section("data", data_defaults(), config)
    mean, std = tuple(config.mean) or source.mean, tuple(config.std) or source.std
    chosen = augmentation.chosen(config, seed) if augment is not None else OFF
    return LabelledImages(source, image_size, augment, config.eval_crop, mean, std, seed, chosen)
