"""ResNet-26 with convolution, stand-alone and augmented attention at a quarter of the width: equal
budgets, to see on a laptop that each of them learns.

    make reproduce-small                    # all of them, three seeds each, a table and a plot
    python -m launch.train --config=configs/reproduce_small.py:standalone --workdir=DIR

Models: blocks 1, 2, 4, 1 as ResNet-26, widths 16, 32, 64, 128, a 3x3 stem without pooling
(on CIFAR-100 a 7x7 one with stride and pooling, so that stages start at 8 pixels as on digits).
Stand-alone attention: 7x7 windows, 4 heads, in all stages. Augmented: kappa = upsilon = 0.25, 4
heads of key depth 4 at least, in conv3_x to conv5_x, at the resolution of their maps. One recipe
for all, not tuned for any: SGD with Nesterov momentum, rate 0.05, warm-up and cosine, weight decay
5e-4, label smoothing 0.1, average of weights.

Published: nothing at this size, so nothing to compare with; the papers' claims are about ImageNet.
Hardware: 2 CPU cores. The command prints and draws what it measures; no figure is kept here.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from vitattn.config import default_config

STANDALONE = {"model.attention.kind": "local", "model.attention.num_heads": 4}
AUGMENTED = {
    "model.attention.kind": "augmented",
    "model.attention.num_heads": 4,
    "model.attention.kappa": 0.25,
    "model.attention.upsilon": 0.25,
    "model.attention.min_key_depth": 4,
    "model.attention.downsample": (),
}
# For minutes: 2 epochs. The stem strides by 4 as on ImageNet, so that stages have 8 to 1 pixels; at
# full resolution a step would cost 16 times as much.
CIFAR100 = {
    "data.source": "cifar100",
    "data.augment": "flip_crop",
    "model.stem": "conv",
    "model.image_size": 32,
    "model.num_classes": 100,
    "batch_size": 128,
    "steps": 800,
    "schedule.warmup_steps": 80,
    "eval_every": 200,
    "checkpoint.every": 200,
}
VARIANTS = {
    "conv": {},
    "standalone": STANDALONE,
    "augmented": AUGMENTED,
    "cifar100_conv": CIFAR100,
    "cifar100_standalone": CIFAR100 | STANDALONE,
    "cifar100_augmented": CIFAR100 | AUGMENTED,
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, standalone, augmented, and each after cifar100_."""
    config = default_config("resnet")
    config.name = "reproduce_small"

    config.model.depth = 26
    config.model.width = 0.25
    config.model.stem = "small_image"
    config.model.image_size = 8
    config.model.num_classes = 10
    config.model.dtype = "float32"
    config.model.bn_decay = 0.9

    config.data.source = "digits"
    config.data.augment = "shift"
    config.data.eval_crop = 1.0

    config.batch_size = 96
    config.steps = 500
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 0.05
    config.schedule.warmup_steps = 30
    config.label_smoothing = 0.1
    config.ema_decay = 0.98

    config.target = "v5e-4"
    config.log_every = 1
    config.eval_every = 50
    config.checkpoint.every = 50

    return pick(config, variant, VARIANTS, __file__)
