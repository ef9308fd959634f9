"""SASA-ResNet-50 on ImageNet: self-attention in 7x7 windows in place of every 3x3 convolution
(arXiv 1906.05909).

    python -m launch.train --config=configs/sasa_resnet50.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/sasa_resnet50.py:digits --workdir=DIR

Published (table 1, convolution stem): top-1 77.4 %, 18.0 M parameters, 7.0 GFLOP; built here:
18,015,504 parameters. Recipe: 130 epochs, Nesterov momentum, rate 1.6 for batch 4096, 10 epochs of
linear warm-up, cosine, averages of weights and statistics with decay 0.9999; momentum 0.9, weight
decay 1e-4, label smoothing 0.1, augmentation by crops and flips, and bfloat16 are assumed.
Hardware: 128 TPU v3 cores in the paper; the same command on every host of such a slice. Hours are
not known: the run has not been made with this code, and no score of ours stands here.

Variants:
  digits: 1,797 handwritten digits of 8x8 pixels, one block a stage, a quarter of the width, 2
    heads.
  conv: the baseline, the same recipe without attention (published 76.9 %).
  full: attention stem (published 77.6 %); stem_plain, stem_conv: other values in the stem.
  halo: blocks of 7x7 attend to themselves and 3 pixels around (arXiv 2103.12731).
  holdout: evaluates on 4 % of the training images, kept out of it, as the paper tunes.
  window3, window5, window9, window11: published top-1 76.4, 77.2, 77.7, 77.6 % (table 4).
  position_none, position_sine: 77.6 and 78.2 % on held-out training images, against 80.2 % (table
    5); position_only: queries meet relative positions alone, no keys, 76.9 % (table 6).
  stages345, stages45, stages5, stages2, stages23, stages234: attention in these stages alone, 80.7,
    80.7, 80.2, 79.7, 79.6, 79.9 % on held-out training images (table 3).
  stem_plain, stem_conv, both with attention in all stages: 76.2 and 77.2 % (table 7).
  width025, width050, width075: every width by this percentage (figure; no number is printed).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes

VARIANTS = recipes.STANDALONE_VARIANTS


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: see above."""
    return recipes.standalone(__file__, "sasa_resnet50", 50, variant, VARIANTS)
