"""AA-MnasNet-A1 on ImageNet: attention in the 1x1 expansions at 14 and 7 pixels (arXiv 1904.09925).

    python -m launch.train --config=configs/aa_mnasnet.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_mnasnet.py:digits --workdir=runs/aa_mnasnet_digits

Published (table 3): top-1 75.7 %, top-5 92.6 %, 4.06 M parameters, 0.70 GFLOP; built here:
4,056,046 parameters. Recipe: 350 epochs, RMSProp (decay 0.9, momentum 0.9, epsilon 1e-3), weight
decay 1e-5, half of the baseline's rate, with a slower decay to the same final rate, label smoothing
0.1, dropout 0.2, average of weights with decay 0.9999; batch 1024, 5 epochs of warm-up,
augmentation by crops and flips, and bfloat16 are assumed. Hardware: not stated in the paper; here a
TPU v3-8 or larger slice, the same command on every host. Hours are not known: the run has not been
made with this code, and no score of ours stands here.

Variants: width075, width125, width140 (published top-1 73.9, 77.2, 77.7 %); digits, on 1,797
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
    config = default_config("mnasnet", attention="augmented")
    config.name = "aa_mnasnet"
    recipes.imagenet_mnasnet(config, augmented=True)
    return recipes.cite(recipes.pick(__file__, variant, VARIANTS, config), AUGMENTED)
