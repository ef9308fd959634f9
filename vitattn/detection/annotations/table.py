"""The images of a split and the boxes on them, as arrays: small to send to workers, quick to look
up.

I images, n boxes (of all images, or of one), C classes. Boxes are COCO's [x, y, width, height] in
pixels of the original image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """What is known of one image without reading it.

    Attributes:
      image_id: COCO's id of the image.
      file_name: as the annotations have it.
      height: of the original image in pixels; 0 where the annotations do not say.
      width: the same.
      boxes: f64 [n, 4], x, y, width and height as they were given, each larger than nothing.
      classes: i32 [n], 0..C-1.
      area: f64 [n], of the object in pixels, which can be smaller than that of its box.
      crowd: bool [n], whether the box holds many objects that nobody counted.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """A split.

    Attributes:
      image_ids: i64 [I].
      file_names: [I].
      sizes: i32 [I, 2], height and width; 0 where they are not known.
      starts: i64 [I + 1]; the boxes of image i are `starts[i]:starts[i + 1]`.
      boxes: f64 [n, 4].
      classes: i32 [n].
      area: f64 [n].
      crowd: bool [n].
      category_ids: COCO's id of each class, [C].
      class_names: of each class, [C].
    """

    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def truth(self, image: int) -> Truth:
        """Returns what is known of image number `image`."""
        own = slice(self.starts[image], self.starts[image + 1])
        height, width = self.sizes[image].tolist()
        return Truth(
            int(self.image_ids[image]),
            self.file_names[image],
            height,
            width,
            self.boxes[own],
            self.classes[own],
            self.area[own],
            self.crowd[own],
        )

    def of_images(self, images: np.ndarray) -> Table:
        """Returns the part of these images, i64 [I'], in ascending order."""
        counts = np.diff(self.starts)
        chosen = np.zeros(len(self), bool)
        chosen[images] = True
        boxes = np.repeat(chosen, counts)
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[images],
            file_names=tuple(self.file_names[i] for i in images.tolist()),
            sizes=self.sizes[images],
            starts=starts_of(counts[images]),
            boxes=self.boxes[boxes],
            classes=self.classes[boxes],
            area=self.area[boxes],
            crowd=self.crowd[boxes],
        )


def starts_of(counts: np.ndarray | Sequence[int]) -> np.ndarray:
    """Returns where the boxes of each image begin, i64 [I + 1], of their numbers [I]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
