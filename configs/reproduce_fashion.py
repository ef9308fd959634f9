"""A small ResNet with convolution, augmented and stand-alone attention, with and without relative
positions, at equal parameters and equal budgets, on Fashion-MNIST.

    make reproduce-fashion                  # all five, three seeds each, a table and a picture
    python -m launch.train --config=configs/reproduce_fashion.py:aa --workdir=DIR

Data: 60,000 training and 10,000 test images of 28 x 28 pixels, ten kinds of clothes; of Debian's
package dataset-fashion-mnist, or the four published files in data.dir (docs/data.md).
Models: basic blocks in three stages at 14, 7 and 4 pixels, behind a 3x3 convolution of stride 2, of
24, 48 and 96 channels, three eighths of the width of ResNet-18 (CPUs multiply widths that are no
multiple of eight at half the speed). Augmented: the first convolution of each block of conv3_x and
conv4_x, kappa = 0.75, upsilon = 0.25, 4 heads. Stand-alone attention: 7x7 windows and 4 heads in
both layers of the blocks of conv4_x, behind convolutions; such layers have fewer weights, so there
is a block more, and it stands later. One recipe for all.

Published: nothing of this size by either paper; their claims are about ImageNet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from vitattn.config import default_config

AUGMENTED = {
    "model.attention.kind": "augmented",
    "model.attention.stages": (3, 4),
    "model.attention.num_heads": 4,
    "model.attention.kappa": 0.75,
    "model.attention.upsilon": 0.25,
    "model.attention.min_key_depth": 4,
    "model.attention.downsample": (),
}
STANDALONE = {
    "model.blocks": (1, 2, 2),
    "model.attention.kind": "local",
    "model.attention.stages": (4,),
    "model.attention.num_heads": 4,
}
VARIANTS = {
    "conv": {},
    "aa": AUGMENTED,
    "aa_none": AUGMENTED | {"model.attention.position": "none"},
    "sasa": STANDALONE,
    "sasa_none": STANDALONE | {"model.attention.position": "none"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, aa, aa_none, sasa, sasa_none."""
    config = default_config("resnet")
    config.name = "reproduce_fashion"

    config.model.depth = 18
    config.model.blocks = (2, 1, 1)
    config.model.width = 0.375  # 24, 48 and 96 channels
    config.model.stem = "strided"
    config.model.image_size = 28
    config.model.num_classes = 10
    config.model.dtype = "float32"
    config.model.bn_decay = 0.9

    config.data.source = "fashion_mnist"
    config.data.augment = "flip"
    config.data.mean = (0.0, 0.0, 0.0)  # the ground is black
    config.data.eval_crop = 1.0

    config.batch_size = 128
    config.steps = 1175
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.2
    config.schedule.warmup_steps = 100
    config.label_smoothing = 0.05
    config.ema_decay = 0.99

    config.target = "v5e-4"
    config.log_every = 50
    config.eval_every = 235
    config.checkpoint.every = 235

    return pick(config, variant, VARIANTS, __file__)
