"""SASA-ResNet-38 on ImageNet: self-attention in 7x7 windows in place of every 3x3 convolution
(arXiv 1906.05909).

    python -m launch.train --config=configs/sasa_resnet38.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/sasa_resnet38.py:digits --workdir=DIR

Published (table 1, convolution stem): top-1 77.1 %, 14.1 M parameters, 5.7 GFLOP; built here:
14,173,384 parameters. Recipe: 130 epochs, Nesterov momentum, rate 1.6 for batch 4096, 10 epochs of
linear warm-up, cosine, averages of weights and statistics with decay 0.9999; momentum 0.9, weight
decay 1e-4, label smoothing 0.1, augmentation by crops and flips, and bfloat16 are assumed.
Hardware: 128 TPU v3 cores in the paper; the same command on every host of such a slice. Hours are
not known: the run has not been made with this code, and no score of ours stands here.

Variants:
  digits: 1,797 handwritten digits of 8x8 pixels, one block a stage, a quarter of the width, 2
    heads.
  conv: the baseline, the same recipe without attention (published 76.2 %).
  full: attention stem (published 76.9 %); stem_plain, stem_conv: other values in the stem.
  halo: blocks of 7x7 attend to themselves and 3 pixels around (arXiv 2103.12731).
  holdout: evaluates on 4 % of the training images, kept out of it, as the paper tunes.
  window3 .. window11, position_none, position_sine, position_only, stages345 .. stages2, width025,
    width050, width075: the ablations, whose published figures are those of depth 50.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes

VARIANTS = recipes.STANDALONE_VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: see above."""
    return recipes.standalone(__file__, "sasa_resnet38", 38, variant, VARIANTS)
