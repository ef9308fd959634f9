"""WRN-28-10 on CIFAR-100: the baseline of attention augmentation (arXiv 1904.09925).

    python -m launch.train --config=configs/wrn28_10.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/wrn28_10.py:digits --workdir=runs/wrn28_10_digits

Published (table 1): top-1 80.3 %, top-5 95.0 %, 36.3 M parameters, 10.4 GFLOP; built here:
36,278,324 parameters (shortcuts without parameters). Recipe (appendix): 500 epochs of batch 1024,
SGD with momentum 0.9, weight decay 2e-4, rate 0.2 per 256 images, 5 % linear warm-up, cosine to 0,
crops of the image with a border of 4 pixels, and flips; bfloat16 is assumed. Hardware: 8 V100 in
the paper; here a TPU v3-8, the same command on every host of a larger slice. Hours are not known:
the run has not been made with this code, and no score of ours stands here.

Variants: se (published 81.0 / 95.3 %), gather_excite (79.8 / 95.0 %), and digits, on 1,797
handwritten digits of 8x8 pixels at depth 10 and widening 2.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

VARIANTS = {
    "digits": recipes.wide_digits,
    "se": recipes.sets(model__gate="se"),
    "gather_excite": recipes.sets(model__gate="gather_excite"),
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, se, gather_excite."""
    config = default_config("wide_resnet")
    config.name = "wrn28_10"
    recipes.cifar100(config, augmented=False)
    return recipes.cite(recipes.pick(__file__, variant, VARIANTS, config), AUGMENTED)
