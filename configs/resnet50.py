"""ResNet-50 on ImageNet: the baseline of attention augmentation (arXiv 1904.09925), and the gates
that it is compared with.

    python -m launch.train --config=configs/resnet50.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/resnet50.py:digits --workdir=runs/resnet50_digits

Published (table 2): top-1 76.4 %, top-5 93.1 %, 25.6 M parameters, 8.2 GFLOP; built here:
25,557,032 parameters. Recipe as in configs/aa_resnet50.py. Hardware: 8 V100 in the paper; here a
TPU v3-8 or larger slice, the same command on every host. Hours are not known: the run has not been
made with this code, and no score of ours stands here.

Variants:
  digits: the same network on 1,797 handwritten digits of 8x8 pixels.
  se, cbam, gather_excite: a gate at the end of each residual branch. Published: SE 77.5 / 93.7 %,
    28.1 M; CBAM 77.4 %, 28.1 M.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

VARIANTS = {
    "digits": recipes.digits,
    **{gate: recipes.sets(model__gate=gate) for gate in ("se", "cbam", "gather_excite")},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, se, cbam, gather_excite."""
    config = default_config("resnet")
    config.name = "resnet50"
    config.model.depth = 50
    recipes.imagenet_resnet(config)
    return recipes.cite(recipes.pick(__file__, variant, VARIANTS, config), AUGMENTED)
