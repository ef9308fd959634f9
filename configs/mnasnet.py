"""MnasNet-A1 on ImageNet: the mobile baseline of attention augmentation (arXiv 1904.09925).

    python -m launch.train --config=configs/mnasnet.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/mnasnet.py:digits --workdir=runs/mnasnet_digits

Published (table 4): top-1 75.2 %, top-5 92.4 %, 3.89 M parameters, 0.63 GFLOP.
Built here: 3,887,038 parameters.
Recipe: that of the paper's appendix, written out below; what it leaves open is marked as assumed.
Hardware: not stated in the paper; here a TPU v3-8 or larger slice, the same command on every host.
Never run on ImageNet with this code: no score of ours stands here, and hours are not known.

Variants: width075, width125, width140 (published top-1 73.3, 76.7, 77.2 %); digits, on 1,797
handwritten digits of 8x8 pixels with one or two blocks a row, a quarter of the width and SGD.
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
    "model.blocks": (1, 1, 1, 1, 1, 2, 1),
    "model.width": 0.25,
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
    "width075": {"model.width": 0.75},
    "width125": {"model.width": 1.25},
    "width140": {"model.width": 1.4},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, width075, width125, width140."""
    config = default_config("mnasnet")
    config.name = "mnasnet"

    config.model.width = 1.0
    config.model.image_size = 224
    config.model.num_classes = 1000
    config.model.dropout = 0.2
    config.model.dtype = "bfloat16"  # assumed

    config.data.source = "imagenet"
    config.data.augment = "inception_crop"  # crops and flips; assumed, as in the public code
    config.data.eval_crop = 0.875

    config.batch_size = 1024  # assumed
    epoch = 1_281_167 / config.batch_size  # in steps
    config.steps = round(350 * epoch)
    config.optimizer.name = "rmsprop"
    config.optimizer.rms_decay = 0.9
    config.optimizer.momentum = 0.9
    config.optimizer.rms_eps = 1e-3
    config.optimizer.weight_decay = 1e-5
    config.schedule.name = "exponential"
    config.schedule.learning_rate = 0.016 * config.batch_size / 256
    config.schedule.decay_rate = 0.97
    config.schedule.decay_steps = round(2.4 * epoch)
    config.schedule.warmup_steps = round(5 * epoch)  # linear; assumed
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999

    config.target = "v5e-16"  # 64 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), AUGMENTED)
