"""AA-MnasNet-A1 on ImageNet: attention in the 1x1 expansions at 14 and 7 pixels (arXiv 1904.09925).

    python -m launch.train --config=configs/aa_mnasnet.py --workdir=DIR --config.data.dir=DATA
    python -m launch.train --config=configs/aa_mnasnet.py:digits --workdir=runs/aa_mnasnet_digits

Published (table 4): top-1 75.7 %, top-5 92.6 %, 4.06 M parameters, 0.70 GFLOP.
Built here: 4,056,046 parameters.
Recipe: that of the paper's appendix, written out below; what it leaves open is marked as assumed.
Hardware: not stated in the paper; here a TPU v3-8 or larger slice, the same command on every host.
Never run on ImageNet with this code: no score of ours stands here, and hours are not known.

Variants: width075, width125, width140 (published top-1 73.9, 77.2, 77.7 %); digits, on 1,797
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
    config = default_config("mnasnet", attention="augmented")
    config.name = "aa_mnasnet"

    config.model.width = 1.0
    config.model.image_size = 224
    config.model.num_classes = 1000
    config.model.dropout = 0.2
    config.model.dtype = "bfloat16"  # assumed
    config.model.attention.num_heads = 4
    config.model.attention.kappa = 0.1  # depth of keys over the width of the expansion
    config.model.attention.upsilon = 0.05  # depth of values
    config.model.attention.min_key_depth = 0
    config.model.attention.position = "relative"
    config.model.attention.stages = (4, 5)  # at 1/16 and 1/32 of the image: 14 and 7 pixels

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
    # Half of the baseline's rate, with a slower decay to the same final rate.
    baseline_rate, baseline_decay = 0.016 * config.batch_size / 256, 0.97
    config.schedule.name = "exponential"
    config.schedule.decay_steps = round(2.4 * epoch)
    decays = config.steps // config.schedule.decay_steps
    config.schedule.learning_rate = baseline_rate / 2
    config.schedule.decay_rate = baseline_decay * 2 ** (1 / decays)
    config.schedule.warmup_steps = round(5 * epoch)  # linear; assumed
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999

    config.target = "v5e-16"  # 64 images a chip
    config.log_every = 50
    config.eval_every = round(5 * epoch)
    config.checkpoint.every = round(epoch)
    config.checkpoint.best = "top1"

    return cite(pick(config, variant, VARIANTS, __file__), AUGMENTED)
