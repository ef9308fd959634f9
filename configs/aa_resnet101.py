"""AA-ResNet-101 on ImageNet: attention-augmented convolution in the last three stages (arXiv
1904.09925).

    python -m launch.train --config=configs/aa_resnet101.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_resnet101.py:digits --workdir=DIR

Published (table 3): top-1 78.7 %, top-5 94.4 %, 45.4 M parameters, 16.1 GFLOP.
Built here: 45,386,728 parameters.
Recipe: that of the paper's appendix, written out below; what it leaves open is marked as assumed.
Hardware: 8 V100 in the paper; here a TPU v3-8 or larger slice, the same command on every host.
Never run on ImageNet with this code: no score of ours stands here, and hours are not known.

Variants: conv and se, the same recipe without attention (ResNet-101: 77.9 / 94.0 %, SE: 78.4 / 94.2
%); digits, on 1,797 handwritten digits of 8x8 pixels with one block a stage, a quarter of the width
and 2 heads.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.cite import cite
from configs.common.variants import pick
from vitattn.config import default_config
from vitattn.papers import AUGMENTED

# 1,797 handwritten digits of 8x8 pixels (scikit-learn), in minutes on 2 CPU cores.
DIGITS = {
    "data.source": "digits",
    "data.augment": "shift",
    "data.eval_crop": 1.0,
    "model.stem": "small_image",
    "model.blocks": (1, 1, 1, 1),
    "model.width": 0.25,
    "model.attention.num_heads": 2,
    "model.attention.min_key_depth": 4,
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
    "conv": {"model.attention.kind": "none"},
    "se": {"model.attention.kind": "none", "model.gate": "se"},
    "digits": DIGITS,
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: conv, se, digits."""
    config = default_config("resnet", attention="augmented")
    config.name = "aa_resnet101"

    config.model.depth = 101
    config.model.image_size = 224
    config.model.num_classes = 1000
    config.model.dtype = "bfloat16"  # assumed
    config.model.attention.num_heads = 8
    config.model.attention.kappa = 0.2  # depth of keys over the width of the convolution
    config.model.attention.upsilon = 0.1  # depth of values
    config.model.attention.min_key_depth = 20  # of a head
    config.model.attention.position = "relative"
    config.model.attention.stages = (3, 4, 5)
    config.model.attention.downsample = (3,)  # attends at half the resolution there

    config.data.source = "imagenet"
    config.data.augment = "inception"  # crops, flips and colour
    config.data.eval_crop = 0.875

    config.batch_size = 1024  # assumed: the paper has 32 to 256 a worker, whatever fits on 8 V100
    epoch = 1_281_167 / config.batch_size  # in steps
    config.steps = round(100 * epoch)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.128 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)  # linear
    config.schedule.boundaries = tuple(round(epoch * e) for e in (30, 60, 80, 90))
    config.schedule.factors = (0.1,)
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    config.target = "v5e-16"  # 64 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), AUGMENTED)
