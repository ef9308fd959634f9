"""Images for training: JPEG to random crop, flip, 224 pixels, normalised, beside tf.data.

    python -m benchmarks.peers.images [DIR] [--images=128] [--size=224] [--rounds=7]

Ours is the path of `vitattn.train`: records of a source, read in pieces, joined to batches of 32.
The peers are tf.data with `tf.io.decode_and_crop_jpeg` (slim's Inception crop, resized bicubic or
bilinear, its colour distortion) and torchvision (`RandomResizedCrop`, bicubic with antialiasing,
`ColorJitter`), in batches of 32 as well. Ours resizes with antialiasing, as torchvision does;
tf.data's default takes 4 x 4 (or 2 x 2) pixels for each result whatever the factor, which is
cheaper and what its figures here are.

First the same crops are forced on all: pixels of ours and of `tf.image.resize(antialias=True)`
differ by less than half a level in the mean, and by that with Pillow; the colours of the same draws
by less than half a level.

Photographs are the *.jpg of DIR, or the two of scikit-learn, cut and resized to 500 x 375 and
encoded at qualities from 75 to 95.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import goals, timing

if TYPE_CHECKING:
    from vitattn.augmentation.settings import Chosen

BATCH = 32
QUALITIES = (75, 80, 85, 90, 95)
LEVELS = 0.5  # greatest accepted mean difference, in levels of 255


class Photographs:
    """Encoded photographs, all of one class: a `Source` as far as reading asks."""

    in_memory = False
    num_classes = 1

    def __init__(self, encoded: Sequence[bytes]):
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, record: int) -> Any:
        from vitattn.data.source import Example

        return Example(self.encoded[record], 0)

    def describe(self, record: int) -> str:
        return f"photograph {record}"


def photographs(directory: Path | None, count: int) -> list[bytes]:
    """The first files of a folder, or as many of 500 x 375 made from those of scikit-learn."""
    if directory is not None:
        files = sorted(directory.glob("**/*.jpg"))[:count]
        if len(files) < count:
            raise SystemExit(f"{directory} has {len(files)} files *.jpg, fewer than {count}")
        return [file.read_bytes() for file in files]
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, made = np.random.default_rng(0), []
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        wide = int(rng.integers(480, 570))
        high = wide * 3 // 4
        left, top = rng.integers(0, (picture.width - wide + 1, picture.height - high + 1))
        cut = picture.resize(
            (500, 375), Image.Resampling.LANCZOS, (left, top, left + wide, top + high)
        )
        file = io.BytesIO()
        cut.save(file, "JPEG", quality=QUALITIES[number % len(QUALITIES)])
        made.append(file.getvalue())
    return made


def ours(
    encoded: Sequence[bytes], size: int, augmentation: str, chosen: Chosen | None = None
) -> Callable[[], object]:
    """The training pipeline over all photographs once, without worker processes; `chosen` is what
    images go through beyond their augmentation.
    """
    from trainlib.data.bad_records import BadRecords
    from trainlib.data.batches import Batches
    from vitattn.augmentation.settings import OFF
    from vitattn.data import imagenet, pipeline, reading

    source = Photographs(encoded)
    reader = pipeline.LabelledImages(
        source,  # type: ignore[arg-type]
        size,
        augmentation,
        0.875,
        imagenet.MEAN,
        imagenet.STD,
        seed=0,
        chosen=chosen or OFF,
    )
    rows = functools.partial(reading._positions, 0, BATCH, BATCH)
    mixing = reader.chosen.mixing
    make = functools.partial(reading._training_piece, reader, BATCH, rows, 1, mixing)

    def run() -> None:
        stop, bad = len(encoded) // BATCH, BadRecords(len(encoded), 0.0, source.describe)
        with Batches(make, pieces=1, start=0, stop=stop, workers=0, prefetch=1, bad=bad) as batches:
            assert sum(len(batch["image"]) for batch in batches) == stop * BATCH

    return run


def tf_data(encoded: Sequence[bytes], size: int, method: str, colour: bool) -> Callable[[], object]:
    """The same by tf.data, with one thread."""
    import tensorflow as tf

    from vitattn.data import imagenet

    mean, std = tf.constant(imagenet.MEAN), tf.constant(imagenet.STD)

    def one(content: Any) -> Any:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(content),
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.io.decode_and_crop_jpeg(content, window, channels=3)
        image = tf.image.resize(image, (size, size), method=method) / 255
        image = tf.image.random_flip_left_right(image)
        if colour:  # slim's order for every second thread; both orders cost the same
            image = tf.image.random_brightness(image, 32 / 255)
            image = tf.image.random_saturation(image, 0.5, 1.5)
            image = tf.image.random_hue(image, 0.2)
            image = tf.image.random_contrast(image, 0.5, 1.5)
            image = tf.clip_by_value(image, 0, 1)
        return (image - mean) / std

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    images = tf.data.Dataset.from_tensor_slices(list(encoded))
    images = images.map(one, num_parallel_calls=1).batch(BATCH).prefetch(1).with_options(options)
    return lambda: [None for _ in images]


def torchvision(encoded: Sequence[bytes], size: int, colour: bool) -> Callable[[], object]:
    """The same by torchvision, on pictures of Pillow as in its reference recipe."""
    from benchmarks.harness import torch_vision

    torch_vision.prepare()
    import torch
    from PIL import Image
    from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

    from vitattn.data import imagenet

    torch.set_num_threads(1)
    jitter = [v2.ColorJitter(32 / 255, 0.5, 0.5, 0.2)] if colour else []
    apply = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            *jitter,
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(imagenet.MEAN, imagenet.STD),
        ]
    )

    def run() -> None:
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            torch.stack([apply(Image.open(io.BytesIO(one)).convert("RGB")) for one in batch])

    return run


def check(encoded: Sequence[bytes], size: int, with_tf: bool) -> None:
    """Forces the same crops and colours on ours and the peers.

    Raises:
      SystemExit: they show something else.
    """
    import numpy as np
    from PIL import Image

    from vitattn.images import augment, colour
    from vitattn.images.decode import open_picture

    found: dict[str, list] = {}
    for number, content in enumerate(encoded[:8]):
        picture = open_picture(content)
        rng = np.random.default_rng(number)
        # A whole number of pixels, as the peers cut.
        left, top, right, bottom = map(
            round, augment.inception_box(picture.width, picture.height, rng)
        )
        cut = Image.open(io.BytesIO(content)).convert("RGB").crop((left, top, right, bottom))
        box, sides = (0, 0, right - left, bottom - top), (size, size)
        mine = open_picture(np.asarray(cut)).planes(box, size)  # nothing beside the crop counts
        image = mine.transpose(2, 1, 0)
        pillow = np.asarray(cut.resize(sides, Image.Resampling.BICUBIC), np.float32)
        found.setdefault("Pillow, and so torchvision", []).append(image - pillow)
        window = (left, top, right, bottom)
        whole = open_picture(content).planes(window, size).transpose(2, 1, 0)
        pillow = np.asarray(open_picture(content).render(window, size), np.float32)
        found.setdefault("Pillow's crop, as in evaluation", []).append(whole - pillow)
        if not with_tf:
            continue
        import tensorflow as tf

        window = (top, left, bottom - top, right - left)
        crop = tf.io.decode_and_crop_jpeg(content, window, 3, dct_method="INTEGER_ACCURATE")
        theirs = tf.image.resize(crop, sides, "bicubic", antialias=True).numpy()
        found.setdefault("tf.image.resize, antialias", []).append(image - theirs.clip(0, 255))
        plain = tf.image.resize(crop, sides, "bicubic").numpy()
        found.setdefault("tf.image.resize, its default (only shown)", []).append(image - plain)
        theirs = tf.image.adjust_saturation(tf.convert_to_tensor(image / 255), 1.3)
        theirs = tf.image.adjust_contrast(tf.image.adjust_hue(theirs, 0.1), 0.8).numpy()
        colour.turn_hue(mine, 0.1, 1.3)
        colour.stretch_contrast(mine, 0.8)
        found.setdefault("tf.image.adjust_*", []).append(image - 255 * theirs)
    for name, differences in found.items():
        levels = np.abs(np.concatenate([one.ravel() for one in differences]))
        print(
            f"ours less {name:44} mean {levels.mean():.3f} of 255, 99.9 % below "
            f"{np.quantile(levels, 0.999):.2f}, at most {levels.max():.2f}"
        )
        if "only shown" not in name and not levels.mean() < LEVELS:
            raise SystemExit(f"{name} gives another image: off by {levels.mean()} in the mean")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, help="folder of photographs (*.jpg)")
    parser.add_argument("--images", type=int, default=4 * BATCH, help=f"a multiple of {BATCH}")
    parser.add_argument("--size", type=int, default=224, help="side of the network image")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the least time counts")
    options = parser.parse_args()
    if options.images < BATCH or options.images % BATCH:
        parser.error(f"--images={options.images} is not a multiple of {BATCH}")
    timing.pin_one_thread()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    have = {name: importlib.util.find_spec(name) for name in ("tensorflow", "torchvision")}
    encoded = photographs(options.directory, options.images)
    print(timing.header(("pillow", "simplejpeg", "numpy", *have)), flush=True)
    print(f"{len(encoded)} photographs, {sum(map(len, encoded)) / len(encoded) / 1000:.0f} kB each")
    check(encoded, options.size, bool(have["tensorflow"]))
    candidates = {}
    for tail, augmentation in (("", "inception_crop"), (", colour", "inception")):
        candidates[f"ours{tail}"] = ours(encoded, options.size, augmentation)
        if have["tensorflow"]:
            for method in ("bicubic", "bilinear"):
                run = tf_data(encoded, options.size, method, bool(tail))
                candidates[f"tf.data {method}{tail}"] = run
        if have["torchvision"]:
            candidates[f"torchvision{tail}"] = torchvision(encoded, options.size, bool(tail))
    total = timing.fastest(candidates, options.rounds)
    times = {name: time / len(encoded) for name, time in total.items()}
    for name, time in times.items():
        print(f"{name:28} {1000 / time:6.0f} images/s of one core")
    rows = [
        goals.Goal(f"ours{tail}", f"{peer}{tail}", 0.90)
        for tail in ("", ", colour")
        for peer in ("tf.data bicubic", "tf.data bilinear", "torchvision")
    ]
    return goals.report(f"an image of {options.size} pixels", times, rows)


if __name__ == "__main__":
    sys.exit(main())
