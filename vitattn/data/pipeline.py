"""From a source to batches: training batches without end, evaluation batches once and in order.

B global batch, b its part on this host, H W image size. A batch is a dict of
  image  float32 [b, H, W, 3]  normalised
  label  int32   [b]
  weight float32 [b]           1, or 0 for a bad record (then blank) and for padding
  index  int64   [b]           record number in the source, -1 for padding
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from trainlib.config import check_section
from trainlib.data.bad_records import BadRecords
from trainlib.data.batches import Batches, worker_count
from trainlib.data.order import generator, host_slice, records_at
from trainlib.errors import ConfigError
from vitattn.data.options import data_defaults
from vitattn.data.source import Source
from vitattn.images import augment
from vitattn.images.decode import BadImage, Rgb, guarded, open_picture
from vitattn.images.files import UnreadableRecord
from vitattn.models.size import Size, sides

# Examples that one worker makes at a time: small enough that a first batch comes soon and many
# workers need little memory, large enough (19 MB at 224 pixels) that handing it over costs nothing
# beside decoding.
_PIECE = 32


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a picture becomes pixels. `augmentation` is None for evaluation."""

    image_size: Size
    augmentation: str | None
    eval_crop: float
    mean: Rgb
    std: Rgb
    seed: int

    def pixels(self, source: Source, record: int, epoch: int) -> tuple[np.ndarray, int]:
        """Returns float32 [H, W, 3] and the label of one record; raises BadImage or
        UnreadableRecord."""
        example = source[record]
        picture = open_picture(example.image)
        if self.augmentation is None:
            image = guarded(lambda: augment.evaluation(picture, self.image_size, self.eval_crop))
        else:
            rng = generator(self.seed, epoch, record)
            apply = augment.AUGMENTATIONS[self.augmentation]
            image = guarded(lambda: apply(picture, self.image_size, rng, self.mean))
        if not 0 <= example.label < source.num_classes:
            last = source.num_classes - 1
            raise UnreadableRecord(f"has the label {example.label}, outside 0..{last}")
        return augment.normalise(image, self.mean, self.std), example.label


def check_settings(source: Source, config: ConfigDict, image_size: Size) -> None:
    """Checks the `data` section of a configuration before anything is read.

    Raises:
      ConfigError: a value that cannot work; names the key and the allowed values.
    """
    _recipe(source, config, image_size, 0, config.augment)


def train_batches(
    source: Source,
    config: ConfigDict,
    batch_size: int,
    seed: int,
    start_batch: int,
    host_index: int,
    host_count: int,
    image_size: Size,
) -> Batches:
    """Returns this host's training batches from number `start_batch` on, without end.

    Args:
      source: the training split.
      config: the `data` section of a configuration.
      batch_size: B, over all hosts.
      seed: of the order and the augmentation.
      start_batch: number of the first global batch, the `next_batch` of a checkpoint.
      host_index: number of this host, in 0..host_count-1.
      host_count: hosts that share each global batch.
      image_size: in pixels, one number for a square or (H, W).

    Raises:
      ConfigError: a setting cannot work.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative: use 0 or more.")
    recipe = _recipe(source, config, image_size, seed, config.augment)
    start, stop = host_slice(batch_size, host_index, host_count)
    make = functools.partial(_train_piece, source, recipe, batch_size, start, stop)
    return _batches(make, source, config, stop - start, start_batch, None)


def eval_batches(
    source: Source,
    config: ConfigDict,
    batch_size: int,
    host_index: int,
    host_count: int,
    image_size: Size,
) -> Batches:
    """Returns this host's evaluation batches: each record once over all hosts, in order, without
    augmentation.

    Every host gets the same number of batches. Examples past the last record have weight 0 and
    index -1. For the arguments see `train_batches`.

    Raises:
      ConfigError: a setting cannot work.
    """
    recipe = _recipe(source, config, image_size, 0, None)
    start, stop = host_slice(batch_size, host_index, host_count)
    make = functools.partial(_eval_piece, source, recipe, batch_size, start, stop)
    return _batches(make, source, config, stop - start, 0, -(-len(source) // batch_size))


def _batches(
    make_piece: Callable[[int, int], dict[str, Any]],
    source: Source,
    config: ConfigDict,
    size: int,
    start: int,
    stop: int | None,
) -> Batches:
    """Batches `start` to `stop` (None: no end) of `size` examples on this host, piece by piece."""
    return Batches(
        make_piece,
        pieces=-(-size // _PIECE),
        start=start,
        stop=stop,
        workers=worker_count(config.workers, source.in_memory),
        prefetch=config.prefetch,
        bad=BadRecords(len(source), config.max_bad_fraction, source.describe),
    )


def _recipe(
    source: Source, config: ConfigDict, image_size: Size, seed: int, augmentation: str | None
) -> _Recipe:
    check_section("data", data_defaults(), config)
    mean, std = tuple(config.mean) or source.mean, tuple(config.std) or source.std
    return _Recipe(image_size, augmentation, config.eval_crop, mean, std, seed)


def _positions(start: int, stop: int, piece: int) -> np.ndarray:
    """Returns the positions in the global batch, int64 [up to 32], of a piece of the host's part
    [start, stop)."""
    first = start + piece * _PIECE
    return np.arange(first, min(first + _PIECE, stop), dtype=np.int64)


def _train_piece(
    source: Source, recipe: _Recipe, batch_size: int, start: int, stop: int, batch: int, piece: int
) -> dict[str, Any]:
    positions = batch * batch_size + _positions(start, stop, piece)
    epochs, records = records_at(positions, recipe.seed, len(source))
    return _read(source, recipe, records, epochs)


def _eval_piece(
    source: Source, recipe: _Recipe, batch_size: int, start: int, stop: int, batch: int, piece: int
) -> dict[str, Any]:
    records = batch * batch_size + _positions(start, stop, piece)
    records = np.where(records < len(source), records, -1)
    return _read(source, recipe, records, np.zeros_like(records))


def _read(
    source: Source, recipe: _Recipe, records: np.ndarray, epochs: np.ndarray
) -> dict[str, Any]:
    """Reads records [n] of epochs [n] into arrays; a bad one stays blank and has weight 0."""
    size = len(records)
    images = np.zeros((size, *sides(recipe.image_size), 3), np.float32)
    labels, weights = np.zeros(size, np.int32), np.zeros(size, np.float32)
    bad: list[tuple[int, str]] = []
    for number, (record, epoch) in enumerate(zip(records.tolist(), epochs.tolist(), strict=True)):
        if record < 0:
            continue
        try:
            images[number], labels[number] = recipe.pixels(source, record, epoch)
            weights[number] = 1
        except (BadImage, UnreadableRecord) as error:
            bad.append((record, str(error)))
    return {"image": images, "label": labels, "weight": weights, "index": records, "bad": bad}
