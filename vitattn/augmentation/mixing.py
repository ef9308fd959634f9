"""Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899): an
image takes up a part of another one of its batch, and its label the same part of the other's.

H W of the image, n examples. Rows 2i and 2i + 1 of the global batch are partners: neighbours in a
random order are as random as any other pairs, and lie on one host and in one piece whatever the
number of hosts. Each of the two is mixed with its own draws, from (seed, epoch, record), so that a
batch is a function of the seed and its number, as without mixing.

It is done where images are made: there it costs a tenth of an image at most, 8 bytes more an image
on the way to the device, and nothing on the chip, and no row of a batch on the device depends on
another, so that microbatches and meshes change nothing.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from trainlib.data.order import MIXING, generator
from vitattn.augmentation.erasing import Window
from vitattn.images import scratch


class Mixture(NamedTuple):
    """What becomes of an image.

    Attributes:
      share: of its own pixels and its own label, 0 to 1.
      window: what its partner fills, for CutMix; None where all pixels are averages.
    """

    share: float
    window: Window | None = None


UNMIXED = Mixture(1.0)


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How images are mixed.

    Attributes:
      mixup: a of the share of mixup, Beta(a, a); 0 is off.
      cutmix: the same of CutMix.
      probability: with which an image is mixed at all.
      cutmix_probability: with which it is then by CutMix, where both are on.
      seed: of the draws.
    """

    mixup: float
    cutmix: float
    probability: float
    cutmix_probability: float
    seed: int

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Mixture:
        """Returns the mixture of one image of so many pixels."""
        if rng.random() >= self.probability:
            return UNMIXED
        cut = self.cutmix_probability if self.mixup and self.cutmix else float(self.cutmix > 0)
        if rng.random() >= cut:
            return Mixture(rng.beta(self.mixup, self.mixup))
        window = cut_window(height, width, rng.beta(self.cutmix, self.cutmix), rng)
        top, left, bottom, right = window
        left_over = height * width - (bottom - top) * (right - left)
        return Mixture(left_over / (height * width), window)

    def apply(
        self,
        arrays: dict[str, np.ndarray],
        weights: np.ndarray,
        records: np.ndarray,
        draws: np.ndarray,
    ) -> None:
        """Mixes pairs of examples in place, and adds the arrays `partner` int32 [n], the labels of
        the partners, and `share` float32 [n], of the example's own label.

        Args:
          arrays: "image" float32 [n, H, W, 3] and "label" int32 [n], n even.
          weights: float32 [n]; where one of a pair has weight 0 neither is mixed.
          records: int64 [n], their numbers in the source.
          draws: int64 [n], that tell several readings of a record apart: its epoch.
        """
        images, labels = arrays["image"], arrays["label"]
        arrays["partner"] = labels.reshape(-1, 2)[:, ::-1].reshape(-1)  # a copy
        arrays["share"] = np.ones(len(labels), np.float32)
        _, height, width, _ = images.shape
        for first in range(0, len(labels), 2):
            if not weights[first : first + 2].all():
                continue
            mixtures = [
                self.draw(height, width, generator(self.seed, draws[n], records[n], MIXING))
                for n in (first, first + 1)
            ]
            blend(images[first : first + 2], mixtures)
            arrays["share"][first : first + 2] = [mixture.share for mixture in mixtures]


def cut_window(height: int, width: int, share: float, rng: np.random.Generator) -> Window:
    """Returns the rectangle that leaves `share` of an image of so many pixels, as far as it lies
    within: its sides are sqrt(1 - share) of the image's, its centre is uniform (equation 2 of
    CutMix).
    """
    part = math.sqrt(1 - share)
    tall, wide = int(height * part), int(width * part)
    top = int(rng.integers(height)) - tall // 2
    left = int(rng.integers(width)) - wide // 2
    return max(top, 0), max(left, 0), min(top + tall, height), min(left + wide, width)


def blend(pair: np.ndarray, mixtures: list[Mixture]) -> None:
    """Mixes two images float32 [2, H, W, 3] with each other in place."""
    if mixtures == [UNMIXED, UNMIXED]:
        return
    original = scratch.empty("partners", pair.shape)
    original[:] = pair
    for image, partner, mixture in zip(pair, original[::-1], mixtures, strict=True):
        if mixture.window is not None:
            top, left, bottom, right = mixture.window
            image[top:bottom, left:right] = partner[top:bottom, left:right]
        elif mixture.share < 1:
            # partner + share (image - partner): without memory for a second product.
            image -= partner
            image *= np.float32(mixture.share)
            image += partner
