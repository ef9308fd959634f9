"""SASA-ResNet-50 on ImageNet: self-attention in 7x7 windows in place of every 3x3 convolution
(arXiv 1906.05909).

    python -m launch.train --config=configs/sasa_resnet50.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/sasa_resnet50.py:digits --workdir=DIR

Published (table 1, convolution stem): top-1 77.4 %, 18.0 M parameters, 7.0 GFLOP.
Built here: 18,015,504 parameters.
Recipe: that of the paper's section 4, written out below; what it leaves open is marked as assumed.
Hardware: 128 TPU v3 cores in the paper; the same command on every host of such a slice.
Never run on ImageNet with this code: no score of ours stands here, and hours are not known.

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

from configs.common.cite import cite
from configs.common.variants import pick
from vitattn.config import default_config
from vitattn.papers import STANDALONE

# 1,797 handwritten digits of 8x8 pixels (scikit-learn), in minutes on 2 CPU cores.
DIGITS = {
    "data.source": "digits",
    "data.augment": "shift",
    "data.eval_crop": 1.0,
    "model.stem": "small_image",
    "model.blocks": (1, 1, 1, 1),
    "model.width": 0.25,
    "model.attention.num_heads": 2,
    "model.image_size": 8,
    "model.num_classes": 10,
    "model.dtype": "float32",
    "model.bn_decay": 0.9,
    "batch_size": 96,
    "steps": 300,
    "optimizer.name": "sgd",
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "schedule.name": "cosine",
    "schedule.learning_rate": 0.05,
    "schedule.warmup_steps": 30,
    "label_smoothing": 0.1,
    "ema_decay": 0.98,
    "eval_every": 50,
    "checkpoint.every": 50,
    "log_every": 1,
    "target": "v5e-4",
}

VARIANTS = {
    "digits": DIGITS,
    "holdout": {"data.holdout": 0.04, "data.eval_split": "holdout"},
    "conv": {"model.attention.kind": "none"},
    "halo": {"model.attention.kind": "halo", "model.attention.mask_border": True},
    "full": {"model.stem": "attention"},
    "stem_plain": {"model.stem": "attention_plain"},
    "stem_conv": {"model.stem": "attention_conv"},
    "position_only": {"model.attention.position_only": True},
    "position_none": {"model.attention.position": "none"},
    "position_sine": {"model.attention.position": "sine"},
    "window3": {"model.attention.window": 3},
    "window5": {"model.attention.window": 5},
    "window9": {"model.attention.window": 9},
    "window11": {"model.attention.window": 11},
    "stages345": {"model.attention.stages": (3, 4, 5)},
    "stages45": {"model.attention.stages": (4, 5)},
    "stages5": {"model.attention.stages": (5,)},
    "stages2": {"model.attention.stages": (2,)},
    "stages23": {"model.attention.stages": (2, 3)},
    "stages234": {"model.attention.stages": (2, 3, 4)},
    "width025": {"model.width": 0.25},
    "width050": {"model.width": 0.5},
    "width075": {"model.width": 0.75},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: see above."""
    config = default_config("resnet", attention="local")
    config.name = "sasa_resnet50"

    config.model.depth = 50
    config.model.width = 1.0
    config.model.stem = "conv"
    config.model.image_size = 224
    config.model.num_classes = 1000
    config.model.dtype = "bfloat16"  # assumed
    config.model.bn_decay = 0.9999
    config.model.attention.num_heads = 8
    config.model.attention.window = 7
    config.model.attention.position = "relative"
    config.model.attention.stages = (2, 3, 4, 5)

    config.data.source = "imagenet"
    config.data.augment = "inception_crop"  # crops and flips; assumed
    config.data.eval_crop = 0.875

    config.batch_size = 4096
    epoch = 1_281_167 / config.batch_size  # in steps
    config.steps = round(130 * epoch)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9  # assumed
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4  # assumed
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1.6
    config.schedule.warmup_steps = round(10 * epoch)  # linear
    config.label_smoothing = 0.1  # assumed
    config.ema_decay = 0.9999

    config.target = "v5e-64"  # 64 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), STANDALONE)
