"""AA-ResNet-50 on ImageNet: attention-augmented convolution in the last three stages (arXiv
1904.09925).

    python -m launch.train --config=configs/aa_resnet50.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_resnet50.py:digits --workdir=runs/aa_resnet50_digits

Published (table 2): top-1 77.7 %, top-5 93.8 %, 25.8 M parameters, 8.3 GFLOP; built here:
25,809,392 parameters. Recipe (appendix): 100 epochs, SGD with momentum 0.9, weight decay 1e-4, rate
0.128 per 256 images, 5 % linear warm-up, a tenth at epochs 30, 60, 80 and 90, Inception
augmentation; batch 1024 and bfloat16 are assumed. Hardware: 8 V100 in the paper; here a TPU v3-8 or
larger slice, the same command on every host. Hours are not known: the ImageNet run has not been
made with this code, and no score of ours stands here.

Variants:
  digits: the same network on 1,797 handwritten digits of 8x8 pixels, in minutes on 2 CPU cores.
    Measured here: see README.md.
  fraction025, fraction050, fraction075, fraction100: kappa = upsilon; published top-1 77.7, 77.3,
    76.7, 74.8 %. At 1 no 3x3 convolution is left beside the attention.
  position_none, position_sine, position_coord: published top-1 77.5 % each.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes

VARIANTS = {
    "digits": recipes.digits,
    **{
        f"fraction{percent:03}": recipes.sets(
            model__attention__kappa=percent / 100, model__attention__upsilon=percent / 100
        )
        for percent in (25, 50, 75, 100)
    },
    **{
        f"position_{kind}": recipes.sets(model__attention__position=kind)
        for kind in ("none", "sine", "coord")
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, fractionPERCENT, position_KIND."""
    return recipes.augmented(__file__, "aa_resnet50", 50, variant, VARIANTS)
