"""MnasNet-A1 on ImageNet: the mobile baseline of attention augmentation (arXiv 1904.09925).

    python -m launch.train --config=configs/mnasnet.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/mnasnet.py:digits --workdir=runs/mnasnet_digits

Published (table 3): top-1 75.2 %, top-5 92.4 %, 3.89 M parameters, 0.63 GFLOP; built here:
3,887,038 parameters. Recipe: 350 epochs, RMSProp (decay 0.9, momentum 0.9, epsilon 1e-3), weight
decay 1e-5, rate 0.016 per 256 images, times 0.97 each 2.4 epochs, label smoothing 0.1, dropout 0.2,
average of weights with decay 0.9999; batch 1024, 5 epochs of warm-up, augmentation by crops and
flips, and bfloat16 are assumed. Hardware: not stated in the paper; here a TPU v3-8 or larger slice,
the same command on every host. Hours are not known: the run has not been made with this code, and
no score of ours stands here.

Variants: width075, width125, width140 (published top-1 73.3, 76.7, 77.2 %); digits, on 1,797
handwritten digits of 8x8 pixels with one or two blocks a row, a quarter of the width and SGD.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

VARIANTS = recipes.MNASNET_VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, width075, width125, width140."""
    config = default_config("mnasnet")
    config.name = "mnasnet"
    recipes.imagenet_mnasnet(config, augmented=False)
    return recipes.cite(recipes.pick(__file__, variant, VARIANTS, config), AUGMENTED)
