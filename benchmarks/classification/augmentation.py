"""What sharper augmentation costs a host: images a second of one core, with each of them and with
all.

    python -m benchmarks.classification.augmentation [DIR] [--images=128] [--size=224] [--rounds=7]

The path is that of `vitattn.train` with `data.augment=inception_crop`, in batches of 32, as in
`benchmarks.peers.images`, which also makes the photographs: *.jpg of DIR, or those of scikit-learn.
Times are CPU times of one pinned core, interleaved, the least of the rounds. The device has nothing
to do for any of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.harness import timing
from benchmarks.peers import images
from vitattn.augmentation.erasing import Erasing
from vitattn.augmentation.mixing import Mixing
from vitattn.augmentation.rand_augment import RandAugment
from vitattn.augmentation.settings import Chosen

RAND_AUGMENT = RandAugment(2, 9.0, 0.5)
ERASING = Erasing(0.25, (0.02, 1 / 3), (0.3, 3.3), "pixel")
WAYS = {
    "crop and flip": Chosen(),
    "mixup": Chosen(mixing=Mixing(0.2, 0.0, 1.0, 0.5, 0)),
    "CutMix": Chosen(mixing=Mixing(0.0, 1.0, 1.0, 0.5, 0)),
    "random erasing of a quarter": Chosen(erasing=ERASING),
    "RandAugment, 2 operations": Chosen(rand_augment=RAND_AUGMENT),
    "all of them": Chosen(RAND_AUGMENT, ERASING, Mixing(0.2, 1.0, 1.0, 0.5, 0)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, help="folder of photographs (*.jpg)")
    parser.add_argument(
        "--images", type=int, default=4 * images.BATCH, help=f"a multiple of {images.BATCH}"
    )
    parser.add_argument("--size", type=int, default=224, help="side of the network image")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the least time counts")
    options = parser.parse_args()
    if options.images < images.BATCH or options.images % images.BATCH:
        parser.error(f"--images={options.images} is not a multiple of {images.BATCH}")
    timing.pin_one_thread()
    encoded = images.photographs(options.directory, options.images)
    print(timing.header(("pillow", "simplejpeg", "numpy")), flush=True)
    print(f"{len(encoded)} photographs, {sum(map(len, encoded)) / len(encoded) / 1000:.0f} kB each")
    runs = {
        name: images.ours(encoded, options.size, "inception_crop", chosen)
        for name, chosen in WAYS.items()
    }
    times = timing.fastest(runs, options.rounds)
    plain = times["crop and flip"]
    for name, time in times.items():
        each = time / len(encoded)  # ms
        print(f"{name:28} {1000 / each:6.0f} images/s  {each:5.2f} ms  {time / plain:.2f} of plain")
    return 0


if __name__ == "__main__":
    sys.exit(main())
