"""AA-WRN-28-10 on CIFAR-100: attention in the first convolution of every block (arXiv 1904.09925).

    python -m launch.train --config=configs/aa_wrn28_10.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_wrn28_10.py:digits --workdir=runs/aa_wrn28_10_digits

Published (table 1): top-1 81.6 %, top-5 95.2 %, 36.2 M parameters, 10.9 GFLOP; built here:
36,054,100 parameters; the 0.15 M between are unresolved. Recipe (appendix): 500 epochs of batch
256, SGD with momentum 0.9, weight decay 5e-4, rate 0.2 per 256 images, 5 % linear warm-up, cosine
to 0, crops of the image with a border of 4 pixels, and flips; bfloat16 is assumed. Hardware: 8 V100
in the paper; here a TPU v3-8, the same command on every host of a larger slice. Hours are not
known: the run has not been made with this code, and no score of ours stands here.

Variants: digits, on 1,797 handwritten digits of 8x8 pixels at depth 10 and widening 2 with 2 heads.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

VARIANTS = {"digits": recipes.wide_digits}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits."""
    config = default_config("wide_resnet", attention="augmented")
    config.name = "aa_wrn28_10"
    recipes.cifar100(config, augmented=True)
    return recipes.cite(recipes.pick(__file__, variant, VARIANTS, config), AUGMENTED)
