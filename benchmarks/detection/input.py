"""Training input of a detector: images a second of one core, where its time goes, and beside it the
pipeline that one would write down first.

    python -m benchmarks.detection.input [DIR] [--size=640] [--images=32] [--rounds=7]
        [--report-only]

Reads photographs (*.jpg) of DIR, or the two that scikit-learn ships. Every way decodes the same
bytes, draws the same scale and crop of 0.8 to 1.2, mirrors every second picture, and gives one
float32 image [size, size, 3] of zeros where no picture is; they are first compared. Times are CPU
times of one pinned core. Ends with 1 when the target is missed, unless --report-only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import timing
from trainlib.data.order import generator
from vitattn.data import imagenet
from vitattn.detection.data import shapes
from vitattn.detection.data.source import BoxedExample
from vitattn.detection.input import augment, pipeline
from vitattn.images import jpeg
from vitattn.images.decode import open_picture
from vitattn.images.resample import resample

JITTER = (0.8, 1.2)
MEAN, STD = imagenet.MEAN, imagenet.STD
OVER_PILLOW = 0.9  # greatest accepted ratio of ours over the plain way
BOXES = 20


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Encoded photographs with random boxes: a `BoxedSource` as far as reading asks."""

    encoded: Sequence[bytes]
    num_classes: int = 3

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, record: int) -> BoxedExample:
        rng = np.random.default_rng(record)
        corners = np.sort(rng.uniform(0, 400, (BOXES, 2, 2)), axis=1)
        boxes = corners.reshape(BOXES, 4).astype(np.float32)
        classes = rng.integers(0, self.num_classes, BOXES)
        return BoxedExample(self.encoded[record], boxes, classes, np.zeros(BOXES, bool))


def reader(source: Photographs, size: int) -> pipeline.TrainingImages:
    sides = (size, size)
    return pipeline.TrainingImages(source, sides, JITTER, 0.5, 0.0, 100, MEAN, STD, seed=0)  # type: ignore[arg-type]


def placement(encoded: bytes, record: int, size: int) -> augment.Placement:
    """What training draws for a record in its first epoch."""
    picture = open_picture(encoded)
    shape, rng = (picture.height, picture.width), generator(0, 0, record)
    return augment.jitter(shape, (size, size), JITTER, 0.5, 0.0, rng)


def plain_pillow(encoded: bytes, placed: augment.Placement, size: int) -> np.ndarray:
    """Decode, resize all of it, crop, paste on a ground, mirror, and then floats."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    down, across = placed.scale
    whole = round(image.width * across), round(image.height * down)
    image = image.resize(whole, Image.Resampling.BILINEAR)
    top, left = round(placed.part[0] * down), round(placed.part[1] * across)
    rows, columns = placed.shape
    image = image.crop((left, top, left + columns, top + rows))
    if placed.mirrored:
        image = ImageOps.mirror(image)
    pixels = (np.asarray(image, np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(
        STD, np.float32
    )
    ground = np.zeros((size, size, 3), np.float32)
    ground[:rows, :columns] = pixels
    return ground


def plain_torch(encoded: bytes, placed: augment.Placement, size: int) -> np.ndarray:
    """The steps of torchvision's detectors: floats first, normalised, then resized as a tensor."""
    import torch
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    tensor = (tensor - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    down, across = placed.scale
    whole = round(image.shape[0] * down), round(image.shape[1] * across)
    tensor = torch.nn.functional.interpolate(tensor[None], whole, mode="bilinear", antialias=True)
    top, left = round(placed.part[0] * down), round(placed.part[1] * across)
    rows, columns = placed.shape
    tensor = tensor[0, :, top : top + rows, left : left + columns]
    if placed.mirrored:
        tensor = tensor.flip(-1)
    ground = torch.zeros(3, size, size)
    ground[:, :rows, :columns] = tensor
    return ground.permute(1, 2, 0).contiguous().numpy()


def parts(encoded: Sequence[bytes], placed: Sequence[augment.Placement], size: int) -> dict:
    """The steps of ours one by one, each over all photographs."""
    out = np.zeros((size, size, 3), np.float32)
    source = Photographs(encoded)
    ready = [
        open_picture(one).planes(_box(place), place.shape, "linear").transpose(2, 1, 0)
        for one, place in zip(encoded, placed, strict=True)
    ]

    def cut_and_resize() -> None:
        for one, place in zip(pixels, placed, strict=True):
            resample(one, _box(place), place.shape, "linear")

    pixels = [open_picture(one).as_stored() for one in encoded]

    def normalise() -> None:
        for image in ready:
            augment.augment.normalise(image, MEAN, STD, out[: image.shape[0], : image.shape[1]])

    def boxes() -> None:
        for record, place in enumerate(placed):
            moved = augment.move_boxes(source[record].boxes, place)
            augment.wide_enough(augment.clip_boxes(moved, place)[0])

    return {
        "decode": lambda: [jpeg.decode(one, *size_of(one), 1) for one in encoded],
        "cut and resize": cut_and_resize,
        "normalise": normalise,
        f"{BOXES} boxes": boxes,
    }


def _box(place: augment.Placement) -> tuple[float, float, float, float]:
    top, left, bottom, right = place.part
    return left, top, right, bottom


def size_of(encoded: bytes) -> tuple[int, int]:
    """Width and height of a photograph that is not turned."""
    picture = open_picture(encoded)
    return picture.width, picture.height


def same(name: str, ours: np.ndarray, peer: np.ndarray) -> None:
    """Stops unless two images agree but for rounding and the blur at edges of the crop.

    Raises:
      SystemExit: they show something else.
    """
    difference = np.abs(ours - peer).mean()
    if not difference < 0.05:
        raise SystemExit(f"{name} gives another image: off by {difference} in the mean")


def candidates(encoded: Sequence[bytes], size: int) -> dict[str, Callable[[], object]]:
    placed = [placement(one, record, size) for record, one in enumerate(encoded)]
    read = reader(Photographs(encoded), size)
    arrays = read.blank(len(encoded))

    def ours() -> None:
        arrays["image"][:] = 0  # as a new piece is
        for record in range(len(encoded)):
            read.fill(arrays, record, record, 0)

    ours()
    peers = {"plain Pillow and NumPy": plain_pillow}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        peers["torch, as torchvision's detectors"] = plain_torch
    found: dict[str, Callable[[], object]] = {"ours": ours}
    for name, peer in peers.items():
        same(name, arrays["image"][0], peer(encoded[0], placed[0], size))
        found[name] = lambda peer=peer: [
            peer(one, place, size) for one, place in zip(encoded, placed, strict=True)
        ]
    return found | parts(encoded, placed, size)


def photographs(directory: Path | None, count: int) -> list[bytes]:
    """The first so many photographs of a folder; those of scikit-learn are repeated."""
    if directory is not None:
        files = sorted(directory.glob("**/*.jpg"))[:count]
        if not files:
            raise SystemExit(f"{directory} has no file *.jpg")
    else:
        files = [shapes.file_of(name) for name in shapes.PHOTOGRAPHS] * (count // 2)
    return [file.read_bytes() for file in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, help="folder of photographs (*.jpg)")
    parser.add_argument("--size", type=int, default=640, help="side of the network image")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the least time counts")
    parser.add_argument("--core", type=int, default=None, help="processor core to be pinned to")
    parser.add_argument("--report-only", action="store_true", help="a missed target is no error")
    options = parser.parse_args()
    timing.pin_one_thread(options.core)
    encoded = photographs(options.directory, options.images)
    print(timing.header(("pillow", "numpy", "torch")), flush=True)
    first = open_picture(encoded[0])
    print(
        f"{len(encoded)} photographs, the first {first.width} x {first.height}, to {options.size}"
    )
    times = timing.fastest(candidates(encoded, options.size), options.rounds)
    for name, total in times.items():
        each = total / len(encoded)
        print(f"{name:36s} {each:7.2f} ms an image {1000 / each:7.0f} images/s of one core")
    ratio = times["ours"] / times["plain Pillow and NumPy"]
    verdict = "ok" if ratio <= OVER_PILLOW else "MISSED"
    print(f"ours / plain Pillow and NumPy        target {OVER_PILLOW:g} {verdict} {ratio:.2f}")
    return 0 if ratio <= OVER_PILLOW or options.report_only else 1


if __name__ == "__main__":
    sys.exit(main())
