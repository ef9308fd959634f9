"""WRN-28-10 on CIFAR-100: the baseline of attention augmentation (arXiv 1904.09925).

    python -m launch.train --config=configs/wrn28_10.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/wrn28_10.py:digits --workdir=runs/wrn28_10_digits

Published (table 1): top-1 80.3 %, top-5 95.0 %, 36.3 M parameters, 10.4 GFLOP.
Built here: 36,278,324 parameters (shortcuts without parameters).
Recipe: that of the paper's appendix, written out below; what it leaves open is marked as assumed.
Hardware: 8 V100 in the paper; here a TPU v3-8, the same command on every host of a larger slice.
Never run on CIFAR-100 with this code: no score of ours stands here, and hours are not known.

Variants: se (published 81.0 / 95.3 %), gather_excite (79.8 / 95.0 %), and digits, on 1,797
handwritten digits of 8x8 pixels at depth 10 and widening 2.
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
    "model.depth": 10,
    "model.widening": 2,
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
    "se": {"model.gate": "se"},
    "gather_excite": {"model.gate": "gather_excite"},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: digits, se, gather_excite."""
    config = default_config("wide_resnet")
    config.name = "wrn28_10"

    config.model.depth = 28
    config.model.widening = 10
    config.model.image_size = 32
    config.model.num_classes = 100
    config.model.dtype = "bfloat16"  # assumed
    config.model.gate = "none"

    config.data.source = "cifar100"
    config.data.augment = "flip_crop"  # flips, and crops of the image with a border of 4 pixels
    config.data.eval_crop = 1.0

    config.batch_size = 1024
    epoch = 50_000 / config.batch_size  # in steps
    config.steps = round(500 * epoch)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4
    config.schedule.name = "cosine"  # to 0
    config.schedule.learning_rate = 0.2 * config.batch_size / 256
    config.schedule.warmup_steps = round(0.05 * config.steps)  # linear
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    config.target = "v5e-4"
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(5 * epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), AUGMENTED)
