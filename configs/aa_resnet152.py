"""AA-ResNet-152 on ImageNet: attention-augmented convolution in the last three stages (arXiv
1904.09925).

    python -m launch.train --config=configs/aa_resnet152.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_resnet152.py:digits --workdir=DIR

Published (table 2): top-1 79.1 %, top-5 94.6 %, 61.6 M parameters, 23.8 GFLOP; built here:
61,613,536 parameters. Recipe (appendix): 100 epochs, SGD with momentum 0.9, weight decay 1e-4, rate
0.128 per 256 images, 5 % linear warm-up, a tenth at epochs 30, 60, 80 and 90, Inception
augmentation; batch 1024 and bfloat16 are assumed. Hardware: 8 V100 in the paper; here a TPU v3-8 or
larger slice, the same command on every host. Hours are not known: the run has not been made with
this code, and no score of ours stands here.

Variants: conv and se, the same recipe without attention (ResNet-152: 78.4 / 94.2 %, SE: 78.9 / 94.5
%); digits, on 1,797 handwritten digits of 8x8 pixels with one block a stage, a quarter of the width
and 2 heads.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes

VARIANTS = {
    "conv": recipes.as_is,
    "se": recipes.sets(model__gate="se"),
    "digits": recipes.small_digits,
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, se, digits."""
    return recipes.augmented(__file__, "aa_resnet152", 152, variant, VARIANTS)
