"""Drawn shapes on real photographs: a set of pictures with boxes that needs no file.

Discs, squares, triangles and crosses of many sizes and colours, a little turned, lie on parts of
the two photographs that scikit-learn ships. A record is drawn from random numbers of its own
whenever it is asked for, in about a millisecond, and is the same on any machine. Boxes are those of
the outlines and exact: an edge is smooth over one pixel, and its middle lies on the box.

h w height and width of a picture in pixels, n its shapes; points are (y, x).
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from trainlib.errors import DataError
from vitattn.data import imagenet
from vitattn.data.source import short_digest
from vitattn.detection.annotations.table import Truth
from vitattn.detection.data.source import BoxedExample, BoxedSource, Kind, Truths, hold_out

CLASS_NAMES: tuple[str, ...] = ("disc", "square", "triangle", "cross")

# The definition of the set; none of it is a setting.
_RECORDS = {"train": 512, "test": 128}
_SEED = {"train": 19_06_05909, "test": 19_04_09925}
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_HEIGHT, _WIDTH = (96, 160), (128, 192)  # of a picture
_EMPTY = 0.06  # of the pictures have no shape
_MOST_SHAPES = 6
_RADIUS = (11.0, 38.0)  # of the circle around a shape; its logarithm is uniform
_MOST_TURN = 0.3  # radians, either way
_MOST_OVERLAP = 0.25  # of the smaller of two boxes
_ATTEMPTS = 8  # to find a place for a shape, which is left out otherwise
_ARM = 0.3  # half the width of an arm of a cross, for half its length 1
_DRAWS = 8 + _MOST_SHAPES * (7 + 2 * _ATTEMPTS)  # random numbers of a record, at most


class Shape(NamedTuple):
    """One shape of a picture: number of its class, centre, radius of the circle around it, turn in
    radians, colour in RGB 0..255, and opacity: the photograph shines through the rest."""

    kind: int
    centre: tuple[float, float]
    radius: float
    turn: float
    colour: tuple[float, ...]
    opacity: float

    def box(self) -> tuple[float, float, float, float]:
        """Returns top, left, bottom, right."""
        y, x = self.centre
        if CLASS_NAMES[self.kind] == "disc":
            high = wide = self.radius
            return y - high, x - wide, y + high, x + wide
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        corners = [(v * cos + u * sin, u * cos - v * sin) for v, u in _corners(self.kind)]
        down = [y + self.radius * v for v, _ in corners]
        across = [x + self.radius * u for _, u in corners]
        return min(down), min(across), max(down), max(across)

    def distance(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Returns how far points lie outside the outline, in pixels; negative inside.

        Beyond a corner it is the distance from the lines of the edges, so that corners are sharp.
        """
        down, across = y - self.centre[0], x - self.centre[1]
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        v = (down * cos - across * sin) / self.radius
        u = (down * sin + across * cos) / self.radius
        return self.radius * _OUTLINES[CLASS_NAMES[self.kind]](v, u)


# ---------------------------------------------------------------- outlines of radius 1
_TIP = 1 / math.hypot(1, _ARM)  # half the length of a cross whose corners lie on the circle


def _disc(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.hypot(v, u) - 1


def _square(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.maximum(abs(v), abs(u)) - math.sqrt(0.5)


def _triangle(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Points up; its base lies half a radius below the centre."""
    sides = abs(u) * math.sqrt(0.75) - v * 0.5
    return np.maximum(v, sides) - 0.5


def _cross(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    v, u = abs(v), abs(u)
    arm = _TIP * _ARM
    return np.minimum(np.maximum(v - _TIP, u - arm), np.maximum(u - _TIP, v - arm))


_OUTLINES = {"disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross}


def _corners(kind: int) -> list[tuple[float, float]]:
    """The corners that can be outermost, (v, u)."""
    name, signs = CLASS_NAMES[kind], [(a, b) for a in (-1, 1) for b in (-1, 1)]
    if name == "square":
        return [(a * math.sqrt(0.5), b * math.sqrt(0.5)) for a, b in signs]
    if name == "triangle":
        return [(-1.0, 0.0), (0.5, -math.sqrt(0.75)), (0.5, math.sqrt(0.75))]
    arm = _TIP * _ARM
    return [corner for a, b in signs for corner in ((a * _TIP, b * arm), (a * arm, b * _TIP))]


# ---------------------------------------------------------------- pictures
class Scene(NamedTuple):
    """What a picture shows: which photograph, from which pixel on, mirrored or not, how high and
    wide, and which shapes lie on it, the last on top."""

    photograph: int
    corner: tuple[int, int]
    mirrored: bool
    size: tuple[int, int]
    shapes: tuple[Shape, ...]

    def boxes(self) -> np.ndarray:
        """Returns the boxes of the shapes, float64 [n, 4]."""
        return np.asarray([shape.box() for shape in self.shapes]).reshape(-1, 4)

    def classes(self) -> np.ndarray:
        """Returns their classes, int32 [n]."""
        return np.asarray([shape.kind for shape in self.shapes], np.int32)

    def draw(self) -> np.ndarray:
        """Returns the picture, uint8 [h, w, 3]."""
        (top, left), (high, wide) = self.corner, self.size
        picture = _photograph(PHOTOGRAPHS[self.photograph])[top : top + high, left : left + wide]
        picture = picture[:, :: -1 if self.mirrored else 1].astype(np.float32)
        for shape in self.shapes:
            _lay_on(picture, shape)
        return np.rint(picture).astype(np.uint8)


def _lay_on(picture: np.ndarray, shape: Shape) -> None:
    """Draws a shape into float32 [h, w, 3]; a pixel is covered as far as the outline covers it."""
    top, left, bottom, right = shape.box()
    rows = slice(max(0, math.floor(top) - 1), math.ceil(bottom) + 1)
    columns = slice(max(0, math.floor(left) - 1), math.ceil(right) + 1)
    part = picture[rows, columns]
    y = np.arange(rows.start, rows.start + part.shape[0], dtype=np.float32) + 0.5
    x = np.arange(columns.start, columns.start + part.shape[1], dtype=np.float32) + 0.5
    cover = np.clip(0.5 - shape.distance(y[:, None], x), 0, 1)[..., None] * shape.opacity
    part += cover * (np.asarray(shape.colour, np.float32) - part)


def scene(split: str, record: int) -> Scene:
    """Returns what record `record` of the split `train` or `test` shows.

    It is made of raw Philox words: NumPy promises those never to change.
    """
    seeds = np.random.SeedSequence((_SEED[split], record))
    words = np.random.Philox(seeds).random_raw(_DRAWS)
    draws = iter(((words >> np.uint64(11)) * 2.0**-53).tolist())
    size = _whole(draws, *_HEIGHT), _whole(draws, *_WIDTH)
    photograph = _whole(draws, 0, len(PHOTOGRAPHS) - 1)
    sides = _photograph(PHOTOGRAPHS[photograph]).shape
    corner = _whole(draws, 0, sides[0] - size[0]), _whole(draws, 0, sides[1] - size[1])
    mirrored = next(draws) < 0.5
    wanted = 0 if next(draws) < _EMPTY else _whole(draws, 1, _MOST_SHAPES)
    shapes: list[Shape] = []
    for _ in range(wanted):
        if (shape := _placed(draws, size, shapes)) is not None:
            shapes.append(shape)
    return Scene(photograph, corner, mirrored, size, tuple(shapes))


def _whole(draws: Iterator[float], low: int, high: int) -> int:
    """A uniform whole number of low..high."""
    return low + int(next(draws) * (high - low + 1))


def _placed(draws: Iterator[float], size: tuple[int, int], others: list[Shape]) -> Shape | None:
    """A random shape that lies in the picture and hides little of any other; None if no place was
    found."""
    kind = _whole(draws, 0, len(CLASS_NAMES) - 1)
    radius = math.exp(math.log(_RADIUS[0]) + next(draws) * math.log(_RADIUS[1] / _RADIUS[0]))
    turn, hue = _MOST_TURN * (2 * next(draws) - 1), next(draws)
    colour = colorsys.hsv_to_rgb(hue, 0.5 + 0.5 * next(draws), 0.4 + 0.6 * next(draws))
    opacity = 0.85 + 0.15 * next(draws)
    colour = tuple(255 * channel for channel in colour)
    for _ in range(_ATTEMPTS):
        y, x = (radius + next(draws) * (side - 2 * radius) for side in size)
        shape = Shape(kind, (y, x), radius, turn, colour, opacity)
        if all(_overlap(shape.box(), other.box()) <= _MOST_OVERLAP for other in others):
            return shape
    return None


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """What two boxes share, as a part of the smaller one."""
    high = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    wide = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return high * wide / min(areas)


@functools.cache
def _photograph(name: str) -> np.ndarray:
    """Returns a photograph, uint8 [427, 640, 3]."""
    with Image.open(file_of(name)) as image:
        return np.asarray(image.convert("RGB"))


def file_of(name: str) -> Path:
    package = importlib.util.find_spec("sklearn")
    folders = (package.submodule_search_locations if package else None) or []
    files = [Path(folder) / "datasets" / "images" / name for folder in folders]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise DataError(
            f"the shapes lie on photographs that come with scikit-learn (datasets/images/{name}), "
            "which is not installed here. Install it: pip install scikit-learn."
        )
    return path


# ---------------------------------------------------------------- the set
class Shapes(Truths):
    """A split of the set: a `vitattn.detection.data.source.BoxedSource`."""

    in_memory = True  # a record is drawn faster than a worker process hands it over
    left_out: tuple[str, ...] = ()
    class_names: tuple[str, ...] = CLASS_NAMES
    num_classes = len(CLASS_NAMES)
    category_ids = tuple(range(1, len(CLASS_NAMES) + 1))
    mean, std = imagenet.MEAN, imagenet.STD

    def __init__(self, split: str):
        self.split = split
        photographs = [hashlib.sha256(file_of(name).read_bytes()).digest() for name in PHOTOGRAPHS]
        self.digest = short_digest("shapes", split, len(self), *photographs)

    def __len__(self) -> int:
        return _RECORDS[self.split]

    def __getitem__(self, record: int) -> BoxedExample:
        shown = scene(self.split, record)
        classes = shown.classes()
        boxes = shown.boxes().astype(np.float32)
        return BoxedExample(shown.draw(), boxes, classes, np.zeros(len(classes), bool))

    def describe(self, record: int) -> str:
        return f"shapes {self.split} record {record}"

    def truth(self, record: int) -> Truth:
        """Returns what is known of a record without drawing it."""
        shown = scene(self.split, record)
        boxes = shown.boxes()
        sides = boxes[:, 2:] - boxes[:, :2]
        return Truth(
            image_id=record + 1,
            file_name=f"{self.split}/{record:03}.png",
            height=shown.size[0],
            width=shown.size[1],
            boxes=np.concatenate([boxes[:, 1::-1], sides[:, ::-1]], axis=1),
            classes=shown.classes(),
            area=sides.prod(axis=1),
            crowd=np.zeros(len(boxes), bool),
        )


def make(config: ConfigDict, split: str) -> BoxedSource:
    """Opens a split of the drawn shapes.

    Raises:
      DataError: scikit-learn, whose photographs lie behind the shapes, is not installed.
    """
    source = Shapes("test" if split == "test" else "train")
    return source if split == "test" else hold_out(source, config.holdout, split)


KIND = Kind(("shapes",), make, imagenet.MEAN, imagenet.STD, lambda _: CLASS_NAMES)
